"""Clip skip: one setting of model, training and sampling, kept with the word and in the picture's recipe."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

import ldm
from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import Job
from ldm.inversion.many.pack import learn_many
from ldm.io.embeddings import Embedding, learned_clip_skip, load_embedding, save_embeddings
from ldm.io.recipes import load_recipe

pytestmark = pytest.mark.slow

CLIP = {"width": 32, "layers": 3, "heads": 2, "max_length": 40, "mlp_ratio": 2.0}


def write_letters(folder: Path) -> dict[str, object]:
    """A vocabulary that spells; returns the parameters that name it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return {"tokenizer": str(folder), "vocab_size": len(tokens)}


@pytest.fixture(scope="module")
def clip_config(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """The tiny model with a CLIP text encoder."""
    params = CLIP | write_letters(tmp_path_factory.mktemp("letters"))
    return replace(tiny_config, text={"target": "ldm.text.clip.ClipConditioner", "params": params})


@pytest.fixture(scope="module")
def clip_folder(clip_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    return tiny.write_model(folder, tiny.model(clip_config), clip_config)


@pytest.fixture
def model(clip_folder: Path) -> LatentDiffusion:
    return ldm.load(clip_folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tiny.write_pictures(tmp_path / "photos")


def test_it_is_a_setting_of_loading_and_of_one_call_of_sampling(clip_folder, model):
    options = {"prompts": ["a photo of a cat"], "steps": 2, "seed": 0}
    own = ldm.sample(model, **options)
    assert torch.equal(own, ldm.sample(model, **options, clip_skip=1))
    second = ldm.sample(model, **options, clip_skip=2)
    assert not torch.equal(own, second) and model.text.clip_skip == 1
    assert torch.equal(second, ldm.sample(ldm.load(clip_folder, clip_skip=2), **options))
    assert torch.equal(own, ldm.sample(model, **options))


@pytest.mark.parametrize("where", ["load", "sample", "invert"])
def test_a_model_without_clip_refuses_it(where, tiny_model, model_folder, photos):
    with pytest.raises(UserError, match="clip_skip is 2, but this model's text encoder is no CLIP"):
        if where == "load":
            ldm.load(model_folder, clip_skip=2)
        elif where == "sample":
            ldm.sample(tiny_model, "a cat", steps=1, clip_skip=2)
        else:
            ldm.invert(tiny_model, photos, "<x>", clip_skip=2, steps=1, stop={"allow_untrained": True})


def test_a_word_is_learned_alike_by_every_way_and_remembers_it(cli, clip_folder, photos, tmp_path):
    """API, command line, a pack, and a model whose config says so."""
    model = ldm.load(clip_folder)
    learned = {"api": ldm.invert(model, photos, "<x>", "cat", clip_skip=2, progress=False)}
    assert model.text.clip_skip == 2
    other = ldm.invert(ldm.load(clip_folder), photos, "<x>", "cat", progress=False)
    assert not torch.equal(other.vectors, learned["api"].vectors) and "clip_skip" not in other.metadata
    words = ("invert", "--model", clip_folder, "--images", photos, "--name", "<x>", "--init", "cat")
    result = cli(*words, "--clip-skip", 2, "--out", "run")
    assert result.code == 0, result.err
    assert "clip_skip: 2" in Path("run/config.yaml").read_text()
    learned["command"] = load_embedding("run/embeddings.safetensors")
    values = {**tiny.QUICK, "images": str(photos), "placeholder": "<x>", "init": "cat", "clip_skip": 2}
    config = ldm.config.resolve(InversionConfig, {**values, "model": str(clip_folder)})
    learn_many(ldm.load(clip_folder), [Job("x", config)], Path("packs"), progress=False)
    learned["pack"] = load_embedding("packs/x/embeddings.safetensors")
    sections = ldm.config.load_yaml([clip_folder / "config.yaml"])
    sections["model"]["text"]["params"]["clip_skip"] = 2
    own = clip_folder.with_name("own.yaml")
    own.write_text(ldm.config.dump_yaml(sections))
    by_config = ldm.load(own, clip_folder / "model.safetensors")
    assert by_config.text.clip_skip == 2 and by_config.text.other_clip_skip is None
    for word in learned.values():
        torch.testing.assert_close(word.vectors, learned["api"].vectors, rtol=1e-5, atol=1e-6)
        assert word.metadata["clip_skip"] == "2"
    word = ldm.invert(by_config, photos, "<x>", "cat", progress=False)
    torch.testing.assert_close(word.vectors, learned["api"].vectors, rtol=1e-5, atol=1e-6)
    assert "clip_skip" not in word.metadata  # it is the model's own


def test_concepts_of_one_pack_have_one(clip_folder, photos, model, tmp_path):
    values = {**tiny.QUICK, "images": str(photos), "init": "cat", "model": str(clip_folder)}
    jobs = [
        Job(name, ldm.config.resolve(InversionConfig, {**values, "placeholder": name, "clip_skip": skip}))
        for name, skip in (("a", 1), ("b", 2))
    ]
    with pytest.raises(UserError, match="a pack has one clip_skip"):
        learn_many(model, jobs, tmp_path / "packs", progress=False)


@pytest.fixture
def word(model: LatentDiffusion, tmp_path: Path) -> Path:
    """A word that was learned with another clip skip than the model's own."""
    notes = {"base_model": model.fingerprint(), "clip_skip": "2"}
    return save_embeddings(Embedding("<toy>", torch.ones(1, 32), notes), tmp_path / "toy.safetensors")


def test_pictures_of_a_word_are_drawn_as_it_was_learned_and_say_so(cli, clip_folder, word):
    shared = ("sample", "--model", clip_folder, "--prompt", "a <toy>", "--n", 1, "--steps", 2)
    drawn = {}
    for out, more in (("own", ()), ("two", ("--clip-skip", 2)), ("one", ("--clip-skip", 1))):
        result = cli(*shared, "--embedding", word, *more, "--out", out)
        assert result.code == 0, result.err
        drawn[out] = Path(out, "00_a-toy_0_00.png")
    pixels = {out: Image.open(path).tobytes() for out, path in drawn.items()}
    assert pixels["own"] == pixels["two"] != pixels["one"]
    skips = {out: load_recipe(path).clip_skip for out, path in drawn.items()}
    assert skips == {"own": 2, "two": 2, "one": None}
    for out, path in drawn.items():
        result = cli("sample", "--again", path, "--model", clip_folder, "--out", f"again-{out}")
        assert result.code == 0, result.err
        assert Image.open(Path(f"again-{out}", path.name)).tobytes() == pixels[out]
    assert "leave out --clip-skip" in cli("sample", "--again", drawn["own"], "--clip-skip", 1).err
    assert cli("inspect", drawn["own"], "--model", clip_folder).out.count("clip skip") == 1


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_a_clip_skip_that_is_none_is_one_line(cli, model_folder, clip_folder, photos, command):
    image = ("--image", photos / "0.png") if command == "edit" else ()
    cases = ((model_folder, 2, "is no CLIP"), (clip_folder, 4, "give 1 (the last block) to 3"))
    for folder, value, says in cases:
        words = (command, *image, "--model", folder, "--prompt", "a", "--clip-skip", value, "--out", "out")
        result = cli(*words)
        assert result.code == 2 and says in result.err and result.err.count("\n") == 1
        assert not Path("out").exists()


def test_invert_refuses_it_before_anything_is_written(cli, model_folder, photos):
    words = ("invert", "--model", model_folder, "--images", photos, "--name", "<x>", "--clip-skip", 2)
    result = cli(*words, "--out", "run")
    assert result.code == 2 and "is no CLIP" in result.err and not Path("run").exists()


def test_words_of_different_clip_skips_need_a_choice(cli, clip_folder, word, model):
    notes = {"base_model": model.fingerprint(), "clip_skip": "3"}
    other = save_embeddings(Embedding("<box>", torch.ones(1, 32), notes), word.with_name("box.safetensors"))
    shared = ("sample", "--model", clip_folder, "--prompt", "a <toy> in <box>", "--n", 1, "--steps", 1)
    result = cli(*shared, "--embedding", word, other, "--out", "out")
    assert result.code == 2 and "'<toy>' with 2, '<box>' with 3" in result.err
    assert cli(*shared, "--embedding", word, other, "--clip-skip", 2, "--out", "out").code == 0
    assert learned_clip_skip([Embedding("<x>", torch.ones(1, 8), {"clip_skip": "x" * 9})]) is None


def test_a_word_is_measured_as_it_was_learned(model, word, photos):
    seen = []

    def judged(*args, **kwargs):
        seen.append(model.text.clip_skip)
        raise KeyboardInterrupt

    from ldm.evaluation.word import evaluate_embedding

    with pytest.raises(KeyboardInterrupt):
        training = torch.zeros(1, 3, 16, 16)
        evaluate_embedding(model, load_embedding(word), training, sample=judged, scorers=[object()])
    assert seen == [2] and model.text.clip_skip == 1
