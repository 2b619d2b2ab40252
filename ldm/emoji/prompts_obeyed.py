"""Does the shipped model draw what a prompt says? Prompts of its own captions, measured.

One learned word of any model is measured in :mod:`ldm.evaluation.word`, the benchmark of held-out concepts
is in :mod:`ldm.emoji.heldout`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.emoji.captions import STYLE_WORDS, fill
from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.clip_judge import Judge, Named
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.drawing import SampleFunction, draw
from ldm.evaluation.metrics import Share
from ldm.io.atomic import write_json
from ldm.io.images import save_grid
from ldm.io.runs import now, versions
from ldm.report.evaluation import EvaluationReport, Table, write_evaluation_report
from ldm.sampling.sample import Sampling, sample
from ldm.text.english import article

#: One picture's figures by their names.
Row = dict[str, str | int | bool | None]


@dataclass(frozen=True)
class BaseResult:
    """Of :func:`evaluate_base`.

    Attributes:
        background: pictures whose border has the colour of the prompt.
        caption: pictures whose own caption is first among ``among`` that differ in the name alone.
        median_rank: of the right caption among these.
        prompt: pictures whose own caption is first among ``among`` of the other pictures' prompts,
            which differ in style, name and background: the usual text retrieval.
        among: how many captions each picture's own one was ranked among.
        rows: one a picture: prompt, measured colour, rank among names and among prompts.
        images: (n, 3, H, W) in [-1, 1].
    """

    background: Share
    caption: Share
    median_rank: float
    prompt: Share
    among: int
    rows: list[Row]
    images: Tensor

    def summary(self) -> dict[str, str | float]:
        """Figures as text, with their intervals."""
        return {
            "background obeyed": str(self.background),
            f"right name first of {self.among}, all else equal": str(self.caption),
            "... median rank": self.median_rank,
            f"right caption first of {self.among} prompts": str(self.prompt),
        }


def base_prompts(concepts: Sequence[Named], n: int, seed: int) -> list[tuple[str, str, str]]:
    """``n`` of (template with ``{}`` for the name, name, colour), seeded; no concept twice before
    every concept came once; styles and colours in equal parts."""
    rng = random.Random(f"base prompts {seed}")
    names = [c.label for c in concepts]
    order: list[str] = []
    while len(order) < n:
        order += rng.sample(names, len(names))
    words = [word for row in STYLE_WORDS.values() for word in row]
    styles = [words[i % len(words)] for i in range(n)]
    colours = [COLOUR_NAMES[i % len(COLOUR_NAMES)] for i in range(n)]
    rng.shuffle(styles)
    rng.shuffle(colours)
    return [
        (f"{article(s)}{s} of a {{}} on {article(c)}{c} background", name, c)
        for s, name, c in zip(styles, order, colours, strict=False)
    ]


def evaluate_base(
    model: LatentDiffusion,
    clip: Judge,
    *,
    sample: SampleFunction = sample,
    concepts: Sequence[Named] | None = None,
    holdout: Collection[str] = (),
    n: int = 200,
    among: int = 100,
    seed: int = 0,
    sampling: Sampling | None = None,
    out: Path | None = None,
    progress: bool = True,
) -> BaseResult:
    """Does the model draw what a prompt says?

    ``n`` pictures of "a <style> of a <concept> on a <colour> background". The background is
    measured on border pixels. For the content, the judge ranks ``among`` captions for each picture,
    drawn with the seed: its prompt and the same prompt with the names of other concepts; and again
    its prompt and those of other pictures.

    Args:
        model: knows the captions of the shipped model.
        clip: the judge, which never took part in making the model.
        sample: draws from the model as ``ldm.sample`` does.
        concepts: what can be asked for (default: what the judge knows, which was trained on the
            groups of the model that it judges), less
        holdout: hex codes of concepts that the model never saw.
        n: pictures drawn.
        among: captions that a picture's own one is ranked among, itself included.
        seed: of the prompts, the pictures and the captions compared.
        sampling: how pictures are drawn; by default what suits the model.
        out: folder for ``result.json``, ``samples.png`` and ``report.html``.
        progress: show a bar.

    Raises:
        UserError: fewer concepts than ``among``.
    """
    sampling = sampling or Sampling.of(model)
    known = [c for c in (concepts or clip.concepts) if c.hex not in holdout]
    if len(known) < among:
        raise UserError(f"{len(known)} concepts are too few for {among} captions; ask for fewer")
    asked = base_prompts(known, n, seed)
    prompts = [fill(template, name) for template, name, _ in asked]
    images = draw(model, sample, prompts, sampling, seed, "drawing" if progress else "")
    colours = metrics.background_colours(images)
    obeyed = [a == c for a, (_, _, c) in zip(colours, asked, strict=True)]
    features = clip.image_features(images)
    ranks = torch.tensor([
        _rank(clip, feature, template, name, known, among, random.Random(f"captions {seed} {i}"))
        for i, (feature, (template, name, _)) in enumerate(zip(features, asked, strict=True))
    ])  # fmt: skip
    among_prompts = _prompt_ranks(features, clip.text_features(prompts), prompts, among, seed)
    rows: list[Row] = [
        {
            "prompt": prompt,
            "colour": colour,
            "measured": measured,
            "obeyed": hit,
            "rank": rank,
            "rank among prompts": other,
        }
        for prompt, (_, _, colour), measured, hit, rank, other in zip(
            prompts, asked, colours, obeyed, ranks.tolist(), among_prompts.tolist(), strict=True
        )
    ]
    result = BaseResult(
        Share.of(obeyed),
        metrics.recall_at_1(ranks),
        float(ranks.double().median()),
        metrics.recall_at_1(among_prompts),
        among,
        rows,
        images,
    )
    if out is not None:
        _write(result, out, {"n": n, "seed": seed, **asdict(sampling)}, model)
    return result


def _rank(
    clip: Judge,
    feature: Tensor,
    template: str,
    name: str,
    concepts: Sequence[Named],
    among: int,
    rng: random.Random,
) -> int:
    others = rng.sample(sorted({c.label for c in concepts} - {name}), among - 1)
    texts = clip.text_features([fill(template, other) for other in [name, *others]])
    return int(metrics.caption_rank(feature[None], texts, torch.tensor([0])))


def _prompt_ranks(features: Tensor, texts: Tensor, prompts: Sequence[str], among: int, seed: int) -> Tensor:
    """Rank (N,) of each picture's prompt among at most ``among`` prompts of the set, its own included.

    Several pictures of one prompt count as one caption.
    """
    first: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(prompt, i)
    ranks = []
    for i, (feature, own) in enumerate(zip(features, prompts, strict=True)):
        others = [j for j in first.values() if j != first[own]]
        chosen = random.Random(f"prompts {seed} {i}").sample(others, min(among - 1, len(others)))
        ranks.append(metrics.caption_rank(feature[None], texts[[i, *chosen]], torch.tensor([0])))
    return torch.cat(ranks)


def _write(result: BaseResult, out: Path, settings: Mapping[str, object], model: LatentDiffusion) -> None:
    summary = result.summary()
    manifest = {
        **settings,
        "base_model": model.fingerprint(),
        "versions": versions(),
        "finished": now(),
    }
    write_json(out / "result.json", {"summary": summary, **manifest, "pictures": result.rows})
    sheet = save_grid(result.images, out / "samples.png", columns=20)
    columns = ("prompt", "colour", "measured", "obeyed", "rank", "rank among prompts")
    table = Table("Pictures", columns, [[row[c] for c in columns] for row in result.rows])
    notes = ["Does the model draw what a prompt says? Backgrounds are measured on border pixels, "
             "content by a small CLIP that ranks captions: such as differ in the name only, and the "
             "prompts of other pictures."]  # fmt: skip
    report = EvaluationReport(
        "Base model: prompts obeyed", summary, notes, [table], {"Pictures": sheet}, manifest
    )
    write_evaluation_report(report, out / "report.html")
