"""Scorers by name: the same features as open_clip's and timm's own calls, and nothing fetched unasked."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ldm.errors import UserError
from ldm.evaluation.scorers import Identity, load_scorer
from ldm.evaluation.scorers.base import NetworkScorer
from ldm.io.images import to_pil


def network_scorer(name: str) -> NetworkScorer:
    scorer = load_scorer(name)
    assert isinstance(scorer, NetworkScorer)
    return scorer


def test_clip_features_are_those_of_open_clip(tiny_clip, images):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms("tiny-ours", pretrained=str(tiny_clip))
    model.eval()
    texts = ["a photo of a cat", "a dog on the beach"]
    with torch.no_grad():
        pixels = torch.stack([preprocess(to_pil(image)) for image in images])
        pictures = F.normalize(model.encode_image(pixels), dim=-1)
        words = F.normalize(model.encode_text(open_clip.get_tokenizer("tiny-ours")(texts)), dim=-1)
    scorer = network_scorer(f"clip:tiny-ours/{tiny_clip}")
    scorer.batch_size = 3
    assert scorer.reads_text
    torch.testing.assert_close(scorer.image_features(images), pictures)
    torch.testing.assert_close(scorer.text_features(texts), words)
    assert not any(p.requires_grad for p in scorer.network.parameters())


def test_dino_features_are_those_of_timm(tiny_timm, images):
    import timm

    model = timm.create_model("test_vit", checkpoint_path=str(tiny_timm))
    model.reset_classifier(0)
    model.eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        own = F.normalize(model(torch.stack([transform(to_pil(image)) for image in images])), dim=-1)
    scorer = network_scorer(f"dino:test_vit/{tiny_timm}")
    torch.testing.assert_close(scorer.image_features(images), own)
    assert not scorer.reads_text
    with pytest.raises(UserError, match="reads no text"):
        scorer.text_features(["a cat"])


def test_a_file_without_the_classifier_is_the_same_scorer(tiny_timm, tmp_path, images):
    weights = {k: v for k, v in load_file(tiny_timm).items() if not k.startswith("head.")}
    save_file(weights, tmp_path / "features.safetensors")
    whole, bare = (
        network_scorer(f"dino:test_vit/{f}") for f in (tiny_timm, tmp_path / "features.safetensors")
    )
    assert whole.identity == bare.identity
    torch.testing.assert_close(whole.image_features(images), bare.image_features(images))


def test_an_identity_is_the_weights_whatever_file_they_are_in(tiny_clip, tmp_path):
    weights = load_file(tiny_clip)
    torch.save(weights, tmp_path / "same.bin")
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, tmp_path / "other.safetensors")
    one, same, other = (
        load_scorer(f"clip:tiny-ours/{path}").identity
        for path in (tiny_clip, tmp_path / "same.bin", tmp_path / "other.safetensors")
    )
    assert one == same
    assert one.weights != other.weights and len(one.weights) == 64
    assert one.architecture == other.architecture == "open_clip tiny-ours"
    assert "size 32" in one.preprocessing and "bicubic" in one.preprocessing
    assert Identity.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_weights_trained_with_quick_gelu_get_it(own_cache, tiny_clip, monkeypatch):
    """open_clip only warns where a tag and a model's name disagree, and computes another activation."""
    import open_clip

    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-ours", {"ours": {"quick_gelu": True}})
    file = own_cache / "clip" / "tiny-ours" / "ours.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(tiny_clip.read_bytes())
    model = open_clip.create_model("tiny-ours", pretrained=str(tiny_clip), force_quick_gelu=True).eval()
    text = ["a cat"]
    with torch.no_grad():
        own = F.normalize(model.encode_text(open_clip.get_tokenizer("tiny-ours")(text)), dim=-1)
    scorer, plain = load_scorer("clip:tiny-ours/ours"), load_scorer(f"clip:tiny-ours/{tiny_clip}")
    torch.testing.assert_close(scorer.text_features(text), own)
    assert scorer.identity.architecture == "open_clip tiny-ours, quick GELU"
    assert scorer.identity.weights == plain.identity.weights and scorer.identity != plain.identity


def test_the_shipped_scorer_and_a_folder_have_identities():
    scorer = load_scorer("emoji-clip")
    assert scorer.name == "emoji-clip" and scorer.reads_text
    assert scorer.identity == load_scorer().identity
    assert len(scorer.identity.weights) == 64 and "open_clip" in scorer.identity.architecture
    assert copy.deepcopy(scorer) is scorer


@pytest.mark.parametrize(("name", "place", "origin"), [
    ("clip:ViT-B-32/openai", "clip/ViT-B-32/openai.safetensors",
     "https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors"),
    ("dino:vit_small_patch16_224.dino", "dino/vit_small_patch16_224.dino.safetensors",
     "https://huggingface.co/timm/vit_small_patch16_224.dino/resolve/main/model.safetensors"),
    ("dino:vit_small_patch14_dinov2.lvd142m", "dino/vit_small_patch14_dinov2.lvd142m.safetensors",
     "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors"),
])  # fmt: skip
def test_a_missing_file_is_named_with_its_origin_and_place(own_cache, name, place, origin):
    with pytest.raises(UserError) as error:
        load_scorer(name)
    said = str(error.value)
    assert "\n" not in said and "--allow-download" in said
    assert origin in said and str(own_cache / place) in said
    assert not own_cache.exists()


def test_a_download_that_fails_is_said_in_one_line(own_cache):
    with pytest.raises(UserError, match="cannot fetch https://huggingface.co/timm/") as error:
        load_scorer("dino:vit_small_patch16_224.dino", allow_download=True)
    assert "\n" not in str(error.value) and str(own_cache) in str(error.value)


def test_published_weights_are_found_where_the_line_says(own_cache, tiny_timm):
    place = own_cache / "dino" / "test_vit.r160_in1k.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(tiny_timm.read_bytes())
    assert load_scorer("dino:test_vit").identity == load_scorer(f"dino:test_vit/{tiny_timm}").identity


@pytest.mark.parametrize(("name", "says"), [
    ("clip:ViT-B-32", "give clip:MODEL/TAG"),
    ("clip:nobody/openai", "open_clip has no model nobody"),
    ("clip:ViT-B-32/nothing", "no weights nothing of ViT-B-32, and there is no such file"),
    ("clip:ViT-B-32-quickgelu/laion2b_s34b_b79k", "use clip:ViT-B-32/laion2b_s34b_b79k"),
    ("dino:nobody", "timm has no model nobody"),
    ("dino:", "timm has no model without a name"),
    ("dino:test_vit/none.pt", "there is no file none.pt"),
    ("dino:vit_small_patch16_224.nobody", "vit_small_patch16_224.nobody"),
    ("nobody", "no scorer named nobody: give clip:MODEL/TAG"),
], ids=str)  # fmt: skip
def test_a_wrong_name_is_said_in_one_line(name, says):
    with pytest.raises(UserError) as error:
        load_scorer(name)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["clip:tiny-ours/{timm}", "dino:test_vit/{clip}"])
def test_a_file_of_another_model_is_refused(name, tiny_clip: Path, tiny_timm: Path):
    with pytest.raises(UserError, match="does not fit") as error:
        load_scorer(name.format(clip=tiny_clip, timm=tiny_timm))
    assert "\n" not in str(error.value)


def test_a_broken_file_is_refused(tmp_path, tiny_clip):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name in ("clip:tiny-ours", "dino:test_vit"):
        with pytest.raises(UserError, match="broken.safetensors does not fit"):
            load_scorer(f"{name}/{tmp_path / 'broken.safetensors'}")
