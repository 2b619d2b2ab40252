"""``ldm evaluate``: measure a learned word, or what the shipped model promises."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common
from ldm.errors import UserError
from ldm.paths import found
from ldm.text.english import counted

if TYPE_CHECKING:
    from ldm.backbone.model import LatentDiffusion
    from ldm.sampling.sample import Sampling

EXAMPLE = """\
  ldm evaluate --embedding runs/my-run/embeddings.safetensors --images my-pictures/
  ldm evaluate base          # does the model draw what a prompt says? (200 prompts)
  ldm evaluate inversion     # does it learn 20 held-out concepts from 5 pictures each?
  ldm evaluate inversion --set per_layer=true --out runs/evaluation/layers  # vectors per layer
  ldm evaluate curve runs/my-run    # which of the saved steps is the best one?
"""
WHAT = ("embedding", "base", "inversion", "curve")
USUAL_SCORER = "emoji-clip"
#: pictures of each prompt, of the whole, of each concept
USUAL_N = {"embedding": 16, "base": 200, "inversion": 16, "curve": 4}


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "evaluate",
        "measure a learned word or a model",
        "Measure a learned word (reconstruction, editability, obeyed backgrounds), every embedding that\n"
        "a run saved on its way (curve), or the two promises of the shipped model. Backgrounds are\n"
        "measured on border pixels; everything else by scorers, whose figures compare with nothing but\n"
        "their own: the small CLIP that comes with the project, or --scorer clip:ViT-B-32/openai,\n"
        "clip:MODEL/FILE, dino:vit_small_patch16_224.dino, dino:NAME/FILE.",
        EXAMPLE,
    )
    parser.add_argument("what", nargs="?", choices=WHAT, default="embedding")
    parser.add_argument("folder", nargs="?", type=Path, metavar="RUN", help="of curve: the run's folder")
    common.add_model(parser)
    add = parser.add_argument
    add("--embedding", type=Path, metavar="FILE", help="the learned word")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="its pictures; what it was not learned from is compared with",
    )
    add(
        "--scorer",
        action="append",
        metavar="NAME|DIR",
        help="whose features are compared; a word may be given several (default: emoji-clip)",
    )
    add("--allow-download", action="store_true", help="fetch a scorer's weights if they are not here")
    add("--n", type=int, help="pictures: of each prompt 16 (curve: 4), of a base model 200, of a concept 16")
    add("--seed", type=int, default=0, help="(default: 0)")
    common.add_sampling(parser)
    add("--out", type=Path, metavar="DIR", help="folder of table, pictures and report.html")
    group = parser.add_argument_group("of base and inversion")
    group.add_argument("--among", type=int, default=100, help="captions compared (default: 100)")
    group.add_argument("--concepts", type=int, default=20, help="concepts learned (default: 20)")
    group.add_argument("--pictures", type=int, default=5, help="pictures of each (default: 5)")
    common.add_settings(
        group, "how words are learned, as in ldm invert --set (default: the model's own settings)"
    )
    group.add_argument("--data", type=Path, default=Path("data/emoji"), help="(default: data/emoji)")
    group.add_argument(
        "--holdout",
        type=Path,
        default=Path("configs/emoji/holdout.txt"),
        help="hex codes that the model never saw (default: configs/emoji/holdout.txt)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, write, and print the figures."""
    from ldm.backbone.loading import load

    if args.what == "embedding":
        for option in ("embedding", "images"):
            if getattr(args, option) is None:
                raise UserError(f"--{option} is missing; see the example of ldm evaluate --help")
    if args.what != "embedding" and args.scorer and len(args.scorer) > 1:
        raise UserError(f"ldm evaluate {args.what} takes one --scorer")
    n = USUAL_N[args.what] if args.n is None else args.n
    for option, value in (
        ("n", n), ("among", args.among), ("concepts", args.concepts), ("pictures", args.pictures)
    ):  # fmt: skip
        if value < 1:
            raise UserError(f"--{option} is {value}; give at least 1")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; give at least 0")
    common.resume_by(lambda: "run the same command again; finished concepts are kept")
    if (args.folder is None) == (args.what == "curve"):
        raise UserError("a RUN belongs to ldm evaluate curve, and to nothing else: ldm evaluate curve RUN")
    if args.what == "curve":
        _curve(args, n)
        return
    model = load(args.model, args.checkpoint, common.torch_device(args.device))
    {"embedding": _embedding, "base": _base, "inversion": _inversion}[args.what](args, model, n)


def _curve(args: argparse.Namespace, n: int) -> None:
    from ldm.evaluation.curve import Prompts, rows
    from ldm.experiments.curve import score_run

    common.resume_by(lambda: "run the same command again; what has been scored is kept")
    how = {"steps": args.steps, "sampler": args.sampler, "scale": args.scale, "precision": args.precision}
    with common.output(args.folder, args.folder):
        (scorer,) = _scorers(args)
        curve = score_run(
            args.folder,
            scorer,
            prompts=Prompts(n=n, seed=args.seed),
            sampling=how,
            images=args.images,
            device=common.torch_device(args.device),
        )
    _print_rows(f"{args.folder.name} by {scorer.name}", rows(curve.moments))
    common.say(f"  best    {curve.kept} (step {curve.best.step})", f"  report  {curve.report}")


def _print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for name in rows[0]:
        table.add_column(Text(name))
    for row in rows:
        shown = (f"{v:.3f}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values())
        table.add_row(*map(Text, shown))
    Console().print(table)


def _scorers(args: argparse.Namespace) -> list[Any]:
    from ldm.evaluation.scorers import load_scorer

    device = common.torch_device(args.device)
    return [
        load_scorer(name, device, allow_download=args.allow_download)
        for name in args.scorer or [USUAL_SCORER]
    ]


def _sampling(args: argparse.Namespace, model: LatentDiffusion) -> Sampling:
    from ldm.sampling.sample import Sampling

    return Sampling.of(
        model, steps=args.steps, sampler=args.sampler, scale=args.scale, precision=args.precision
    )


def _judge_and_sampling(args: argparse.Namespace, model: LatentDiffusion) -> tuple[Any, Sampling]:
    (judge,) = _scorers(args)
    if not judge.reads_text:
        raise UserError(f"{judge.name} reads no text, which ldm evaluate {args.what} needs")
    return judge, _sampling(args, model)


def _holdout(path: Path) -> frozenset[str]:
    from ldm.emoji.sprites import load_holdout

    if not found(path).is_file():
        raise UserError(f"there is no file {path}; give the held-out hex codes by --holdout")
    return load_holdout(path)


def _embedding(args: argparse.Namespace, model: LatentDiffusion, n: int) -> None:
    from ldm.api import evaluate
    from ldm.io.embeddings import load_embedding
    from ldm.io.tables import write_csv
    from ldm.sampling.prompts import check_fits

    word = load_embedding(args.embedding)
    check_fits(model, word, force=False)
    sampling = _sampling(args, model)
    settings = {"scorers": _scorers(args), "n": n, "seed": args.seed, "sampling": sampling}
    if args.out is None:
        _print(word.placeholder, _shown(evaluate(model, word, args.images, **settings)))
        return
    with common.output(args.out, args.out):
        figures = evaluate(model, word, args.images, out=args.out, **settings)
        write_csv(figures["scores"], args.out / "table.csv")
    _print(word.placeholder, _shown(figures))
    _say_where(args.out, "samples.png")


def _base(args: argparse.Namespace, model: LatentDiffusion, n: int) -> None:
    from ldm.emoji.prompts_obeyed import evaluate_base
    from ldm.io.tables import write_csv

    out = args.out or Path("runs/evaluation/base")
    judge, sampling = _judge_and_sampling(args, model)
    holdout = _holdout(args.holdout)
    with common.output(out, out):
        result = evaluate_base(
            model,
            judge,
            holdout=holdout,
            n=n,
            among=args.among,
            seed=args.seed,
            sampling=sampling,
            out=out,
        )
        write_csv(result.rows, out / "table.csv")
    _print(f"{n} prompts", result.summary())
    _say_where(out, "samples.png")


def _inversion(args: argparse.Namespace, model: LatentDiffusion, n: int) -> None:
    from ldm.config import merge
    from ldm.emoji.heldout import evaluate_inversion
    from ldm.emoji.sprites import EmojiSprites
    from ldm.inversion.config import settle
    from ldm.inversion.presets import layered
    from ldm.shorthand import spelled

    given = spelled(common.typed(args.set))
    for key in ("placeholder", "images", "model", "checkpoint"):
        if key in given:
            raise UserError(f"--set {key}: the benchmark chooses it itself; leave it out")
    settle(model.inversion_defaults, given, {"placeholder": "<a>", "images": ""})  # wrong ones are said now
    out = args.out or Path("runs/evaluation/inversion")
    judge, sampling = _judge_and_sampling(args, model)
    sprites, holdout = EmojiSprites.load(args.data), _holdout(args.holdout)
    settings = merge({}, *layered([spelled(model.inversion_defaults), given])) if given else None
    with common.output(out, out):
        result = evaluate_inversion(
            model,
            judge,
            sprites,
            holdout,
            out,
            concepts=args.concepts,
            pictures=args.pictures,
            samples=n,
            seed=args.seed,
            sampling=sampling,
            invert_settings=settings,
        )
    _print(counted(args.concepts, "held-out concept"), result.summary())
    _say_where(out, "contact_sheet.png")


def _shown(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a word as lines: each score with its ceiling, backgrounds, and how it was measured."""
    lines: dict[str, Any] = {}
    for row in figures["scores"]:
        ceiling = "" if row["ceiling"] is None else f" (ceiling {row['ceiling']:.3f}, {row['references']})"
        lines[f"{row['scorer']}: {row['metric']}"] = f"{row['figure']:.3f}{ceiling}"
    return {**lines, "backgrounds": figures["backgrounds"], "measured": figures["measured"]}


def _say_where(out: Path, pictures: str) -> None:
    common.say(
        f"  table     {out / 'table.csv'}",
        f"  pictures  {out / pictures}",
        f"  report    {out / 'report.html'}",
    )


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        flat |= _flat(value, f"{name}: ") if isinstance(value, Mapping) else {name: value}
    return flat


def _print(title: str, figures: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False, title_justify="left")
    for key, value in _flat(figures).items():
        shown = f"{value:.3f}" if isinstance(value, float) else "none" if value is None else str(value)
        table.add_row(Text(key.replace("_", " ")), Text(shown))
    Console().print(table)
