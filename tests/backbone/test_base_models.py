"""Base models as people have them: other names of weights, configs beside them, added words, schedules."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import official_files as official
import pytest
import tiny
import torch
from torch import nn

import ldm
from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.config import dump_yaml, load_yaml
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError
from ldm.io.checkpoints import collect
from ldm.text.bpe import ClipTokenizer
from ldm.text.clip import read_sizes

pytestmark = pytest.mark.slow


@pytest.fixture
def model_folder(tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """What ``ldm.load`` reads: config.yaml with settings for inversion, and the weights."""
    return tiny.write_model(tmp_path / "tiny", tiny_model, tiny_config)


CLIP = {"width": 32, "layers": 2, "heads": 1}


@pytest.fixture(scope="module")
def sd1(randomise: Callable[..., nn.Module], tiny_config: ModelConfig) -> LatentDiffusion:
    """Stable Diffusion 1 in miniature."""
    unet = {**tiny_config.unet["params"], "num_heads": 8}
    text = {"target": "ldm.text.clip.ClipConditioner", "params": CLIP}
    model = build(replace(tiny_config, unet={**tiny_config.unet, "params": unet}, text=text))
    for part in model.parts.values():
        randomise(part).half().float()
    return model.freeze()


UNUSED = {
    "cond_stage_model.logit_scale": torch.tensor(4.6),
    "cond_stage_model.text_projection": torch.ones(32, 32),
    "cond_stage_model.transformer.logit_scale": torch.tensor(4.6),
    "cond_stage_model.transformer.text_projection.weight": torch.ones(32, 32),
    "cond_stage_model.transformer.visual_projection.weight": torch.ones(32, 32),
}


@pytest.mark.parametrize("extra", UNUSED)
def test_a_projection_that_conditioning_never_uses_may_be_there(
    sd1: LatentDiffusion, tmp_path: Path, extra: str
) -> None:
    torch.save({"state_dict": {**collect(sd1.parts), extra: UNUSED[extra]}}, tmp_path / "m.ckpt")
    assert ldm.load(tmp_path / "m.ckpt").fingerprint() == sd1.fingerprint()


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
def test_the_layout_without_text_model_and_any_ending_load(
    sd1: LatentDiffusion, tmp_path: Path, name: str
) -> None:
    state = {k.replace(".text_model.", "."): v for k, v in collect(sd1.parts).items()}
    assert not any("text_model" in k for k in state)
    torch.save({"state_dict": state}, tmp_path / name)  # a file of torch, whatever it is called
    assert ldm.load(tmp_path / name).fingerprint() == sd1.fingerprint()


def test_averages_alone_are_named(sd1: LatentDiffusion, tmp_path: Path) -> None:
    unet = "model.diffusion_model."
    state = {
        "model_ema." + k.removeprefix("model.").replace(".", "") if k.startswith(unet) else k: v
        for k, v in collect(sd1.parts).items()
    }
    torch.save(state, tmp_path / "ema.ckpt")
    with pytest.raises(UserError, match=r"ema.ckpt holds only averages \(EMA\)"):
        ldm.load(tmp_path / "ema.ckpt")


# ------------------------------------------------------------------------------ the YAML beside it
@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_the_config_beside_a_checkpoint_is_read(
    tiny_model: LatentDiffusion, model_folder: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = (model_folder / "config.yaml").read_text().replace("parameterization: eps", "parameterization: v")
    text = text.replace("checkpoint: model.safetensors", "checkpoint: another.ckpt")
    (model_folder / "config.yaml").unlink()
    with pytest.raises(UserError):  # it is of no known family
        ldm.load(model_folder / "model.safetensors", parameterization=None).condition("a cat")
        raise UserError("recognised")
    (model_folder / f"model{suffix}").write_text(text)
    model = ldm.load(model_folder / "model.safetensors")
    assert model.parameterization == "v" and model.image_size == 16
    assert model.fingerprint() == tiny_model.fingerprint()
    assert model.inversion_defaults["batch_size"] == 2
    assert not caplog.records


def test_an_official_config_beside_a_checkpoint_is_read(sd1: LatentDiffusion, tmp_path: Path) -> None:
    torch.save({"state_dict": collect(sd1.parts)}, tmp_path / "m.ckpt")
    values = official.sd1_inversion()
    params = values["model"]["params"]
    params["unet_config"]["params"].update(model_channels=32, num_res_blocks=1, attention_resolutions=[1, 2],
                                           channel_mult=[1, 2], context_dim=32)  # fmt: skip
    (tmp_path / "m.yaml").write_text(dump_yaml(values))
    found = ldm.backbone.loading.find(tmp_path / "m.ckpt")[0]["model"]
    assert found["checkpoint"] == "m.ckpt"
    assert found["unet"]["params"]["channel_mult"] == [1, 2]


def test_another_yaml_beside_a_checkpoint_is_left_aside_with_a_warning(
    sd1: LatentDiffusion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"state_dict": collect(sd1.parts)}, tmp_path / "m.ckpt")
    (tmp_path / "m.yaml").write_text("pretrained_model: x\n")
    assert ldm.load(tmp_path / "m.ckpt").fingerprint() == sd1.fingerprint()
    assert "m.yaml lies beside m.ckpt and is no config of a model" in caplog.text


def test_a_broken_config_beside_a_checkpoint_is_named(model_folder: Path) -> None:
    (model_folder / "model.yaml").write_text("model: {imag_size: 3}\ninversio: {}\n")
    with pytest.raises(UserError, match="model.yaml, which lies beside model.safetensors.*'inversion'"):
        ldm.load(model_folder / "model.safetensors")


# ------------------------------------------------------------------------------ schedules of diffusers
SCHEDULERS = {
    "zero snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True,
                 "prediction_type": "v_prediction"},
    "trained": {"trained_betas": torch.linspace(0.001, 0.3, 50).tolist(), "num_train_timesteps": 50},
    "both": {"trained_betas": torch.linspace(0.001, 0.3, 50).tolist(), "num_train_timesteps": 50,
             "rescale_betas_zero_snr": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_schedule_of_a_scheduler_is_obeyed(kind: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from ldm.io.diffusers_layout import configured

    theirs = diffusers.EulerDiscreteScheduler(**SCHEDULERS[kind])
    for part in ("unet", "vae", "scheduler"):
        (tmp_path / part).mkdir()
    theirs.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "unet" / "config.json").write_text('{"attention_head_dim": 8}')
    (tmp_path / "vae" / "config.json").write_text("{}")
    empty = {"params": {}}
    model = {"image_size": 64, "autoencoder": {"params": {"ch_mult": [1, 1]}}, "unet": empty, "text": {}}
    node = configured(model, tmp_path)["schedule"]
    ours = Schedule(**node)
    abar = theirs.alphas_cumprod.double()  # float32: its last digits are those of sums
    torch.testing.assert_close(ours.alphas_cumprod.double(), abar, rtol=2e-4, atol=2e-8)
    if "zero" in kind or kind == "both":
        assert ours.alphas_cumprod[-1] == 2.0**-24
    assert all(buffer.isfinite().all() for buffer in ours.buffers())


def test_a_model_with_no_signal_at_the_end_trains_and_draws(tiny_config: ModelConfig) -> None:
    schedule = replace(tiny_config.schedule, zero_snr=True)
    model = build(replace(tiny_config, schedule=schedule, parameterization="v")).freeze()
    z, noise, t = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([999, 3])
    assert model.loss(z, model.condition(["a cat", "a dog"]), t, noise).isfinite()
    assert ldm.sample(model, "a cat", steps=2).isfinite().all()


def test_betas_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="3 betas for 1000 timesteps"):
        Schedule(betas=[0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=r"betas must lie in \(0, 1\)"):
        Schedule(2, betas=[0.1, 1.5])


# ------------------------------------------------------------------------------ added words
def added(folder: Path, how: str, tokens: dict[str, int], vocabulary: Path) -> Path:
    """A tokenizer's folder with tokens that another tool added."""
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((vocabulary / name).read_bytes())
    described = [{"id": i, "content": name, "special": False} for name, i in tokens.items()]
    if how == "added_tokens.json":
        (folder / how).write_text(json.dumps(tokens))
    elif how == "tokenizer_config.json":
        (folder / how).write_text(json.dumps({"added_tokens_decoder": {str(t["id"]): t for t in described}}))
    else:
        model = {
            "vocab": json.loads((folder / "vocab.json").read_text()),
            "merges": (folder / "merges.txt").read_text().split("\n")[1:-1],
        }
        (folder / how).write_text(json.dumps({"model": model, "added_tokens": described}))
    return folder


@pytest.mark.parametrize("how", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_added_tokens_become_words(tmp_path: Path, clip_vocabulary: Path, how: str) -> None:
    tokens = {"<|endoftext|>": 49407, "<cat>": 49408, "<cat>_1": 49409, "<cat>_2": 49410, "<dog>": 49411}
    tokenizer = ClipTokenizer(folder=added(tmp_path, how, tokens, clip_vocabulary), rows=49412)
    a, photo = tokenizer.words("a photo")
    assert tokenizer.words("a <cat> photo <dog>") == [a, 49408, 49409, 49410, photo, 49411]
    assert tokenizer.decode_id(49411) == "<dog>" and tokenizer.vocabulary_id("<dog>") == 49411
    assert tokenizer.vocabulary_id("<cat>") is None  # several
    # a word that is learned now comes above them, even under a name that is there
    assert tokenizer.add_placeholder("<new>") == 49412
    assert tokenizer.add_placeholder("<dog>") == 49413
    assert tokenizer.words("<dog> <new> <cat>") == [49413, 49412, 49408, 49409, 49410]
    tokenizer.remove_placeholder("<dog>")
    assert tokenizer.words("<dog>") == [49411]


def test_added_tokens_agree_with_transformers(tmp_path: Path, clip_vocabulary: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(clip_vocabulary)
    theirs.add_tokens(["<cat>", "<a b>"])
    theirs.save_pretrained(tmp_path)
    ours = ClipTokenizer(folder=tmp_path, rows=len(theirs))
    for text in ("a <cat> on <a b>", "<cat><cat>", "<CAT>", "a cat"):
        assert ours.words(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_an_added_token_without_vectors_is_left_out_with_a_warning(
    tmp_path: Path, clip_vocabulary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = {"<cat>": 49408, "<far>": 10**9, "<in>": 5}
    folder = added(tmp_path, "added_tokens.json", tokens, clip_vocabulary)
    with caplog.at_level(logging.WARNING):
        tokenizer = ClipTokenizer(folder=folder, rows=49409)
    assert tokenizer.words("<cat>") == [49408] and tokenizer.vocab_size == 49409
    assert "<far>, <in>, for which the text encoder has no vectors" in caplog.text


@pytest.mark.parametrize("text", ["[1", '["<a>"]', '{"<a>": "x"}', '{"<a>": null}', "[" * 100_000])
def test_added_tokens_that_are_broken_are_one_line(tmp_path: Path, clip_vocabulary: Path, text: str) -> None:
    (added(tmp_path, "added_tokens.json", {}, clip_vocabulary) / "added_tokens.json").write_text(text)
    with pytest.raises(UserError, match="added tokens of") as caught:
        ClipTokenizer(folder=tmp_path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------ bounds
@pytest.mark.parametrize(("part", "key", "value"), [
    ("unet", "num_res_blocks", 10**9), ("unet", "transformer_depth", 10**9),
    ("unet", "channel_mult", [1] * 200), ("autoencoder", "num_res_blocks", 10**9),
    ("autoencoder", "ch_mult", [1] * 200), ("text", "n_layer", 10**9), ("text", "n_layer", float("inf")),
    ("schedule", "timesteps", 10**12), ("", "image_size", 10**9),
])  # fmt: skip
def test_a_config_that_asks_for_an_endless_model_is_refused_at_once(
    model_folder: Path, part: str, key: str, value: object
) -> None:
    values = load_yaml([model_folder / "config.yaml"])
    section = values["model"][part] if part else values["model"]
    (section["params"] if part not in ("schedule", "") else section)[key] = value
    (model_folder / "config.yaml").write_text(dump_yaml(values))
    start = time.process_time()
    with pytest.raises(UserError, match=key) as caught:
        ldm.load(model_folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.process_time() - start < 5


def test_a_text_encoder_of_endless_layers_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 10**9, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(UserError, match="config.json asks for 1000000000 layers"):
        read_sizes(tmp_path)


@pytest.mark.parametrize("source", [1.5, None, True, 3, ["emoji"]])
def test_a_model_that_is_no_text_is_one_line(source: object) -> None:
    with pytest.raises(UserError, match="give a name or a path"):
        ldm.load(source)  # type: ignore[arg-type]
