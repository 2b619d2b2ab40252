"""Configs describe the public checkpoints; weights alone are enough; what is loaded stays small."""

import gzip
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ldm
from ldm.backbone.loading import find, in_folder
from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.config import ASSETS, resolve
from ldm.errors import UserError
from ldm.io.checkpoints import collect, in_precision, is_weight, read_state_dict, save_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [1, 2],
    "channel_mult": [1, 2],
    "context_dim": 32,
}
CLIP = {"width": 32, "layers": 2, "heads": 1}  # one head: of width 64, or as wide as there is
VOCABULARY = str(ASSETS / "bert" / "vocab.txt")
BERT = {"vocab_file": VOCABULARY, "n_embed": 32, "n_layer": 2, "heads": 8, "dim_head": 4}
KINDS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "ldm": ({"num_heads": 8}, "bert.BertConditioner", BERT),
    "sd1": ({"num_heads": 8}, "clip.ClipConditioner", CLIP),
    "sd2": ({"num_head_channels": 32, "use_linear_in_transformer": True}, "clip.OpenClipConditioner", CLIP),
}


@pytest.mark.parametrize(
    ("name", "keys", "latents"),
    [
        ("latent-diffusion/txt2img-1p4B", "ldm_txt2img", 32),
        ("stable-diffusion/v1", "sd_v1", 64),
        ("stable-diffusion/v2-base", "sd_v2", 64),
        ("stable-diffusion/v2-768-v", "sd_v2", 96),
    ],
)
def test_configs_build_the_public_checkpoints_key_by_key(name: str, keys: str, latents: int) -> None:
    values, folder = find(ROOT / "configs" / f"{name}.yaml")
    model = build(in_folder(resolve(ModelConfig, values["model"]), folder), empty=True)
    ours = {k: list(tensor.shape) for k, tensor in collect(model.parts).items()}
    reference = gzip.decompress((ROOT / f"tests/reference/keys_{keys}.json.gz").read_bytes())
    public = {k: v for k, v in json.loads(reference)["keys"].items() if is_weight(k)}
    assert len(public) > 1100 and ours == public
    assert model.latent_shape == (4, latents, latents) and next(model.unet.parameters()).is_meta
    assert not any(b.is_meta for part in (model.schedule, model.manager) for b in part.buffers())


@pytest.fixture(scope="module")
def models(randomise: Callable[..., nn.Module], tiny_config: ModelConfig) -> dict[str, LatentDiffusion]:
    """A tiny model of each kind, its weights representable in half precision."""
    made = {}
    for kind, (unet, text, params) in KINDS.items():
        config = replace(
            tiny_config,
            unet={"target": "ldm.models.unet.UNetModel", "params": {**UNET, **unet}},
            text={"target": f"ldm.text.{text}", "params": params},
            scale_factor=0.18215,
            parameterization="v" if kind == "sd2" else "eps",
        )
        model = build(config)
        for part in model.parts.values():
            randomise(part).half().float()
        made[kind] = model.freeze()
    return made


def outputs(model: LatentDiffusion) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 16, 16, generator=generator)
    z = torch.randn(1, 4, 4, 4, generator=generator)
    context = model.condition(["a red cat's toy"])
    eps = model.eps(z, torch.tensor([500]), context)
    return [model.encode(images).mean, model.decode(z), context.tokens, eps]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_alone_loads_as_the_model_that_it_was(
    kind: str, models: dict[str, LatentDiffusion], tmp_path: Path
) -> None:
    model = models[kind]
    safe = save_checkpoint(model.parts, tmp_path / "m.safetensors")
    torch.save({"state_dict": {**collect(model.parts), "betas": torch.ones(3)}}, tmp_path / "m.ckpt")
    for path in (safe, tmp_path / "m.ckpt"):
        loaded = ldm.load(path)
        assert loaded.fingerprint() == model.fingerprint()
        assert loaded.parameterization == model.parameterization
        assert loaded.image_size == {"ldm": 256, "sd1": 512, "sd2": 768}[kind]
        assert loaded.inversion_defaults["batch_size"] == (4 if kind == "ldm" else 2)
        for ours, wanted in zip(outputs(loaded), outputs(model), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
        weights = [p for part in loaded.parts.values() for p in part.parameters()]
        assert not any(p.requires_grad or p.is_meta for p in weights)
    # a word can be learned and used at once
    loaded.add_placeholder("<toy>", init="cat toy", num_vectors=2)
    assert not torch.equal(loaded.condition("a <toy>").tokens, loaded.condition("a toy").tokens)


def test_an_explicit_option_or_config_wins_over_recognition_which_says_what_it_took(
    models: dict[str, LatentDiffusion], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_checkpoint(models["sd2"].parts, tmp_path / "m.safetensors")
    with caplog.at_level(logging.WARNING):
        base = ldm.load(path, parameterization="eps", image_size=64)
        assert (base.parameterization, base.image_size, base.latent_shape) == ("eps", 64, (4, 16, 16))
        values, _ = find(path)
        values["model"] |= {"parameterization": "x0"}
        assert ldm.load(values, path).parameterization == "x0"
        assert not caplog.records
        assert ldm.load(path).parameterization == "v"
    assert len(caplog.records) == 1 and "m.safetensors is taken for" in caplog.text


def test_a_weight_file_of_another_kind_is_named_by_load(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match="style.safetensors is a LoRA"):
        ldm.load(tmp_path / "style.safetensors")
    vectors = nn.ParameterDict({"*": torch.ones(1, 8)})
    word = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": vectors}
    torch.save(word, tmp_path / "word.pt")
    with pytest.raises(UserError, match="word.pt is a learned embedding"):
        ldm.load(tmp_path / "word.pt")


# ------------------------------------------------------------------ averages (EMA)
def averaged(
    model: LatentDiffusion, change: Callable[[dict[str, Tensor]], Any] = lambda _: None
) -> dict[str, Tensor]:
    """A training's state: the UNet's averages are 3 everywhere."""
    state = collect(model.parts)
    ema = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): torch.full_like(tensor, 3.0)
        for name, tensor in state.items()
        if name.startswith("model.diffusion_model.")
    }
    change(ema)
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return {**state, **ema, **counters}


def test_a_complete_set_of_averages_is_preferred_and_can_be_refused(
    models: dict[str, LatentDiffusion], tmp_path: Path
) -> None:
    torch.save({"state_dict": averaged(models["sd1"])}, tmp_path / "m.ckpt")
    assert all((p == 3).all() for p in ldm.load(tmp_path / "m.ckpt").unet.parameters())
    plain = ldm.load(tmp_path / "m.ckpt", use_ema=False)
    assert plain.fingerprint() == models["sd1"].fingerprint()


@pytest.mark.parametrize("broken", ["lacking", "shape"])
def test_an_incomplete_set_of_averages_is_not_used(
    broken: str, models: dict[str, LatentDiffusion], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "model_ema.diffusion_modelout2bias"
    change = {"lacking": lambda ema: ema.pop(name), "shape": lambda ema: ema.update({name: torch.ones(9)})}
    torch.save(averaged(models["sd1"], change[broken]), tmp_path / "m.ckpt")
    with caplog.at_level(logging.WARNING):
        assert ldm.load(tmp_path / "m.ckpt").fingerprint() == models["sd1"].fingerprint()
    assert "not used" in caplog.text


# ------------------------------------------------------------------ precision and memory
@pytest.mark.parametrize(
    ("stored", "wanted", "kept"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, None, torch.float16),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_weights_have_the_precision_asked_for_or_the_files(
    stored: torch.dtype,
    wanted: torch.dtype | None,
    kept: torch.dtype,
    models: dict[str, LatentDiffusion],
    tmp_path: Path,
) -> None:
    path = save_checkpoint(models["sd1"].parts, tmp_path / "m.safetensors", stored)
    loaded = ldm.load(path, dtype=wanted)
    assert {p.dtype for part in loaded.parts.values() for p in part.parameters()} == {kept}
    assert all(out.isfinite().all() for out in outputs(loaded))
    assert loaded.schedule.betas.dtype == torch.float32


def resident(key: str) -> int:
    """Bytes that /proc says this process has ("VmRSS") or has had ("VmHWM") in memory."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measures memory on Linux only")
@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_peaks_within_a_fifth_of_the_weights_that_stay(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    path, n = tmp_path / name, 2**20
    weights = {f"model.diffusion_model.{i}.w": torch.full((n,), float(i)).half() for i in range(48)}
    save_file(weights, path) if name.endswith("safetensors") else torch.save(weights, path)
    del weights
    in_precision(lambda: read_state_dict(path), dtype)  # warm: the allocator's own first pages
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    state = in_precision(lambda: read_state_dict(path), dtype)
    for i in range(48):  # every page is read
        tensor = state[f"model.diffusion_model.{i}.w"]
        assert tensor.min() == tensor.max() == i
    size = sum(tensor.nbytes for tensor in state.values())
    assert size == 48 * n * dtype.itemsize
    assert resident("VmHWM") - before < 1.2 * size
