"""The loss of a run counts where its masks say: alone, in packs, in shares of a batch, resumed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning import BASE, _module
from PIL import Image

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import dump_yaml, to_plain
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.config import InversionConfig
from ldm.inversion.masks import ConceptMasks
from ldm.inversion.run import run_inversion
from ldm.inversion.step import Objective, Part, losses
from ldm.inversion.task import prepare
from ldm.io.checkpoints import save_checkpoint
from ldm.io.embeddings import load_embedding


def concept_with(masks: torch.Tensor | None) -> Concept:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (Path("a.png"), Path("b.png"), Path("c.png")), ("1", "2", "3"), masks)


@pytest.fixture
def masks() -> torch.Tensor:
    """The first picture counts on its left, the others whole."""
    masks = torch.ones(3, 1, 16, 16)
    masks[0, :, :, 6:] = 0
    return masks


def objective(model: LatentDiffusion, masks: torch.Tensor | None) -> Objective:
    config = replace(BASE, batch_size=6)
    return prepare(model.with_own_words(), concept_with(masks), config).module.objective


def totals(model: LatentDiffusion, parts: Sequence[Part]) -> list[float]:
    with torch.no_grad():
        return [float(loss.total) for loss in losses(model, parts)]


def test_the_loss_of_a_step_is_the_mean_of_the_samples_weighted_means(
    tiny_model: LatentDiffusion, masks: torch.Tensor
) -> None:
    own = objective(tiny_model, masks)
    draw = own.draw(0)
    assert draw.mask is not None and {float(m.sum()) for m in draw.mask} == {6.0, 16.0}  # 1.5 of 4 columns
    cond = own.model.condition(draw.prompts, 0)
    with torch.no_grad():
        z_t = tiny_model.q_sample(draw.z, draw.t, draw.noise)
        squares = (own.model.predict(z_t, draw.t, cond) - draw.noise).square()
    by_hand = [(m * e).sum() / (4 * m.sum()) for m, e in zip(draw.mask, squares, strict=True)]
    found = totals(tiny_model, [Part(own, draw, 0)])
    assert found == pytest.approx([float(torch.stack(by_hand).mean())], rel=1e-5)
    shares = [totals(tiny_model, [Part(own, draw.part(slice(i, i + 2)), 0)])[0] for i in (0, 2, 4)]
    assert sum(shares) / 3 == pytest.approx(found[0], rel=1e-5)  # what processes make of it together


def test_concepts_with_and_without_masks_share_a_pack(
    tiny_model: LatentDiffusion, masks: torch.Tensor
) -> None:
    with_masks, without = (objective(tiny_model, m) for m in (masks, None))
    parts = [Part(one, one.draw(3), 0) for one in (with_masks, without)]
    alone = [totals(tiny_model, [part])[0] for part in parts]
    assert totals(tiny_model, parts) == pytest.approx(alone, rel=1e-5)
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)


def test_white_masks_learn_what_no_masks_learn_bit_for_bit(
    tiny_model: LatentDiffusion, masks: torch.Tensor
) -> None:
    white, without = (objective(tiny_model, m) for m in (torch.ones_like(masks), None))
    found = [totals(tiny_model, [Part(one, one.draw(1), 0)]) for one in (white, without)]
    assert found[0] == found[1]


def test_only_the_word_gets_a_gradient(tiny_model: LatentDiffusion, masks: torch.Tensor) -> None:
    module = _module(tiny_model, concept_with(masks))
    module.objective.batches.masks = ConceptMasks((4, 4), masks)
    (loss,) = losses(tiny_model, [Part(module.objective, module.objective.draw(0), 0)])
    loss.total.backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == {
        name for name, p in module.named_parameters() if p.requires_grad
    }
    assert tiny_model.manager.parameter("<toy>").grad.abs().max() > 0  # type: ignore[union-attr]


# ------------------------------------------------------------------------------ whole runs
@pytest.fixture
def config(tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path) -> InversionConfig:
    """Two pictures, one with a mask beside it, and a model on disk."""
    model = tmp_path / "model"
    save_checkpoint(tiny_model.parts, model / "model.safetensors", dtype=None)
    described = {**to_plain(tiny_config), "checkpoint": "model.safetensors"}
    (model / "config.yaml").write_text(dump_yaml({"model": described}))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, colour in (("a", "red"), ("b", "green")):
        Image.new("RGB", (24, 16), colour).save(photos / f"{name}.png")
    _mask(8).save(photos / "a.mask.png")
    trainer = replace(BASE.trainer, max_steps=4, checkpoint_every=2, image_every=0)
    return replace(BASE, images=photos, model=str(model), trainer=trainer)


def _mask(left: int) -> Image.Image:
    mask = Image.new("L", (24, 16))
    mask.paste(255, (left, 0, 16, 16))
    return mask


@pytest.mark.slow
def test_a_run_with_masks_shows_them_and_goes_on_bit_for_bit_with_the_same_ones_alone(
    config: InversionConfig, tmp_path: Path
) -> None:
    whole = run_inversion(config, tmp_path / "whole", progress=False)
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert list(manifest["mask_hashes"]) == ["a.mask.png"]
    assert list(manifest["image_hashes"]) == ["a.png", "b.png"]
    assert "What counts of them, by their masks" in (tmp_path / "whole" / "report.html").read_text()
    cut_out = Image.open(tmp_path / "whole" / "images" / "counts_00.png")
    assert cut_out.getpixel((8, 8)) == (255, 0, 0) and cut_out.getpixel((2, 8))[0] in (166, 204)

    short = replace(config, trainer=replace(config.trainer, max_steps=2))
    run_inversion(short, tmp_path / "cut", progress=False)
    ignoring = replace(config, pictures=replace(config.pictures, mask="ignore"))
    with pytest.raises(UserError, match="pictures.mask is 'file', not 'ignore'"):
        run_inversion(ignoring, tmp_path / "cut", resume=True, progress=False)
    _mask(4).save(config.images / "a.mask.png")
    with pytest.raises(UserError, match="made with other masks than these 1"):
        run_inversion(config, tmp_path / "cut", resume=True, progress=False)
    _mask(8).save(config.images / "a.mask.png")
    resumed = run_inversion(config, tmp_path / "cut", resume=True, progress=False)
    assert torch.equal(resumed.vectors, whole.vectors)
    other = run_inversion(ignoring, tmp_path / "ignoring", progress=False)
    assert not torch.equal(other.vectors, whole.vectors)
    assert not list((tmp_path / "ignoring" / "images").glob("counts_*"))
    assert torch.equal(load_embedding(tmp_path / "whole" / "embeddings.safetensors").vectors, whole.vectors)
