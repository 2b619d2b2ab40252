"""Several words of one picture (Break-A-Scene): unions of masks, the attention term by hand, whole runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning import BASE
from PIL import Image

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import dump_yaml, to_plain
from ldm.errors import UserError
from ldm.inversion.attention import attention_distance, nearest_side
from ldm.inversion.concept import Concept
from ldm.inversion.config import InversionConfig, check, settle
from ldm.inversion.masks import ConceptMasks
from ldm.inversion.run import run_inversion
from ldm.inversion.sections import CaptionsConfig, ComputeConfig, PicturesConfig
from ldm.inversion.step import Objective, Part, losses
from ldm.inversion.task import Inversion, prepare
from ldm.io.checkpoints import save_checkpoint
from ldm.io.embeddings import load_embeddings
from ldm.models.attention import AttentionMaps
from ldm.models.unet import UNetModel
from ldm.words.kinds import KINDS

WORDS = ("<cat>", "<mug>")
SCENE = replace(
    BASE,
    placeholder="<cat>",
    more_words={"<mug>": "tree"},
    captions=CaptionsConfig(templates=("a photo of {}",), subsets=True),
    attention_loss=0.01,
    batch_size=4,
)


def halves() -> torch.Tensor:
    """(2, 2, 16, 16): in the first picture a cat on the left and a mug on the right; in the second a mug."""
    masks = torch.zeros(2, 2, 16, 16)
    masks[0, 0, :, :6] = 1
    masks[:, 1, :, 10:] = 1
    return masks


# ------------------------------------------------------------------------------ masks of words
def test_a_sample_counts_where_the_words_are_that_its_prompt_names() -> None:
    masks = ConceptMasks((2, 2), of_words=halves(), words=WORDS, attention_side=4)
    assert [masks.shown(i) for i in range(2)] == [("<cat>", "<mug>"), ("<mug>",)]
    prompts = ["a <cat>", "a <mug> and a <cat>", "a photo", "a <cat>", "a <mug>"]
    indices, flip = torch.tensor([0, 0, 0, 1, 0]), torch.tensor([0, 0, 0, 0, 1]).bool()
    rows = masks.mask(indices, flip, prompts)[:, 0, 0]  # all rows of a mask are alike
    expected = [[0.75, 0.0], [0.75, 0.75], [1.0, 1.0], [1.0, 1.0], [0.75, 0.0]]  # the last one is mirrored
    torch.testing.assert_close(rows, torch.tensor(expected))
    areas = masks.areas(indices, flip, prompts)
    assert areas is not None and areas.shape == (5, 2, 4, 4)
    cat, mug, none = [1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0], [0.0] * 4
    expected = [[cat, none], [cat, mug], [none, none], [none, none], [none, cat]]
    torch.testing.assert_close(areas[:, :, 0], torch.tensor(expected))


def test_words_that_overlap_in_a_place_fill_it_once() -> None:
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0, :, 0] = masks[0, 1, :, 1] = 1
    both = ConceptMasks((1, 1), of_words=masks, words=WORDS)
    found = both.mask(torch.tensor([0, 0]), torch.zeros(2).bool(), ["<cat> and <mug>", "<mug>"])
    assert found.flatten().tolist() == [1.0, 0.5]
    assert both.areas(torch.tensor([0]), torch.zeros(1).bool(), ["<cat>"]) is None


# ------------------------------------------------------------------------------ the term by hand
def test_the_distance_is_that_of_the_mask_to_the_map_by_its_maximum() -> None:
    """Two samples, L = 4, maps of 2 x 2; word 100 has two vectors in the first prompt, 101 one in both."""
    ids = torch.tensor([[1, 100, 100, 101], [1, 101, 2, 2]])
    maps = torch.zeros(2, 4, 2, 2)
    maps[0, 1] = torch.tensor([[0.4, 0.0], [0.0, 0.0]])
    maps[0, 2] = torch.tensor([[0.4, 0.2], [0.0, 0.0]])  # the mean of the two is 0.4, 0.1
    maps[0, 3] = torch.tensor([[0.1, 0.1], [0.1, 0.2]])
    maps[1, 1] = torch.tensor([[0.3, 0.3], [0.3, 0.3]])
    areas = torch.zeros(2, 2, 2, 2)
    areas[0, 0] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    areas[0, 1] = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    found = attention_distance(maps, ids, areas, (100, 101))
    # 100: (1, 1/4, 0, 0) against (1, 0, 0, 0); 101: (1/2, 1/2, 1/2, 1) against (0, 0, 0, 1); the second
    # sample's word has no mask
    torch.testing.assert_close(found, torch.tensor([(1 / 16) / 4 + 3 * 0.25 / 4, 0.0]))


def test_a_word_that_no_prompt_names_costs_nothing_and_has_a_finite_gradient() -> None:
    maps = torch.rand(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    areas = torch.ones(1, 2, 2, 2)
    found = attention_distance(maps, torch.tensor([[1, 100, 2, 2]]), areas, (100, -1))
    (gradient,) = torch.autograd.grad(found.sum(), maps)
    assert gradient.isfinite().all() and gradient[0, 1].any()
    assert not gradient[0, [0, 2, 3]].any()


@pytest.mark.parametrize(
    ("levels", "factors", "latent", "side"),
    [
        (4, [1, 2, 4], 64, 16),  # Stable Diffusion at 512 pixels
        (4, [1, 2, 4], 32, 16),
        (4, [1, 2, 4], 96, 12),  # at 768: its middle is nearer than 24
        (1, [1], 8, 8),  # the shipped model
        (2, [2], 4, 2),
    ],
)
def test_the_layers_nearest_to_16_report(levels: int, factors: list[int], latent: int, side: int) -> None:
    unet = UNetModel(4, 4, 32, 1, factors, [1] * levels, num_heads=1, context_dim=8)
    assert nearest_side(unet, latent) == side


# ------------------------------------------------------------------------------ steps
def prepared(model: LatentDiffusion, config: InversionConfig = SCENE) -> Inversion:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    concept = Concept(images, (Path("a.png"), Path("b.png")), ("1", "2"), word_masks=halves())
    return prepare(model.with_own_words(), concept, config)


def scalars(objective: Objective, step: int = 0) -> dict[str, float]:
    with torch.no_grad():
        (loss,) = losses(objective.model, [Part(objective, objective.draw(step), step)])
    return {"total": float(loss.total)} | {key: float(value) for key, value in loss.scalars.items()}


def test_a_step_minimises_the_masked_error_and_the_weighted_attention_term(
    tiny_model: LatentDiffusion,
) -> None:
    own = prepared(tiny_model).module.objective
    assert own.attention is not None and own.attention.side == 4
    found = scalars(own)
    assert found["total"] == pytest.approx(found["train/loss"] + 0.01 * found["train/attention"])
    draw, model = own.draw(0), own.model
    with torch.no_grad():
        z_t, maps = model.q_sample(draw.z, draw.t, draw.noise), AttentionMaps(4)
        error = model.predict(z_t, draw.t, model.condition(draw.prompts, 0), maps) - draw.noise
    by_hand, attention = [], []
    for i, prompt in enumerate(draw.prompts):
        words = [prompt.index(word) for word in WORDS if word in prompt]
        assert words and draw.mask is not None and draw.areas is not None
        by_hand.append((draw.mask[i] * error[i].square()).sum() / (4 * draw.mask[i].sum()))
        row = model.text.tokenize([prompt])[0].tolist()
        for w, word in enumerate(WORDS):
            if word in prompt:
                seen = maps.mean[i, row.index(model.manager.placeholders[word])]
                attention.append((seen / seen.max() - draw.areas[i, w]).square().mean())
    assert found["train/loss"] == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert found["train/attention"] == pytest.approx(float(torch.stack(attention).sum()) / 4, rel=1e-4)


def test_the_gradient_of_the_attention_term_reaches_the_words_and_nothing_else(
    tiny_model: LatentDiffusion,
) -> None:
    module = prepared(tiny_model, replace(SCENE, attention_loss=1e6, batch_size=8)).module
    part = Part(module.objective, module.objective.draw(0), 0)
    losses(module.model, [part])[0].total.backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == {
        name for name, p in module.named_parameters() if p.requires_grad
    }
    for word in WORDS:
        gradient = module.model.manager.parameter(word).grad
        assert gradient is not None and gradient.abs().max() > 100  # the rest of the loss gives far less


def test_parts_of_a_batch_and_of_a_pack_cost_what_they_cost_alone(tiny_model: LatentDiffusion) -> None:
    one, other = (prepared(tiny_model, c).module.objective for c in (SCENE, replace(SCENE, seed=1)))
    plain = prepared(tiny_model, replace(SCENE, attention_loss=0.0)).module.objective
    parts = [Part(objective, objective.draw(2), 0) for objective in (one, plain, other)]
    with torch.no_grad():
        alone = [float(losses(tiny_model, [part])[0].total) for part in parts]
        together = [float(loss.total) for loss in losses(tiny_model, parts)]
        draw = parts[0].draw
        shares = [losses(tiny_model, [Part(one, draw.part(slice(i, i + 2)), 0)])[0] for i in (0, 2)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert sum(float(share.total) for share in shares) / 2 == pytest.approx(alone[0], rel=1e-5)
    assert "train/attention" not in scalars(plain)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_attention_term_moves_words_of_every_kind(tiny_model: LatentDiffusion, kind: str) -> None:
    config = replace(SCENE, word={"kind": kind}, num_vectors=2, attention_loss=1e6)
    module = prepared(tiny_model, config).module
    losses(module.model, [Part(module.objective, module.objective.draw(0), 0)])[0].total.backward()
    for word in module.model.manager.trained_words():
        assert max(float(p.grad.abs().max()) for p in word.parameters() if p.grad is not None) > 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"subject": "<cat> on a <mug>"}, "captions.subsets says what a caption names: leave out subject"),
        ({"captions": replace(SCENE.captions, files=True)}, "leave out captions.files"),
        ({"captions": replace(SCENE.captions, per_image_tokens=True)}, "leave out captions.per_image_tokens"),
        ({"captions": replace(SCENE.captions, coarse_class="cat")}, "leave out captions.coarse_class"),
        ({"pictures": PicturesConfig(mask="alpha")}, "captions.subsets needs the masks of words"),
        ({"compute": ComputeConfig(compiled=True)}, "set compute.compiled"),
        ({"attention_loss": -1.0}, "attention_loss is -1.0; give a number of at least 0"),
    ],
)
def test_settings_that_masks_leave_no_room_for_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        check(replace(SCENE, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["all", "one"])
def test_words_without_a_place_are_refused(tiny_model: LatentDiffusion, missing: str) -> None:
    masks = halves()
    masks[1] = 0
    concept = Concept(torch.zeros(2, 3, 16, 16), (Path("a.png"), Path("b.png")), ("1", "2"))
    says = "attention_loss needs to know where the words are"
    if missing == "one":
        concept = replace(concept, word_masks=masks)
        says = "b.png has no mask of a word, .* give b.WORD.mask.png"
    with pytest.raises(UserError, match=says):
        prepare(tiny_model.with_own_words(), concept, SCENE)


# ------------------------------------------------------------------------------ whole runs
@pytest.mark.slow
def test_the_preset_learns_two_words_of_one_picture_and_goes_on_bit_for_bit(
    tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    save_checkpoint(tiny_model.parts, tmp_path / "model" / "model.safetensors", dtype=None)
    described = {**to_plain(tiny_config), "checkpoint": "model.safetensors"}
    (tmp_path / "model" / "config.yaml").write_text(dump_yaml({"model": described}))
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (32, 16), "red").save(photos / "scene.jpg")
    for word, left in (("cat", 0), ("mug", 18)):
        mask = Image.new("L", (32, 16))
        mask.paste(255, (left, 0, left + 14, 16))
        mask.save(photos / f"scene.{word}.mask.png")
    plain = to_plain(BASE) | {"images": str(photos), "model": str(tmp_path / "model"), "placeholder": "<cat>"}
    kept = ("images", "model", "placeholder", "init", "show", "stop", "logging")
    own = {key: plain[key] for key in kept} | {"more_words": {"<mug>": None}}
    trainer = {"accelerator": "cpu", "checkpoint_every": 2, "image_every": 0, "log_every": 1}
    config = settle({}, {**own, "preset": "break-a-scene"}, {"trainer": {**trainer, "max_steps": 4}})
    assert config.attention_loss == 0.01 and config.optim.lr == 5e-4 and config.called == "<cat> and <mug>"
    assert settle({}, {**own, "preset": "break-a-scene"}).trainer.max_steps == 400
    assert config.drawn == ("a photo of <cat>", "a photo of <mug>", "a photo of <cat> and <mug>")

    run_inversion(config, tmp_path / "whole", progress=False)
    whole = load_embeddings(tmp_path / "whole" / "embeddings.safetensors")
    assert [word.placeholder for word in whole] == ["<cat>", "<mug>"]
    images = tmp_path / "whole" / "images"
    assert sorted(path.name for path in images.glob("counts_*")) == ["counts_00_0.png", "counts_00_1.png"]
    assert len(list(images.glob("final_*"))) == 3
    assert "<figcaption>&lt;mug&gt;</figcaption>" in (tmp_path / "whole" / "report.html").read_text()
    assert len(json.loads((tmp_path / "whole" / "manifest.json").read_text())["mask_hashes"]) == 2
    assert "train/attention" in (tmp_path / "whole" / "logs" / "csv" / "metrics.csv").read_text()

    run_inversion(
        replace(config, trainer=replace(config.trainer, max_steps=2)), tmp_path / "cut", progress=False
    )
    run_inversion(config, tmp_path / "cut", resume=True, progress=False)
    for one, other in zip(whole, load_embeddings(tmp_path / "cut" / "embeddings.safetensors"), strict=True):
        assert torch.equal(one.vectors, other.vectors)
    (photos / "scene.txt").write_text("a <cat>")
    with pytest.raises(UserError, match="captions.files=false"):
        run_inversion(config, tmp_path / "captioned", progress=False)
