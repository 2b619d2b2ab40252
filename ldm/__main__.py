"""``python -m ldm``: the console script ``ldm`` by another name."""

import sys

from ldm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
