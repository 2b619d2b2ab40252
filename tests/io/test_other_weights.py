"""Small files of tensors that are no learned words are named as what they are, and never read as words."""

import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.io.embedding_formats.networks import kind_of_network
from ldm.io.embeddings import Embedding, load_embeddings, read_file, save_embeddings

pytestmark = pytest.mark.slow

#: what a file is -> names of tensors in it, as the tools that write them choose them
NETWORKS = {
    "a LoRA": [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",  # PEFT, diffusers
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight",  # PEFT
        "unet.down_blocks.0.attentions.0.processor.to_q_lora.down.weight",  # older diffusers
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",  # kohya
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
        "lora_transformer_single_blocks_0_linear1.lora_up.weight",
        "lycoris_unet_mid_block_attentions_0_proj_in.hada_w1_a",  # LyCORIS
        "lycoris_unet_mid_block_attentions_0_proj_in.lokr_w2",
        "oft_unet_mid_block_attentions_0_proj_in.oft_blocks",
        "transformer.blocks.0.attn.qkv.lora_B.weight",
    ],
    "a text encoder": [
        "text_model.embeddings.token_embedding.weight",  # transformers' CLIP
        "text_model.encoder.layers.0.layer_norm1.bias",
        "embeddings.position_embedding.weight",  # without its prefix
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "transformer.resblocks.0.ln_1.weight",  # open_clip
        "positional_embedding",
        "text_projection.weight",
        "bert.embeddings.word_embeddings.weight",
        "transformer.token_emb.weight",  # latent diffusion's
        "encoder.block.0.layer.0.SelfAttention.q.weight",  # T5
        "shared.weight",
    ],
    "a ControlNet": ["controlnet_down_blocks.0.bias", "control_model.zero_convs.0.0.bias"],
    "an autoencoder": ["decoder.conv_in.bias", "first_stage_model.encoder.down.0.block.0.norm1.bias"],
    "a UNet or another denoiser": [
        "model.diffusion_model.input_blocks.0.0.bias",
        "double_blocks.0.img_mod.lin.bias",
    ],
    "a part of a network": ["fc1.weight", "layers.0.norm.bias"],
}
CASES = [(kind, name) for kind, names in NETWORKS.items() for name in names]


def saved(values, path):
    if path.suffix == ".safetensors":
        save_file(values, path)
    else:
        torch.save({"state_dict": values} if path.suffix == ".ckpt" else values, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".ckpt"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_weights_of_networks_are_named_and_not_read_as_words(tmp_path, kind, name, suffix):
    path = saved({name: torch.zeros(4, 8)}, tmp_path / f"x{suffix}")
    with pytest.raises(UserError, match=f"x{suffix}: it is {kind}, not a learned word"):
        read_file(path)


def test_parts_of_our_own_models_are_no_words(tiny_model):
    for part in tiny_model.parts.values():
        assert kind_of_network(part.state_dict())
    text = (f"cond_stage_model.{name}" for name in tiny_model.text.state_dict())
    assert kind_of_network(text) == "a text encoder"


def test_a_large_file_is_named_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.io.embedding_formats.content.MAX_BYTES", 100)
    path = saved({"text_model.final_layer_norm.weight": torch.zeros(64)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="a text encoder"):
        read_file(path)


@pytest.mark.parametrize(
    "name",
    ["<lora>", "lora", "my_lora", "alora", "v1.5", "weight", "shared", "explora.cat", "a.b", "lora-style"],
)
def test_a_word_may_be_called_nearly_as_a_network(tmp_path, name):
    word = Embedding(name, torch.ones(2, 8))
    assert load_embeddings(save_embeddings(word, tmp_path / "x.safetensors"))[0].placeholder == name
    if name not in ("lora", "my_lora"):
        assert kind_of_network([name]) is None


@pytest.mark.parametrize("name", ["fc1.weight", "up.lora_A", "t5xxl"])
def test_a_name_that_others_take_for_a_network_is_kept_in_our_file_alone(tmp_path, name):
    word = Embedding(name, torch.ones(2, 8))
    assert load_embeddings(save_embeddings(word, tmp_path / "x.safetensors"))[0].placeholder == name
    with pytest.raises(UserError, match="rename it"):
        save_embeddings(word, tmp_path / "x.bin")


@pytest.mark.parametrize("names", [["clip_l", "t5xxl"], ["clip_l", "clip_g", "t5xxl"], ["t5xxl"]])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_vectors_of_t5_are_refused_and_never_dropped(tmp_path, names, suffix):
    widths = {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}
    path = saved({name: torch.ones(2, widths[name]) for name in names}, tmp_path / f"x{suffix}")
    with pytest.raises(UserError, match="holds t5xxl, .*T5-XXL of Stable Diffusion 3 or FLUX"):
        read_file(path)


@pytest.mark.parametrize("read", ["clip_l", "emb_params", "emp_params", "text_encoders_0 text_encoders_1"])
def test_nothing_beside_the_vectors_of_a_known_layout_is_dropped(tmp_path, read):
    values = {name: torch.ones(2, 8) for name in [*read.split(), "clip_h"]}
    with pytest.raises(UserError, match=f"holds clip_h beside {read.replace(' ', ' and ')}"):
        read_file(saved(values, tmp_path / "x.safetensors"))
