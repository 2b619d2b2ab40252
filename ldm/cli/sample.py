"""``ldm sample``: draw pictures of prompts, with learned words or without."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.io.embeddings import Embedding
    from ldm.model import LatentDiffusion

EXAMPLE = """\
  ldm sample --embedding runs/my-run/embeddings.safetensors \\
             --prompt "a photo of {} on a red background" --prompt "two {} on the beach" --n 8
"""

def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "sample",
        "draw pictures of prompts",
        "Draw pictures of prompts: one PNG each, with prompt and seed in its text chunks, and\n"
        "grid.png with a row per prompt. Picture j of a prompt depends on (prompt, seed, j) alone.",
        EXAMPLE,
    )
    common.add_model(parser)
    add = parser.add_argument
    add(
        "--embedding",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="learned words, of this program or any other (.safetensors, .pt, .bin, .png)",
    )
    add(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="{} stands for the learned word; may be given several times",
    )
    add("--n", type=int, default=4, help="pictures of each prompt (default: 4)")
    add("--seed", type=int, default=0, help="(default: 0)")
    common.add_sampling(parser)
    add("--eta", type=float, default=0.0, help="noise of ddim, 0 to 1 (default: 0)")
    add("--negative-prompt", default="", metavar="TEXT", help="what to stay away from")
    add("--batch-size", type=int, default=64, help="pictures drawn at once (default: 64)")
    add("--out", type=Path, metavar="DIR", help="folder of the pictures (default: out/<date>)")
    add("--force", action="store_true", help="use an embedding that was learned on another model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw, write, and say where the pictures are."""
    from ldm.io.embeddings import load_embeddings
    from ldm.loading import load

    if args.n < 1:
        raise UserError(f"--n is {args.n}; ask for at least one picture")
    words = [word for path in args.embedding for word in load_embeddings(path)]
    model = load(args.model, args.checkpoint, common.torch_device(args.device))
    teach(model, words, force=args.force)
    prompts = with_words(model, args.prompt, [word.placeholder for word in words])
    common.own_sampling(args, model)
    out = args.out or Path("out") / common.stamp()
    with common.no_remains(out):
        _draw(args, model, prompts, out)
    common.heading(f"{len(prompts) * args.n} pictures in {out}")
    common.say(f"  all at once  {out / 'grid.png'}")


def teach(model: LatentDiffusion, words: Sequence[Embedding], *, force: bool = False) -> None:
    """Give a model learned words.

    Raises:
        UserError: a word that :func:`check_fits` refuses, or two words of one name.
    """
    for word in words:
        check_fits(model, word, force=force)
        if word.placeholder in model.manager.placeholders:
            raise UserError(f"two embeddings are called {word.placeholder!r}; give one of them")
        model.add_placeholder(word.placeholder, word.vectors)


def check_fits(model: LatentDiffusion, word: Embedding, *, force: bool) -> None:
    """Refuse a word of another width or (without ``force``, else warn) of another model.

    Raises:
        UserError: the word does not belong to this model.
    """
    from ldm.io.embeddings import check_base_model, check_width

    check_width(word, model.text.width)
    learned_on = word.metadata.get("base_model")
    if force:
        check_base_model(word, model.fingerprint())  # warns
    elif learned_on and learned_on != model.fingerprint():
        raise UserError(
            f"the embedding {word.placeholder!r} was learned on another model; give that one "
            "by --model, or use it all the same by ldm sample --force"
        )


def with_words(model: LatentDiffusion, prompts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Prompts with the learned word in place of ``{}``.

    Raises:
        UserError: a prompt without any of the learned words, or ``{}`` where it is not one word.
    """
    filled = []
    for prompt in prompts:
        if "{}" in prompt and len(names) != 1:
            what = f"one of {', '.join(names)}" if names else "a word, or give an --embedding"
            raise UserError(f"{{}} in the prompt {prompt!r} does not say which word: write {what}")
        text = prompt.replace("{}", names[0]) if names else prompt
        ids = set(model.text.tokenizer.words(text))
        if names and not ids & set(model.manager.placeholders.values()):
            raise UserError(
                f"the prompt {prompt!r} does not use the learned word; "
                f"write {{}} or {' or '.join(names)} in it"
            )
        filled.append(text)
    return filled


def _draw(args: argparse.Namespace, model: LatentDiffusion, prompts: list[str], out: Path) -> None:
    import torch

    from ldm.io.images import save_grid, save_png
    from ldm.io.runs import RunFolder
    from ldm.sampling import sample

    RunFolder(out).file("grid.png")  # a folder that cannot be made is found out before the work
    rows = []
    for number, prompt in enumerate(prompts):
        images = sample(
            model,
            [prompt] * args.n,
            steps=args.steps,
            sampler=args.sampler,
            scale=args.scale,
            eta=args.eta,
            seed=args.seed,
            batch_size=args.batch_size,
            negative_prompt=args.negative_prompt,
            progress=sys.stderr.isatty(),
        )
        rows.append(images)
        for index, image in enumerate(images):
            notes = {
                "prompt": prompt,
                "seed": str(args.seed),
                "index": str(index),
                "sampler": args.sampler,
                "steps": str(args.steps),
                "scale": str(args.scale),
                "base_model": model.fingerprint(),
            }
            name = f"{number:02d}_{common.slug(prompt)}_{args.seed}_{index:02d}.png"
            save_png(image, out / name, notes)
    save_grid(torch.cat(rows), out / "grid.png", columns=args.n if len(prompts) > 1 else 8)
