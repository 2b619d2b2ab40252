"""Packs: each concept learns what it learns alone, and what happens to one is nothing to the others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.io.embeddings import load_embedding
from ldm.io.runs import create_run
from ldm.model import LatentDiffusion
from ldm.training.config import InversionConfig
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig
from ldm.training.pack import Job, learn_many
from ldm.training.run import learn, read_pictures

#: of how far AdamW can move a number: lr x steps
TOLERANCE = 1e-3
BASE = InversionConfig(
    images=Path(),
    placeholder="",
    init="cat",
    templates="plain",
    prompts=("a photo of {}",),
    samples_per_prompt=0,
    batch_size=2,
    monitor_every=4,
    allow_untrained=True,
    optim=OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=2),
    trainer=TrainerConfig(max_steps=6, accelerator="cpu", checkpoint_every=4, image_every=0),
    logging=LoggingConfig(loggers=()),
)


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder of three pictures for a concept."""

    def make(name: str) -> Path:
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        for i in range(3):
            pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        return folder

    return make


def alone(model: LatentDiffusion, config: InversionConfig, out: Path | None = None) -> torch.Tensor:
    """What a run of its own learns."""
    concept, captions = read_pictures(config, model.image_size)
    run = None if out is None else create_run(out)
    twin = model.with_own_words()
    return learn(twin, concept, config, captions=captions, run=run, progress=False).vectors


def steps(n: int) -> TrainerConfig:
    return replace(BASE.trainer, max_steps=n)


@pytest.fixture
def jobs(pictures: Callable[[str], Path]) -> list[Job]:
    """Three that differ in all that a concept may have of its own."""
    many = replace(BASE, placeholder="<a>", images=pictures("a"), num_vectors=2, trainer=steps(9))
    few = replace(
        BASE, placeholder="<b>", images=pictures("b"), init="a red dog", trainer=steps(4),
        batch_size=3, seed=5, optim=OptimConfig(lr=3e-3, schedule="constant", clip_norm=0.01),
        regularization=0.1, flip_p=0.0,
    )  # fmt: skip
    # its word is in the others' templates
    plain = replace(
        BASE, placeholder="photo", images=pictures("c"), init=None, num_vectors=3, progressive=(2, 5),
        trainer=replace(steps(7), accumulate=2),
    )  # fmt: skip
    return [Job("many", many), Job("few", few), Job("plain", plain)]


def word_of(job: Job, out: Path) -> torch.Tensor:
    return load_embedding(out / job.name / "embeddings.safetensors").vectors


def assert_learned_alike(model: LatentDiffusion, job: Job, vectors: torch.Tensor) -> None:
    """As far as float32 goes: sums over a batch are taken in another order."""
    expected = alone(model, job.config)
    bound = TOLERANCE * job.config.optim.lr * job.config.trainer.max_steps
    assert vectors.shape == expected.shape
    assert float((vectors - expected).abs().max()) < bound, job.name


@pytest.mark.parametrize("pack", [1, 2, 3])
def test_a_pack_learns_what_separate_runs_learn(
    tiny_model: LatentDiffusion, jobs: list[Job], tmp_path: Path, pack: int
) -> None:
    results = learn_many(tiny_model, jobs, tmp_path / "runs", pack=pack, progress=False)
    assert [(r.name, r.status, r.steps) for r in results] == [
        ("many", "learned", 9), ("few", "learned", 4), ("plain", "learned", 7),
    ]  # fmt: skip
    for job in jobs:
        assert_learned_alike(tiny_model, job, word_of(job, tmp_path / "runs"))
    assert not tiny_model.manager.placeholders
