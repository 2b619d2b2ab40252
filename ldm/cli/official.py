"""``main.py``: the official command line (``--base``, ``-t``, dot-list overrides) for inversions.

A YAML of ``--base`` holds keys of ``ldm.inversion.config.InversionConfig``, and what it leaves out are the
model's own settings; or it is one of the official files, which ``ldm.official.config`` says in the same keys.
Options win over the files, ``key.sub=value`` words (in the form of the file) over both.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.cli import common
from ldm.errors import UserError
from ldm.io.runs import CONFIG_NAME, stamp
from ldm.io.secrets import refuse_hidden

log = logging.getLogger(__name__)

EXAMPLE = """\
example:
  python main.py --base configs/emoji/invert.yaml -t -n cat --data_root my-pictures/ \\
                 --placeholder_string "<cat-toy>" --init_word "cat" trainer.max_steps=300
  python main.py --base official.yaml -t --actual_resume model.ckpt -n cat --gpus 0, \\
                 --data_root my-pictures/ --init_word cat lightning.trainer.max_steps=300
"""
#: option -> key of InversionConfig
KEYS = {
    "data_root": "images",
    "placeholder_string": "placeholder",
    "init_word": "init",
    "embedding_manager_ckpt": "init_embedding",
    "actual_resume": "checkpoint",
    "scale_lr": "scale_lr",
    "seed": "seed",
    "project": "logging.project",
}


def _truth(text: str) -> bool:
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def build_parser() -> argparse.ArgumentParser:
    """The flags of the official ``main.py``."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Textual Inversion from YAML files; any key can be changed by key.sub=value.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    switch: dict[str, Any] = {"type": _truth, "nargs": "?", "const": True, "metavar": "BOOL"}
    add("-b", "--base", nargs="*", default=[], metavar="YAML", help="of several the later wins")
    add("-t", "--train", default=False, help="train; without it the resolved config is shown", **switch)
    add("--no-test", default=False, help="accepted; there is no separate test pass", **switch)
    add("-n", "--name", default="", help="last part of the output folder's name")
    add("-f", "--postfix", default="", help="appended to the name")
    add("-r", "--resume", type=Path, metavar="PATH", help="a run's folder or a checkpoint in it")
    add("-p", "--project", help="wandb project")
    add("-d", "--debug", default=False, help="open the debugger where an error happens", **switch)
    add("-s", "--seed", type=int, help="(default: the YAML's, else the model's own, else 23)")
    add("-l", "--logdir", type=Path, default=Path("logs"), help="(default: logs)")
    add("--scale_lr", help="multiply the rate by accumulate x devices x batch size", **switch)
    add("--datadir_in_name", default=True, help="begin the folder's name with --data_root's", **switch)
    add("--actual_resume", metavar="CKPT", help="weights of the base model")
    add("--data_root", metavar="DIR", help="folder with the pictures")
    add("--embedding_manager_ckpt", metavar="PT", help="embedding file to start from")
    add("--placeholder_string", metavar="S", help="the new word")
    add("--init_word", metavar="W", help="known words to start from")
    add("--gpus", metavar="IDS", help='such as "0,"; without it a GPU is used if there is one')
    common.add_verbose(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status as ``ldm.cli.main.main`` does."""
    from ldm.cli.main import guarded, interruptible

    def whole() -> int:
        common.print_anything()
        parser = build_parser()
        words, overrides = split_overrides(parser, sys.argv[1:] if argv is None else argv)
        args = parser.parse_args(words)
        args.overrides = overrides
        return guarded(_debugged if args.debug else run, args)

    return interruptible(whole)


def split_overrides(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options, and the ``key=value`` words, which may stand anywhere but as an option's value."""
    valued = {flag for a in parser._actions if a.nargs is None for flag in a.option_strings}
    words: list[str] = []
    overrides: list[str] = []
    for word in argv:
        free = not (words and words[-1] in valued)
        (overrides if free and re.match(r"[\w.\[\]]+=", word) else words).append(word)
    return words, overrides


def _debugged(args: argparse.Namespace) -> None:
    try:
        run(args)
    except Exception as error:
        if not isinstance(error, UserError) and sys.stdin.isatty():
            import pdb

            pdb.post_mortem(error.__traceback__)
        raise


def run(args: argparse.Namespace) -> None:
    """Resolve the config; train if asked to."""
    from ldm.cli.invert import invert, run_folder
    from ldm.config import dump_yaml, merge, to_plain
    from ldm.inversion.config import settle

    folder = resumed_folder(args.resume, begin=bool(args.base)) if args.resume else None
    official = official_values(args)
    found = layers(args, folder, official)
    if official is not None:
        _refuse_missing(merge({}, *found))
    config = settle(*found)
    if not args.train:
        common.say(dump_yaml(to_plain(config)).rstrip())
        sys.stderr.write("ldm: nothing was trained: add -t to train with this config\n")
        return
    begun, name = run_name(args, config.images)
    documents = _documents(official, begun) if official and args.base else {}
    with run_folder(folder, args.logdir / f"{begun}{name}", config) as out:
        again = common.command(["python", "main.py", "-t", "-r", out])
        invert(config, out, again=again, resume=folder is not None, documents=documents)


def official_values(args: argparse.Namespace) -> dict[str, Any] | None:
    """Files, options and overrides as one official config; ``None`` if they are in our form."""
    from ldm.config import load_yaml, merge
    from ldm.official import config as legacy

    values = load_yaml(args.base, args.overrides)
    if not legacy.is_official(values):
        return None
    return merge(legacy.with_options(values, vars(args)), common.typed(args.overrides))


def layers(
    args: argparse.Namespace, folder: Path | None, official: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The model's own settings (or the resumed run's), the files, the options, the overrides."""
    from ldm.backbone.loading import inversion_defaults
    from ldm.config import load_yaml, merge, nested
    from ldm.official import config as legacy
    from ldm.shorthand import spelled

    options = {key: getattr(args, option) for option, key in KEYS.items()}
    overrides = common.typed(args.overrides)
    if official is None:
        files = load_yaml(args.base)
    else:  # which holds some of the options and overrides already
        files = legacy.settings(official)
        options = {key: getattr(args, o) for o, key in KEYS.items() if o not in legacy.OPTIONS}
        overrides = {key: value for key, value in overrides.items() if key not in legacy.SECTIONS}
    if folder and (folder / CONFIG_NAME).is_file():
        base = spelled(load_yaml([folder / CONFIG_NAME]), tell=False)
    else:
        base = inversion_defaults(merge(files, overrides).get("model", "emoji"))
    found = [base, files, nested(options), _devices(args.gpus), overrides]
    refuse_hidden(merge({}, *found))
    return found


def _refuse_missing(values: dict[str, Any]) -> None:
    """What the official files leave to the command line."""
    if "images" not in values:
        raise UserError("--data_root is missing: give the folder with the pictures")
    if "placeholder" not in values:
        raise UserError("--placeholder_string is missing: give the new word")
    model = values.get("model")
    weights = values.get("checkpoint") or not isinstance(model, dict) or model["model"].get("checkpoint")
    if not weights:
        raise UserError("--actual_resume is missing: give the base model's weights")


def _documents(official: dict[str, Any], begun: str) -> dict[str, str]:
    """The config as the official code leaves it: the project's and the trainer's part."""
    from ldm.config import dump_yaml

    project = {key: value for key, value in official.items() if key in ("model", "data")}
    lightning = {"lightning": official.get("lightning", {})}
    return {
        f"configs/{begun}-project.yaml": dump_yaml(project),
        f"configs/{begun}-lightning.yaml": dump_yaml(lightning),
    }


def _devices(gpus: str | None) -> dict[str, Any]:
    """``--gpus 0,`` as settings of the trainer: how many, and which ones torch may see."""
    if gpus is None:
        return {}
    ids = [item for item in gpus.split(",") if item.strip()]
    if not all(item.strip().isdigit() for item in ids):
        raise UserError(f'--gpus is {gpus!r}; give ids, such as "0,"')
    if not ids:
        return {"trainer": {"accelerator": "cpu", "devices": 1}}
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    if "LOCAL_RANK" in os.environ and "RANK" not in os.environ:
        ids = visible  # Lightning started this process from one that had chosen them
    elif visible:
        if any(int(item) >= len(visible) for item in ids):
            raise UserError(f"--gpus is {gpus!r}, but only {len(visible)} GPUs are visible")
        ids = [visible[int(item)] for item in ids]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids)
    import torch

    if not torch.cuda.is_available():
        log.warning("--gpus %s is left out: torch finds no GPU here, so the CPU is used", gpus)
        return {"trainer": {"accelerator": "cpu", "devices": 1}}
    return {"trainer": {"accelerator": "gpu", "devices": len(ids)}}


def resumed_folder(path: Path, begin: bool = False) -> Path:
    """The run's folder of ``-r``: itself, or that of a checkpoint in it.

    Raises:
        UserError: no run was begun there, and there are no settings to ``begin`` one.
    """
    folder = path.parent.parent if path.is_file() else path
    if not begin and not (folder / CONFIG_NAME).is_file():
        raise UserError(f"there is no run in {folder}; give its folder, or a checkpoint in it, to -r")
    return folder


def run_name(args: argparse.Namespace, images: Path) -> tuple[str, str]:
    """``<data><time>`` and ``_<name><postfix>``, which make the name of a folder of the official code."""
    name = args.name or (Path(args.base[0]).stem if args.base else "")
    data = images.resolve().name if args.datadir_in_name else ""
    return f"{data}{stamp()}", f"{'_' + name if name else ''}{args.postfix}"
