"""Training of the judge: what a batch holds, degradations, a run that can be resumed."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldm.config import load_yaml, resolve
from ldm.emoji.judge_training import ClipStage, ClipTraining, JudgeData, JudgePairs, degrade, train_clip
from ldm.emoji.sprites import Concept
from ldm.errors import UserError
from ldm.evaluation.clip_judge import ClipConfig, ClipJudge, build_clip, load_clip
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.metrics import background_colours, caption_rank
from ldm.seeding import generator
from ldm.text.tokenizer import Tokenizer
from ldm.training.fit import LoggingConfig, TrainerConfig, fit
from ldm.training.optim import OptimConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VOCABULARY = ROOT / "ldm/assets/emoji/vocab.txt"
LABELS = ["cat", "dog", "apple", "bus", "key", "hat", "pizza", "rocket"]


@pytest.fixture
def data(tmp_path: Path) -> JudgeData:
    """Eight prepared concepts, each a small square of one colour."""
    root = tmp_path / "emoji"
    root.mkdir()
    rng = np.random.default_rng(0)
    sprites = np.zeros((len(LABELS), 3, 64, 64, 4), np.uint8)
    sprites[:, :, 16:48, 16:48, :3] = rng.integers(0, 255, (len(LABELS), 3, 1, 1, 3))
    sprites[:, :, 16:48, 16:48, 3] = 255
    np.savez(root / "sprites.npz", sprites=sprites)
    rows = [Concept(f"{i:x}", name, (), "objects", "tool") for i, name in enumerate(LABELS)]
    (root / "concepts.json").write_text(json.dumps([asdict(row) for row in rows]))
    return JudgeData(root=str(root), twins=4)


@pytest.fixture
def stage(data: JudgeData) -> ClipStage:
    return ClipStage(
        clip=ClipConfig(
            embed_dim=16,
            vision={"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 64},
            text={"context_length": 32, "width": 16, "heads": 2, "layers": 1},
        ),
        vocabulary=VOCABULARY,
        data=data,
        batch_size=6,
        optim=OptimConfig(lr=1e-2, schedule="constant", clip_norm=1.0),
        trainer=TrainerConfig(max_steps=4, accelerator="cpu", checkpoint_every=2, log_every=1),
        logging=LoggingConfig(loggers=()),
    )


def pairs_of(data: JudgeData) -> JudgePairs:
    return JudgePairs(data, Tokenizer(VOCABULARY, 32), 64)


def test_concepts_of_a_batch_are_distinct_and_twins_differ_in_colour(data: JudgeData) -> None:
    pairs = pairs_of(replace(data, degrade=0.0, plain=1.0))
    seen = 0
    for step in range(12):
        images, captions = pairs.pictures(8, generator(0, step))
        names = [next(name for name in LABELS if name in caption) for caption in captions]
        assert sorted(names[:8]) == sorted(LABELS) and len(images) == len(captions)
        colours = background_colours(images)
        for j in range(8, len(captions)):
            i = names.index(names[j])
            assert captions[i].endswith(f"{colours[i]} background")
            assert captions[j].endswith(f"{colours[j]} background") and colours[i] != colours[j]
            assert colours[j] in COLOUR_NAMES
            seen += 1
    assert seen > 5


def test_a_batch_is_a_function_of_its_step(data: JudgeData) -> None:
    pairs = pairs_of(data)
    a, b, c = pairs.batch(3, 6, 0), pairs.batch(3, 6, 0), pairs.batch(4, 6, 0)
    assert torch.equal(a.images, b.images) and torch.equal(a.ids, b.ids)
    assert not torch.equal(a.images[:6], c.images[:6])


def test_degradation_is_none_at_strength_zero_and_mild_at_one() -> None:
    images = torch.rand(16, 3, 64, 64, generator=generator(0)) * 2 - 1
    torch.testing.assert_close(degrade(images, generator(1), 0.0), images)
    smooth = torch.linspace(-0.8, 0.8, 64).expand(16, 3, 64, 64)
    worse = degrade(smooth, generator(1), 1.0)
    assert worse.abs().max() <= 1
    change = (worse - smooth).abs().mean((1, 2, 3))
    assert 0.01 < change.mean() < 0.2 and change.std() > 0.005
    # the blur keeps what is flat, borders too
    flat = torch.full((4, 3, 64, 64), 0.5)
    spread = degrade(flat, generator(1), 0.5).std((2, 3)).max()
    assert spread < 0.06


def test_training_is_the_same_in_one_run_and_resumed(stage: ClipStage, tmp_path: Path) -> None:
    whole = load_clip(train_clip(stage, tmp_path / "whole")).clip.state_dict()
    half = replace(stage, trainer=replace(stage.trainer, max_steps=2))
    train_clip(half, tmp_path / "parts")
    with pytest.raises(UserError, match="--resume"):
        train_clip(stage, tmp_path / "parts")
    folder = train_clip(stage, tmp_path / "parts", resume=True)
    resumed = load_clip(folder).clip.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert (folder / "concepts.tsv").read_text().splitlines()[0] == "0\tobjects\ttool\tcat"


def test_both_towers_learn_a_batch_by_heart(stage: ClipStage, tmp_path: Path) -> None:
    tokenizer = Tokenizer(VOCABULARY, 32)
    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    clip = build_clip(replace(stage.clip, vision=vision), tokenizer)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    pairs = pairs_of(replace(stage.data, plain=1.0, twins=0)).batch(0, 8, 0)
    module = ClipTraining(clip, lambda step: pairs, OptimConfig(lr=3e-3, schedule="constant"), 60)
    trainer = replace(stage.trainer, max_steps=60)
    fit(module, tmp_path, trainer, stage.logging, seed=0, progress=False)
    judge = ClipJudge(clip, tokenizer, 64)
    texts = F.normalize(clip.encode_text(pairs.ids), dim=1)
    ranks = caption_rank(judge.image_features(pairs.images), texts, torch.arange(8))
    assert (ranks == 1).all()
    after = clip.state_dict()
    for name in ("visual.conv1.weight", "token_embedding.weight", "logit_scale"):
        assert not torch.equal(before[name], after[name]), name


def test_shipped_config_resolves_and_fits_the_limit() -> None:
    stage = resolve(ClipStage, load_yaml([ROOT / "configs/emoji/clip.yaml"]))
    clip = build_clip(stage.clip, Tokenizer(VOCABULARY, stage.clip.context_length))
    assert sum(p.numel() for p in clip.parameters()) <= 4_000_000
