"""``ldm invert``: learn a word from a folder of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common, concepts
from ldm.errors import UserError
from ldm.inversion.presets import names
from ldm.io.runs import CONFIG_NAME, slug, stamp
from ldm.io.secrets import refuse_hidden

if TYPE_CHECKING:
    from ldm.inversion.config import InversionConfig

EXAMPLE = """\
  ldm invert --model emoji --images my-pictures/ --name "<cat-toy>" --init "cat toy"
  ldm invert --images my-pictures/ --name "<cat-toy>" --init "cat toy" --per-layer --out runs/cat-toy
  ldm invert --resume --out runs/2025-01-31T12-00-00_cat-toy        # after an interruption
  ldm invert --concepts concepts.yaml --out runs/all --pack auto    # many words in one pass
"""
#: option -> key of InversionConfig
KEYS = {
    "model": "model",
    "checkpoint": "checkpoint",
    "preset": "preset",
    "images": "images",
    "train_pictures": "train_pictures",
    "name": "placeholder",
    "init": "init",
    "num_vectors": "num_vectors",
    "per_layer": "per_layer",
    "batch_size": "batch_size",
    "seed": "seed",
    "clip_skip": "clip_skip",
    "templates": "captions.templates",
    "prompt": "show.prompts",
    "steps": "trainer.max_steps",
    "precision": "trainer.precision",
    "accelerator": "trainer.accelerator",
    "lr": "optim.lr",
}


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "invert",
        "learn a word from 3-5 pictures",
        "Learn a word from 3-5 pictures. The run's folder holds the embedding, pictures drawn\n"
        "with it, curves and report.html. Settings that are not given are the model's own.\n\n"
        "With --concepts, learn many at a time, each as in a run of its own. The list is YAML:\n"
        "  defaults: {trainer: {max_steps: 200}}\n"
        "  concepts:\n"
        "    - {name: <cat>, images: cats/, init: cat}\n"
        "    - {name: <dog>, images: dogs/, init: dog, num_vectors: 2}",
        EXAMPLE,
    )
    common.add_model(parser, default=None)
    add = parser.add_argument
    add(
        "--preset",
        metavar="NAME|YAML",
        help=f"settings that stand between the model's own and what you give: {', '.join(names())}, or a "
        "YAML file; ldm presets says what each one is",
    )
    add("--images", type=Path, metavar="DIR", help="folder with the pictures")
    add(
        "--train-pictures",
        type=int,
        metavar="K",
        help="learn from the first K of them by name and keep the rest as references for ldm evaluate",
    )
    add("--name", metavar="WORD", help='the new word, any string, such as "<cat-toy>"')
    add(
        "--init",
        metavar="PHRASE",
        help='known words to start from, such as "cat toy"; "pictures" takes those nearest to the pictures',
    )
    add("--steps", type=int, help="optimiser steps")
    add("--lr", type=float, help="base learning rate, before it is scaled by the batch size")
    add("--batch-size", type=int)
    add("--num-vectors", type=int, metavar="K", help="vectors of the word (default: 1)")
    add(
        "--per-layer",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="vectors of its own for each cross-attention layer of the UNet: nearer to the pictures, but no "
        "other tool reads such a word",
    )
    add(
        "--templates",
        metavar="SET|FILE",
        help="captions: object, style, photo, plain, or a text file of sentences with {} for the word, one a "
        "line (default: object)",
    )
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="draw this on the way and at the end; {} is the word; may be given several times",
    )
    add("--seed", type=int)
    common.add_clip_skip(parser, "the model's own")
    add("--precision", help="32-true, bf16-mixed, 16-mixed, or auto: bf16-mixed where the device has it")
    add("--out", type=Path, metavar="RUN", help="the run's folder (default: runs/<date>_<name>)")
    add("--resume", action="store_true", help="continue the run, or the runs of --concepts, in --out")
    add("--concepts", type=Path, metavar="YAML", help="learn all of this list, in folders of --out")
    add(
        "--pack",
        type=concepts.pack_size,
        default="auto",
        metavar="N",
        help="how many of --concepts at a time (default: auto, what there is memory for)",
    )
    add(
        "--part",
        type=concepts.part,
        default=slice(None),
        metavar="I/N",
        help="only the I-th of N parts of --concepts, I from 0 to N - 1, as the tasks of a job array count",
    )
    common.add_settings(parser, "other settings, such as optim.weight_decay=0.01 num_vectors=3")
    parser.set_defaults(run=run)


def config_of(args: argparse.Namespace) -> InversionConfig:
    """The run's config: the model's own settings <- the preset <- the options <- ``--set``.

    With ``--resume``, the settings of the run that is continued take the place of the model's, if it has
    been begun.
    """
    from ldm.backbone.loading import inversion_defaults
    from ldm.config import load_yaml, to_plain
    from ldm.inversion.config import settle
    from ldm.shorthand import spelled

    given = options(args)
    if args.resume and args.out is None:
        raise UserError("--resume needs --out: give the folder of the run to continue")
    kept = args.out / CONFIG_NAME if args.resume else None
    if kept is not None and kept.is_file():
        config = settle(spelled(load_yaml([kept]), tell=False), given)
        refuse_hidden(to_plain(config))
        return config
    for option in ("images", "name"):  # also of a run that was killed before it could leave any settings
        if getattr(args, option) is None:
            where = f"there is no run in {args.out} yet, and " if kept else ""
            raise UserError(f"{where}--{option} is missing; see the example of ldm invert --help")
    return settle(inversion_defaults(given.get("model", "emoji")), given)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options and ``--set`` give, as a nested mapping of full names."""
    from ldm.config import merge, nested
    from ldm.shorthand import spelled

    given = {key: getattr(args, option, None) for option, key in KEYS.items()}
    given["images"] = str(args.images) if args.images else None
    given["trainer.accelerator"] = _accelerator(args.device)
    return merge(nested(given), spelled(common.typed(args.set)))


def _accelerator(device: str) -> str | None:
    if device == "auto":
        return None
    return "gpu" if common.torch_device(device) == "cuda" else "cpu"


def run(args: argparse.Namespace) -> None:
    """Learn the word, then say where it is and how to draw with it; or all of a list."""
    listed = concepts.kept_list(args.concepts, args.out, args.resume)
    if listed is not None:
        _learn_list(args, listed)
        return
    config = config_of(args)
    usual = Path("runs", f"{stamp()}_{slug(config.placeholder)}")
    with run_folder(args.out, usual, config) as out:
        again = common.command(["ldm", "invert", "--resume", "--out", out])
        invert(config, out, again=again, resume=args.resume)


def _learn_list(args: argparse.Namespace, listed: Path) -> None:
    for option in ("images", "name", "init"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} belongs to a single concept: write it into {listed}")
    from ldm.inversion.many.concept_list import learn_here

    concepts.learn(
        listed,
        args.out,
        command=concepts.resuming("invert", pack=args.pack),
        learn=partial(learn_here, pack=args.pack, resume=args.resume),
        options=options(args),
        model=args.model,
        part=args.part,
        resume=args.resume,
    )


def run_folder(given: Path | None, usual: Path, config: InversionConfig) -> AbstractContextManager[Path]:
    """The run's folder, claimed where this process is the one that writes."""
    if not config.trainer.writes:
        return nullcontext(given or usual)
    return common.output(given, usual, half=common.no_checkpoint)


def invert(
    config: InversionConfig,
    out: Path,
    *,
    again: str,
    resume: bool,
    documents: Mapping[str, str] | None = None,
) -> None:
    """Learn by ``config`` in ``out``, then say where the word is and how to draw with it.

    Args:
        again: the command that continues the run.
        resume: continue what is in ``out``.
        documents: further text files of the run, path in its folder -> content.
    """
    from ldm.inversion.run import run_inversion
    from ldm.io.embeddings import load_embeddings

    common.resume_once(out / CONFIG_NAME, again)
    run_inversion(config, out, resume=resume, documents=documents)
    if not config.trainer.writes:
        return
    for word in load_embeddings(out / "embeddings.safetensors"):
        plural = "s" if word.K > 1 else ""
        each = f" for each of {word.layers} layers" if word.layers else ""
        common.heading(f"learned {word.placeholder}: {word.K} vector{plural} of width {word.D}{each}")
        if config.init == "pictures" and word.placeholder == config.placeholder:
            chosen = word.metadata["init"]
            common.say(f"  start      {chosen}, nearest to the pictures by {config.init_pictures.scorer}")
    sample: list[str | Path] = ["ldm", "sample", "--model", *_model_words(config, out)]
    sample += ["--embedding", out / "embeddings.safetensors"]
    sample += ["--prompt", f"a photo of {config.called} on a red background", "--n", "8"]
    common.say(
        f"  embedding  {out / 'embeddings.safetensors'}",
        f"  report     {out / 'report.html'}",
        "draw with it:",
        f"  {common.command(sample)}",
    )


def _model_words(config: InversionConfig, out: Path) -> list[str]:
    if config.model_lr:  # it was trained as well
        return [str(out / "model")]
    described = [*map(str, sorted(out.glob("configs/*-project.yaml"))), "MODEL"][0]
    name = config.model if isinstance(config.model, str) else described
    return [name, *(["--checkpoint", config.checkpoint] if config.checkpoint else [])]
