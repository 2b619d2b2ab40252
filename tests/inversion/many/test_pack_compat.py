"""In a pack, too: several words of one concept, and the official code's quirks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import Job, check_together, write_summary
from ldm.inversion.many.pack import learn_many
from ldm.inversion.run import learn
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.inversion.task import read_pictures
from ldm.io.embeddings import load_embeddings
from ldm.official.quirks import FIXED, CompatConfig
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig, randomise: Callable[..., nn.Module]) -> LatentDiffusion:
    params = {**tiny_config.unet["params"], "use_checkpoint": True}
    model = build(replace(tiny_config, unet={**tiny_config.unet, "params": params}))
    for part in model.parts.values():
        randomise(part)
    return model.freeze()


@pytest.fixture
def config(tmp_path: Path) -> InversionConfig:
    (tmp_path / "photos").mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (24, 20), colour).save(tmp_path / "photos" / f"{i}.png")
    return InversionConfig(
        images=tmp_path / "photos",
        placeholder="<a>",
        init="cat",
        captions=CaptionsConfig(templates="plain"),
        show=ShowConfig(samples_per_prompt=0),
        stop=StopConfig(monitor_every=4, allow_untrained=True),
        optim=OptimConfig(lr=1e-3, schedule="constant"),
        trainer=TrainerConfig(max_steps=3, accelerator="cpu", image_every=0),
        logging=LoggingConfig(loggers=()),
    )


def alone(model: LatentDiffusion, config: InversionConfig) -> dict[str, torch.Tensor]:
    twin = model.with_own_words()
    concept, captions = read_pictures(config, model.image_size)
    learn(twin, concept, config, captions=captions, progress=False)
    return {word: twin.manager.vectors(word).detach() for word in twin.manager.placeholders}


def test_the_words_of_one_concept_are_learned_as_in_a_run_of_its_own(
    model: LatentDiffusion, config: InversionConfig, tmp_path: Path
) -> None:
    two = replace(config, more_words={"<b>": "tree"}, subject="<a> on <b>")
    one = replace(config, placeholder="<c>", init="dog")
    out = tmp_path / "runs"
    results = learn_many(model, [Job("two", two), Job("one", one)], out, pack=2, progress=False)
    write_summary(results, out)
    found = {w.placeholder: w.vectors for w in load_embeddings(out / "embeddings.safetensors")}
    expected = {**alone(model, two), **alone(model, one)}
    assert list(found) == ["<a>", "<b>", "<c>"] == list(expected)
    for word, vectors in expected.items():
        assert float((found[word] - vectors).abs().max()) < 1e-6
    with pytest.raises(UserError, match="two concepts have the word '<b>'"):
        check_together([Job("two", two), Job("one", replace(one, placeholder="<b>"))])


@pytest.mark.parametrize("ignored", [False, True])
def test_ignore_checkpointing(
    model: LatentDiffusion, config: InversionConfig, tmp_path: Path, ignored: bool
) -> None:
    calls: list[bool] = []
    layers = model.unet.middle_block[0].out_layers
    handle = layers.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    job = Job("a", replace(config, compat=CompatConfig(ignore_checkpointing=ignored)))
    learn_many(model, [job], tmp_path / "runs", pack=1, progress=False)
    handle.remove()
    assert sum(calls) == (3 if ignored else 6)
    with pytest.raises(UserError, match="one compute.checkpointing"):
        other = replace(config, placeholder="<b>", compat=CompatConfig(ignore_checkpointing=not ignored))
        check_together([job, Job("b", other)])


@pytest.mark.parametrize("quirk", [FIXED, CompatConfig(vectors_only=True)])
def test_vectors_only(
    model: LatentDiffusion, config: InversionConfig, tmp_path: Path, quirk: CompatConfig
) -> None:
    config = replace(config, compat=quirk)
    learn_many(model, [Job("a", config)], tmp_path, pack=1, progress=False)
    kept = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (set(kept) == {"base_model", "state_dict"}) == quirk.vectors_only
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"was finished"'))
    learn_many(model, [Job("a", config)], tmp_path, pack=1, resume=True, progress=False)
    again = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    # all of its steps are done once more from where it was, or none is left
    assert (
        torch.equal(*(s["state_dict"]["model.manager.words.s__3c_a_3e_.v_star"] for s in (kept, again)))
        != quirk.vectors_only
    )
