"""The YAML-driven entry: ``python main.py --base configs/emoji/invert.yaml -t ...``."""

import sys

from ldm.cli.official import main

if __name__ == "__main__":
    sys.exit(main())
