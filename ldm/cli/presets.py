"""``ldm presets``: which named settings there are, and what each one sets."""

from __future__ import annotations

import argparse

from ldm.cli import common

EXAMPLE = """\
  ldm presets                 # all, a line each
  ldm presets paper           # its settings, as YAML
  ldm invert --preset paper --images my-pictures/ --name "<cat-toy>" --init "cat toy"
"""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "presets",
        "list the named settings of ldm invert --preset",
        "List the presets, or show what one of them sets. A preset wins over the model's own settings,\n"
        "and whatever you give yourself wins over the preset. A YAML file of yours is one too.",
        EXAMPLE,
    )
    parser.add_argument("name", nargs="?", metavar="NAME|YAML", help="show this one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print them."""
    from ldm.config import dump_yaml
    from ldm.inversion import presets

    if args.name is None:
        found = [presets.read(name) for name in presets.names()]
        width = max(len(preset.name) for preset in found)
        common.say(*(f"{preset.name:{width}}  {preset.about}" for preset in found))
        return
    preset = presets.read(args.name)
    common.heading(f"{preset.name}: {preset.about}")
    if preset.source:
        common.say(f"source: {preset.source}")
    settings = dump_yaml(preset.settings).rstrip() if preset.settings else "it sets nothing"
    common.say(settings)
