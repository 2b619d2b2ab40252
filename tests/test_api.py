"""The public API: loading by name, folder and mapping; inverting and sampling as the README shows."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import ldm
from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import dump_yaml, to_plain
from ldm.inversion.concept import concept_of
from ldm.inversion.config import settle
from ldm.io.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow

SETTINGS = {
    "templates": "plain",
    "stop": {"allow_untrained": True},
    "trainer": {"accelerator": "cpu"},
    "optim": {"lr": 1e-3},
    "scale_lr": False,
}


@pytest.fixture
def folder(tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path) -> Path:
    params = dict(tiny_config.text["params"])
    vocabulary = Path(params["vocab_file"])
    (tmp_path / "vocab.txt").write_text(vocabulary.read_text())
    text = {**tiny_config.text, "params": {**params, "vocab_file": "vocab.txt"}}
    config = replace(tiny_config, text=text, checkpoint="model.safetensors")
    save_checkpoint(tiny_model.parts, tmp_path / "model.safetensors")
    sections = {"model": to_plain(config), "inversion": SETTINGS}
    (tmp_path / "config.yaml").write_text(dump_yaml(sections))
    return tmp_path


def test_a_model_folder_loads_to_the_model_that_was_saved(folder: Path, tiny_model: LatentDiffusion) -> None:
    model = ldm.load(folder)
    assert model.fingerprint() == tiny_model.fingerprint()
    assert not any(p.requires_grad for p in model.parameters())
    again = ldm.load(folder / "config.yaml", checkpoint=folder / "model.safetensors")
    assert again.fingerprint() == model.fingerprint()


def test_unknown_models_sections_and_foreign_weights_are_said_in_one_line(folder: Path) -> None:
    with pytest.raises(ldm.UserError, match="no model 'emojis'"):
        ldm.load("emojis")
    text = (folder / "config.yaml").read_text()
    (folder / "other.yaml").write_text(text.replace("model_channels: 32", "model_channels: 64"))
    with pytest.raises(ldm.UserError, match="another model"):
        ldm.load(folder / "other.yaml")
    (folder / "typo.yaml").write_text(text.replace("image_size", "imagesize"))
    with pytest.raises(ldm.UserError, match="did you mean 'image_size'"):
        ldm.load(folder / "typo.yaml")


def test_invert_then_sample_in_python(folder: Path) -> None:
    model = ldm.load(folder)
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "white")]
    word = ldm.invert(model, pictures, "<toy>", init="dog", steps=3, seed=1, progress=False)
    assert word.placeholder == "<toy>" and word.vectors.shape == (1, 32)
    again = ldm.invert(model, pictures, "<toy>", init="dog", steps=3, seed=1, progress=False)
    assert torch.equal(word.vectors, again.vectors)  # the word is replaced, not stacked
    images = ldm.sample(model, ["a photo of a <toy>"] * 2, steps=2, seed=0)
    assert images.shape == (2, 3, 16, 16) and images.abs().max() <= 1
    ldm.embeddings.save_embeddings(word, folder / "toy.safetensors")
    kept = ldm.embeddings.load_embedding(folder / "toy.safetensors")
    fresh = ldm.load(folder)
    fresh.add_placeholder(kept.placeholder, kept.vectors)
    assert torch.equal(ldm.sample(fresh, ["a photo of a <toy>"] * 2, steps=2, seed=0), images)


def test_pictures_come_as_folder_files_pil_or_tensor_and_anything_else_is_refused(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 16), "red")
    picture.save(tmp_path / "a.png")
    given = [tmp_path, [tmp_path / "a.png"], [picture], concept_of([picture], 16).images]
    for images in given:
        assert torch.equal(concept_of(images, 16).images, concept_of(tmp_path, 16).images)
    for wrong in ([], [picture, tmp_path / "a.png"], torch.zeros(0, 3, 16, 16), torch.zeros(2, 3, 8, 8)):
        with pytest.raises(ldm.UserError):
            concept_of(wrong, 16)


def test_an_unknown_setting_of_invert_names_the_nearest(folder: Path) -> None:
    with pytest.raises(ldm.UserError, match="did you mean 'num_vectors'"):
        ldm.invert(ldm.load(folder), torch.zeros(1, 3, 16, 16), "<toy>", num_vector=2)


def test_the_signatures_that_users_rely_on() -> None:
    loading = ["config_or_path", "checkpoint", "device"]
    loading += ["dtype", "use_ema", "parameterization", "image_size", "clip_skip", "strict"]
    assert list(inspect.signature(ldm.load).parameters) == loading
    assert list(inspect.signature(ldm.sample).parameters)[:11] == [
        "model", "prompts", "cond", "uncond", "steps", "sampler", "scale", "eta", "seed", "x_T", "decode",
    ]  # fmt: skip
    assert list(inspect.signature(ldm.invert).parameters)[:4] == ["model", "images", "placeholder", "init"]
    with pytest.raises(AttributeError):
        ldm.nothing  # noqa: B018


def test_the_models_own_guidance_holds_everywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ldm.sample``, ``ldm.evaluate``, the measurements and a run's last pictures; what is given wins."""
    from ldm.config import load_yaml
    from ldm.diffusion import samplers
    from ldm.evaluation.word import evaluate_embedding
    from ldm.inversion.report import at_the_end
    from ldm.sampling.together import draw

    sections = load_yaml([folder / "config.yaml"])
    own = {"scale": 3.0, "steps": 2, "sampler": "plms"}
    sections["inversion"]["show"] = own
    (folder / "config.yaml").write_text(dump_yaml(sections))
    model = ldm.load(folder)
    seen = []
    real = samplers.sample

    def recorded(*args, **given):
        seen.append({key: given[key] for key in ("scale", "steps", "sampler")})
        return real(*args, **given)

    monkeypatch.setattr(samplers, "sample", recorded)
    word = ldm.invert(model, torch.zeros(1, 3, 16, 16), "<toy>", "cat", steps=1, progress=False)
    ldm.sample(model, "a <toy>", seed=0)
    quick = {"n": 1, "prompts": ["a {} toy"], "colours": (), "progress": False}
    figures = ldm.evaluate(model, word, torch.zeros(1, 3, 16, 16), **quick)
    evaluate_embedding(model, word, torch.zeros(1, 3, 16, 16), sample=ldm.sample, **quick)
    one = {"images": "", "placeholder": "<toy>", "show": {"samples_per_prompt": 1}}
    config = settle(model.inversion_defaults, one)
    draw(at_the_end(model, config))
    assert len(seen) >= 4
    assert all(how == {"scale": 3.0, "steps": 2, "sampler": "plms"} for how in seen), seen
    assert figures["measured"]["scale"] == 3.0
    ldm.sample(model, "a <toy>", seed=0, scale=1, steps=3, sampler="ddim")
    assert seen[-1] == {"scale": 1.0, "steps": 3, "sampler": "ddim"}
    bare = ldm.load(folder)
    bare.inversion_defaults = {}
    ldm.sample(bare, "a toy", seed=0, steps=1)
    assert seen[-1]["scale"] == 5.0  # that of InversionConfig


def test_caption_files_of_a_folder_are_used_in_python_too(folder: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (16, 16), "red").save(pictures / "a.png")
    plain = ldm.invert(ldm.load(folder), pictures, "<toy>", "cat", steps=2, progress=False)
    (pictures / "a.txt").write_text("a red {} on a beach")
    told = ldm.invert(ldm.load(folder), pictures, "<toy>", "cat", steps=2, progress=False)
    left = ldm.invert(
        ldm.load(folder), pictures, "<toy>", "cat", steps=2, progress=False, captions={"files": False}
    )
    assert torch.equal(plain.vectors, left.vectors) and not torch.equal(plain.vectors, told.vectors)
    assert told.metadata["templates"] == "captions"


def test_pictures_in_memory_count_as_those_of_a_folder(folder: Path) -> None:
    """Growth by the official count needs their number, and so does a word for each."""
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    settings = {"num_vectors": 2, "progressive": [9], "compat": {"encoder_calls": True}}
    assert len(concept_of(pictures, 16)) == 3
    word = ldm.invert(ldm.load(folder), pictures, "<toy>", "cat", steps=2, progress=False, **settings)
    assert word.K == 2
