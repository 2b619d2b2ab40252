"""``ldm train``: the stages that made the shipped model, each resumable."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.cli import common
from ldm.errors import UserError

EXAMPLE = """\
  ldm train data                               # fetch and prepare the emoji
  ldm train autoencoder --resume               # each stage goes on where it was interrupted
  ldm train latents
  ldm train diffusion trainer.max_minutes=60   # any key of the YAML can be changed
  ldm train clip
  ldm train export --run logs/emoji-diffusion --out my-model
"""
#: stage -> what it does, and where it writes for configs/<model>/<stage>.yaml
STAGES = {
    "autoencoder": ("train the autoencoder", "logs/{model}-{stage}"),
    "latents": ("encode pictures once with the trained autoencoder", "data/{model}/{stage}.safetensors"),
    "diffusion": ("train UNet and text encoder on those latents", "logs/{model}-{stage}"),
    "clip": ("train the small CLIP that judges pictures", "logs/{model}-{stage}"),
}


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand and, below it, one for each stage."""
    parser = common.add_parser(
        subparsers,
        "train",
        "train a text-to-image model of your own, stage by stage",
        "Train a text-to-image model: the stages that made the shipped one, in their order.",
        EXAMPLE,
    )
    stages = parser.add_subparsers(title="stages", metavar="STAGE", required=True)
    _register_data(stages)
    for stage, (summary, out) in STAGES.items():
        _register_stage(stages, stage, summary, out)
    _register_export(stages)
    _register_average(stages)


def _register_data(stages: common.Subparsers) -> None:
    parser = common.add_parser(
        stages,
        "data",
        "fetch and prepare the emoji pictures",
        "Fetch packages of the npm registry with npm (150 MB) and prepare their pictures: one drawing of "
        "every thing in each of three styles, or with --sets all drawings of many sets (20 MB more).",
        "  ldm train data\n  ldm train data --sets all --out data/emoji-all\n"
        "  ldm train data --vendor facebook --out data/facebook\n"
        "  ldm train data --packages folder-with-the-tgz-files",
    )
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), metavar="DIR")
    parser.add_argument(
        "--packages", type=Path, metavar="DIR", help="folder that holds the .tgz files already"
    )
    parser.add_argument(
        "--sets", nargs="+", metavar="SET", help="keep all drawings of these sets (all: of every set)"
    )
    parser.add_argument(
        "--vendor", metavar="NAME", help="a set to test with, which no model was trained on: facebook"
    )
    parser.add_argument(
        "--size", type=int, default=64, metavar="PIXELS", help="side of the drawings (default: 64)"
    )
    parser.set_defaults(run=run_data)


def _register_stage(stages: common.Subparsers, stage: str, summary: str, out: str) -> None:
    default = f"configs/emoji/{stage}.yaml"
    parser = common.add_parser(
        stages,
        stage,
        summary,
        f"{summary[0].upper()}{summary[1:]}. Settings come from a YAML file; KEY=VALUE words change them.",
        f"  ldm train {stage} --base {default} seed=1",
    )
    _add_base(parser, default)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help=f"where to write (default: {out.format(model='emoji', stage=stage)})",
    )
    if stage != "latents":
        parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.set_defaults(run=run_stage, stage=stage, overrides=[])


def _register_export(stages: common.Subparsers) -> None:
    parser = common.add_parser(
        stages,
        "export",
        "write a trained model as a folder that ldm.load reads",
        "Write the averaged weights of a diffusion run as a model folder: float16 .safetensors in\n"
        "the public layout, config.yaml and the vocabulary.",
        "  ldm train export --run logs/emoji-diffusion --out my-model",
    )
    parser.add_argument(
        "--base", nargs="+", default=[], metavar="YAML", help="settings (default: the run's own)"
    )
    parser.add_argument("--run", dest="source", type=Path, required=True, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="instead of the last one")
    parser.set_defaults(run=run_export, overrides=[])


def _register_average(stages: common.Subparsers) -> None:
    parser = common.add_parser(
        stages,
        "average",
        "write the mean of several exported models",
        "Write the mean of the weights of several models, which must be stages of one training: each went\n"
        "on from another's weights. Config and vocabulary are the first one's.",
        "  ldm train average --models stage-4 stage-5 stage-6 --out my-model",
    )
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL", help="folders that ldm train export wrote"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(run=run_average)


def _add_base(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--base",
        nargs="+",
        default=[default],
        metavar="YAML",
        help=f"settings; of several files the later one wins (default: {default})",
    )


def split_base(base: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of ``--base``, and the overrides with the ``key=value`` words that came right after them."""
    words = [word for word in base if "=" in word]
    return [word for word in base if "=" not in word], [*words, *overrides]


def run_data(args: argparse.Namespace) -> None:
    """Prepare the emoji."""
    from ldm.emoji.drawings import EmojiDrawings, prepare_drawings
    from ldm.emoji.sets import SETS, VENDORS
    from ldm.emoji.sprites import EmojiSprites, prepare

    if args.sets and args.vendor:
        raise UserError("--sets are to train with, a --vendor to test with: give one of them")
    if not 16 <= args.size <= 512:
        raise UserError(f"--size {args.size}: use 16 to 512 pixels")
    if unknown := set(args.sets or ()) - {*SETS, "all"}:
        raise UserError(f"unknown set {min(unknown)}: use all, {', '.join(SETS)}")
    if args.vendor and args.vendor not in VENDORS:
        raise UserError(f"unknown vendor {args.vendor}: use {', '.join(VENDORS)}")
    if args.size != 64 and not (args.sets or args.vendor):
        raise UserError("--size goes with --sets or --vendor: the three main styles alone have 64 pixels")
    with common.output(args.out, args.out, half=common.whole_or_nothing):
        if args.sets or args.vendor:
            chosen = [args.vendor] if args.vendor else list(SETS) if "all" in args.sets else args.sets
            prepare_drawings(args.out, args.packages, chosen, args.size)
            drawn = EmojiDrawings.load(args.out)
            common.heading(f"{len(drawn)} drawings of {len(drawn.concepts)} things in {args.out}")
            return
        prepare(args.out, args.packages)
    common.heading(f"{len(EmojiSprites.load(args.out))} concepts in three styles in {args.out}")


def run_stage(args: argparse.Namespace) -> None:
    """Run one training stage."""
    from ldm.config import load_yaml, resolve
    from ldm.io.claims import sweep
    from ldm.pretraining import stages as pretrain

    base, overrides = split_base(args.base, args.overrides)
    values = load_yaml(base, overrides)
    model = Path(base[0]).resolve().parent.name
    out = args.out or Path(STAGES[args.stage][1].format(model=model, stage=args.stage))

    def how_to_resume() -> str:
        words = ["--base", *base, "--out", out, "--resume", *overrides]
        return f"continue with: {common.command(['ldm', 'train', args.stage, *words])}"

    common.resume_by(how_to_resume)
    if args.stage == "latents":
        sweep(out.parent)
        bank = pretrain.encode_latents(resolve(pretrain.LatentsStage, values), out)
        common.heading(f"{len(bank)} latents in {out}; their scale factor is {bank.scale_factor:.5f}")
        return
    with common.output(out, out, half=common.no_checkpoint):
        written = _trained(args.stage, values, out, args.resume)
    common.heading(f"trained: {written}")


def _trained(stage: str, values: dict[str, Any], out: Path, resume: bool) -> Path:
    from ldm.config import resolve
    from ldm.pretraining import stages as pretrain

    if stage == "autoencoder":
        return pretrain.train_autoencoder(resolve(pretrain.AutoencoderStage, values), out, resume)
    if stage == "diffusion":
        return pretrain.train_diffusion(resolve(pretrain.DiffusionStage, values), out, resume)
    from ldm.emoji.judge_training import ClipStage, train_clip

    return train_clip(resolve(ClipStage, values), out, resume)


def run_export(args: argparse.Namespace) -> None:
    """Write a model folder."""
    from ldm.config import load_yaml, resolve
    from ldm.pretraining import stages as pretrain

    base, overrides = split_base(args.base, args.overrides)
    if not args.source.is_dir():
        raise UserError(f"there is no folder {args.source}; give the run of ldm train diffusion")
    settings = load_yaml(base or [args.source / "config.yaml"], overrides)
    config = resolve(pretrain.DiffusionStage, settings)
    with common.output(args.out, args.out, half=common.whole_or_nothing):
        pretrain.export(config, args.source, args.out, args.checkpoint)
    _say_where(args.out)


def run_average(args: argparse.Namespace) -> None:
    """Write the mean of several models as a model folder."""
    import torch

    import ldm
    from ldm.backbone.export import average_models, export_model

    if len(args.models) < 2:
        raise UserError("--models takes two models or more")
    mean = average_models([ldm.load(name) for name in args.models])
    with common.output(args.out, args.out, half=common.whole_or_nothing):
        export_model(mean, args.out, dtype=torch.float16)
    _say_where(args.out)


def _say_where(model: Path) -> None:
    common.heading(f"model in {model}")
    common.say("draw with it:", "  " + common.command(
        ["ldm", "sample", "--model", model, "--prompt", "a red apple on a blue background"]
    ))  # fmt: skip
