"""A folder saved by diffusers and transformers is loaded as a model that computes what theirs do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ldm
from ldm.backbone.loading import find
from ldm.errors import UserError
from ldm.io.checkpoints import save_checkpoint

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

WIDTHS, CONTEXT = (32, 64, 64), 48
KINDS: dict[str, dict[str, Any]] = {
    "v1": {"unet": {"attention_head_dim": 4}, "act": "quick_gelu", "pad": "<|endoftext|>"},
    "v2": {  # theirs calls the number of heads attention_head_dim
        "unet": {"attention_head_dim": [2, 4, 4], "use_linear_projection": True},
        "act": "gelu",
        "pad": "!",
    },
}


class Theirs(NamedTuple):
    unet: nn.Module
    vae: nn.Module
    text: nn.Module
    tokenizer: Any


def save(folder: Path, kind: str, vocabulary: Path, randomise: Callable[..., nn.Module]) -> Theirs:
    """A random pipeline in miniature, written by its own libraries."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=CONTEXT,
        **KINDS[kind]["unet"],
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.3,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=CONTEXT,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            hidden_act=KINDS[kind]["act"],
        )
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(vocabulary), pad_token=KINDS[kind]["pad"])
    parts = {"unet": unet, "vae": vae, "text_encoder": text, "tokenizer": tokenizer}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            randomise(part).eval()
        part.save_pretrained(folder / name, **({"safe_serialization": kind == "v1"} if name == "vae" else {}))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if kind == "v2" else "epsilon",
    )
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return Theirs(unet, vae, text, tokenizer)


@pytest.fixture(scope="module", params=KINDS)
def saved(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    clip_vocabulary: Path,
    randomise: Callable[..., nn.Module],
) -> tuple[str, Path, Theirs]:
    folder = tmp_path_factory.mktemp("pipelines") / request.param
    return request.param, folder, save(folder, request.param, clip_vocabulary, randomise)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.05  # something to compare
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


@torch.no_grad()
def test_every_part_computes_what_theirs_does(saved: tuple[str, Path, Theirs]) -> None:
    kind, folder, theirs = saved
    model = ldm.load(folder)
    prompts = ["a photo of a cat, 🎉", "", "cats " * 90]
    batch = theirs.tokenizer(
        prompts, truncation=True, max_length=77, padding="max_length", return_tensors="pt"
    )
    assert model.text.tokenize(prompts).equal(batch["input_ids"])
    context = theirs.text(batch["input_ids"]).last_hidden_state
    assert_close(model.condition(prompts).tokens[:, 0], context)
    generator = torch.Generator().manual_seed(1)
    z, t = torch.randn(3, 4, 8, 12, generator=generator), torch.tensor([0, 437, 999])
    assert_close(model.predict(z, t, context), theirs.unet(z, t, context).sample)
    images = torch.randn(2, 3, 32, 48, generator=generator)
    posterior = theirs.vae.encode(images).latent_dist
    assert_close(model.encode(images).mean, posterior.mean)
    assert_close(model.encode(images).logvar, posterior.logvar)
    assert_close(model.decode(z), theirs.vae.decode(z / 0.3).sample)


def test_the_small_files_say_what_shapes_do_not(saved: tuple[str, Path, Theirs]) -> None:
    kind, folder, _ = saved
    model = ldm.load(folder)
    assert model.parameterization == ("v" if kind == "v2" else "eps")
    assert (model.image_size, model.latent_shape, model.scale_factor) == (32, (4, 8, 8), 0.3)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    torch.testing.assert_close(model.schedule.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-5, atol=0)
    unet = find(folder)[0]["model"]["unet"]["params"]
    assert unet.get("num_head_channels") == (16 if kind == "v2" else None)
    assert model.inversion_defaults["batch_size"] == 2


@torch.no_grad()
def test_the_model_can_be_saved_as_one_file_of_the_public_layout(
    saved: tuple[str, Path, Theirs], tmp_path: Path
) -> None:
    model = ldm.load(saved[1])
    again = ldm.load(save_checkpoint(model.parts, tmp_path / "m.safetensors", None))
    assert again.fingerprint() == model.fingerprint()
    assert again.parameterization == model.parameterization  # of version 2 it is the default
    assert again.text.tokenizer.pad_id == model.text.tokenizer.pad_id
    assert type(again.text.tower.transformer.resblocks[0].mlp.gelu) is type(
        model.text.tower.transformer.resblocks[0].mlp.gelu
    )


def linked(folder: Path, copy: Path) -> Path:
    """A copy of a pipeline's folder, whose files can be replaced but not written to."""
    for path in folder.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(folder)).hardlink_to(path)
    return copy


def test_weights_in_several_pieces_are_one_model(saved: tuple[str, Path, Theirs], tmp_path: Path) -> None:
    kind, whole, theirs = saved
    folder = linked(whole, tmp_path / "copy")
    for name, part in (("unet", theirs.unet), ("vae", theirs.vae), ("text_encoder", theirs.text)):
        for path in [*folder.glob(f"{name}/*.safetensors"), *folder.glob(f"{name}/*.bin")]:
            path.unlink()
        kinds = {"safe_serialization": kind == "v1"} if name != "text_encoder" else {}
        variant = {"variant": "fp16"} if name == "unet" else {}
        part.save_pretrained(folder / name, max_shard_size="100KB", **kinds, **variant)
        assert len(list(folder.glob(f"{name}/*-of-*"))) > 1
    assert ldm.load(folder).fingerprint() == ldm.load(whole).fingerprint()
    index = next((folder / "unet").glob("*.index.*"))
    piece = next((folder / "unet").glob("*-of-*"))
    piece.unlink()
    with pytest.raises(UserError, match=f"unet lacks {piece.name}"):
        ldm.load(folder)
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {"a": "../../x.bin"}}', "["):
        index.unlink()
        index.write_text(content)
        with pytest.raises(UserError, match="fetch the folder again") as caught:
            ldm.load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("scheduler/scheduler_config.json", None, "scheduler_config.json"),
        ("scheduler/scheduler_config.json", "[", "scheduler_config.json"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "sigmoid"}', "'sigmoid'"),
        ("unet/diffusion_pytorch_model.safetensors", None, "unet holds no diffusion_pytorch_model"),
        ("unet/config.json", '{"attention_head_dim": [4, 2, 2]}', "do not fit its weights"),
        ("unet/config.json", '{"attention_head_dim": [0], "block_out_channels": [32]}', "do not fit"),
        ("vae/config.json", "[" * 100_000, "cannot read .*config.json"),
        ("unet/config.json", '{"attention_head_dim": [4, 2], "block_out_channels": [32, 64]}', "8, 32"),
    ],
)
def test_a_damaged_folder_is_a_one_line_error(
    saved: tuple[str, Path, Theirs], tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    folder = linked(saved[1], tmp_path / "copy")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        ldm.load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_of_stable_diffusion_xl_is_named(saved: tuple[str, Path, Theirs], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "xl"
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part).mkdir(parents=True)
        weights = load_file(saved[1] / part / f"{stem}.safetensors")
        extra = {"add_embedding.linear_1.weight": torch.ones(2, 2)} if part == "unet" else {}
        save_file({**weights, **extra}, folder / part / f"{stem}.safetensors")
    (folder / "vae").symlink_to(saved[1] / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(UserError, match="xl is Stable Diffusion XL"):
        ldm.load(folder)


@torch.no_grad()
def test_words_that_were_added_to_a_pipeline_are_words_here(
    saved: tuple[str, Path, Theirs], tmp_path: Path
) -> None:
    """As diffusers saves a pipeline after Textual Inversion: a word of one vector, and one of two."""
    _, folder, theirs = saved
    copy = linked(folder, tmp_path / "with-words")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<cat>", "<dog>", "<dog>_1"])
    text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    text.resize_token_embeddings(len(tokenizer))
    for part, what in (("tokenizer", tokenizer), ("text_encoder", text)):
        for path in (copy / part).iterdir():
            path.unlink()
        what.save_pretrained(copy / part)
    model = ldm.load(copy)
    ids = tokenizer(["a <cat> on <dog> <dog>_1"], padding="max_length", max_length=77, return_tensors="pt")
    ids = ids["input_ids"]
    assert model.text.tokenize(["a <cat> on <dog>"]).equal(ids)
    assert_close(model.condition(["a <cat> on <dog>"]).tokens[:, 0], text.eval()(ids).last_hidden_state)
    model.add_placeholder("<new>", init="<cat>")
    assert model.manager.vectors("<new>").equal(model.text.token_table[len(tokenizer) - 3][None])
