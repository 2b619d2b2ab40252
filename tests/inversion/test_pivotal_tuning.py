"""Pivotal tuning (``model_lr``): UNet and text encoder learn with the word, at a rate of their own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.backbone.loading import load
from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.inversion.concept import Concept
from ldm.inversion.config import InversionConfig
from ldm.inversion.module import TextualInversion
from ldm.inversion.run import learn
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.io.checkpoints import fingerprint, save_checkpoint
from ldm.io.runs import create_run
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig

pytestmark = pytest.mark.slow

BASE = InversionConfig(
    images=Path(),
    placeholder="<toy>",
    init="cat",
    captions=CaptionsConfig(templates="plain"),
    show=ShowConfig(prompts=("a photo of {}",), samples_per_prompt=1, steps=1),
    stop=StopConfig(allow_untrained=True),
    scale_lr=False,
    model_lr=1e-4,
    optim=OptimConfig(lr=1e-2, schedule="constant"),
    trainer=TrainerConfig(max_steps=6, accelerator="cpu", checkpoint_every=2, image_every=0),
    logging=LoggingConfig(loggers=("csv",)),
)


@pytest.fixture
def concept() -> Concept:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (Path("a.png"), Path("b.png"), Path("c.png")), ("1", "2", "3"))


@pytest.fixture
def base(tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path) -> Callable[[], Any]:
    """Loads the same base model anew each time."""
    weights = save_checkpoint(tiny_model.parts, tmp_path / "base.safetensors", dtype=None)
    return lambda: load(tiny_config, weights)


def weights(part: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in part.named_parameters()}


def moved(part: nn.Module, before: dict[str, Tensor]) -> float:
    return max(float((p - before[name]).abs().max()) for name, p in part.named_parameters())


def test_the_model_trains_at_its_own_rate_and_is_left_as_a_model_folder(
    base: Callable[[], LatentDiffusion], concept: Concept, tmp_path: Path
) -> None:
    model = base()
    before = {name: weights(part) for name, part in model.parts.items()}
    run = create_run(tmp_path / "run")
    embedding = learn(model, concept, BASE, run=run, progress=False)
    # Adam moves a weight by about its rate a step: a hundredth of what the word moves by
    for name in ("model.diffusion_model.", "cond_stage_model."):
        assert 1e-4 < moved(model.parts[name], before[name]) < 6.5e-4
    assert moved(model.autoencoder, before["first_stage_model."]) == 0
    assert (embedding.vectors - model.manager.init_vectors("<toy>")).abs().max() > 1e-2
    # the word belongs to the tuned model, which is frozen again, written in the public layout, exact
    tuned = load(run.path / "model")
    assert tuned.fingerprint() == embedding.metadata["base_model"] != base().fingerprint()
    assert fingerprint(tuned.parts, exact=True) == fingerprint(model.parts, exact=True)
    assert not any(p.requires_grad for part in model.parts.values() for p in part.parameters())
    assert run.read_manifest()["base_model"] == base().fingerprint()


def test_an_interrupted_run_resumes_bit_for_bit(
    base: Callable[[], LatentDiffusion], concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = base()
    learn(whole, concept, BASE, run=create_run(tmp_path / "whole"), progress=False)

    class Stop(Exception):
        pass

    def interrupt(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 3:
            raise Stop
        return original(self, batch, batch_idx)

    original = TextualInversion.training_step
    run = create_run(tmp_path / "cut")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(TextualInversion, "training_step", interrupt)
        learn(base(), concept, BASE, run=run, progress=False)
    resumed = base()
    learn(resumed, concept, BASE, run=create_run(run.path, resume=True), resume=True, progress=False)
    assert fingerprint(resumed.parts, exact=True) == fingerprint(whole.parts, exact=True)
    assert torch.equal(resumed.manager.vectors("<toy>"), whole.manager.vectors("<toy>"))


def test_frozen_stays_frozen_without_it(base: Callable[[], LatentDiffusion], concept: Concept) -> None:
    model = base()
    before = fingerprint(model.parts, exact=True)
    learn(model, concept, replace(BASE, model_lr=0.0), progress=False)
    assert fingerprint(model.parts, exact=True) == before
