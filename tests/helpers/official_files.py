"""YAML files of the official form, written from their parameters: full size, or tiny to be run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.backbone.loading import find, in_folder
from ldm.backbone.model import ModelConfig, build
from ldm.config import resolve

MODULES = "ldm.modules.encoders.modules"


def unet(tiny: bool, **changes: Any) -> dict[str, Any]:
    size = {"model_channels": 320, "attention_resolutions": [4, 2, 1], "num_res_blocks": 2}
    size |= {"channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 1280}
    if tiny:
        size = {"model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 1}
        size |= {"channel_mult": [1, 2], "num_heads": 2, "context_dim": 32}
    fixed = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True}
    fixed |= {"transformer_depth": 1, "use_checkpoint": True, "legacy": False}
    params = {**fixed, **size, **changes}
    params = {key: value for key, value in params.items() if value is not None}
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


def autoencoder(tiny: bool, resolution: int) -> dict[str, Any]:
    ddconfig = {"double_z": True, "z_channels": 4, "resolution": resolution, "in_channels": 3, "out_ch": 3}
    ddconfig |= {"ch": 32 if tiny else 128, "ch_mult": [1, 1, 1, 1] if tiny else [1, 2, 4, 4]}
    ddconfig |= {"num_res_blocks": 1 if tiny else 2, "attn_resolutions": [], "dropout": 0.0}
    params = {"embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": ddconfig}
    params["lossconfig"] = {"target": "torch.nn.Identity"}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def model(tiny: bool, latents: int, text: dict[str, Any], unet_config: dict, **more: Any) -> dict[str, Any]:
    params: dict[str, Any] = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "image",
        "cond_stage_key": "caption",
        "image_size": latents,
        "channels": 4,
        "cond_stage_trainable": True,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": 0.18215,
        "use_ema": False,
        **more,
        "unet_config": unet_config,
        "first_stage_config": autoencoder(tiny, 8 * latents),
        "cond_stage_config": text,
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"base_learning_rate": 5.0e-3, "target": target, "params": params}


def personalization(words: int = 1) -> dict[str, Any]:
    params = {"placeholder_strings": ["*"], "initializer_words": ["sculpture"], "per_image_tokens": False}
    params |= {"num_vectors_per_token": words, "progressive_words": False}
    return {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": params}


def pictures(size: int, kind: str, repeats: int, style: bool) -> dict[str, Any]:
    module = "personalized_style" if style else "personalized"
    params = {"size": size, "set": kind, "per_image_tokens": False, "repeats": repeats}
    return {"target": f"ldm.data.{module}.PersonalizedBase", "params": params}


def training(size: int, batch_size: int, style: bool, **trainer: Any) -> dict[str, Any]:
    """The sections ``data`` and ``lightning``."""
    data = {"batch_size": batch_size, "num_workers": 2, "wrap": False}
    data |= {"train": pictures(size, "train", 100, style), "validation": pictures(size, "val", 10, style)}
    images = {"batch_frequency": 500, "max_images": 8, "increase_log_steps": False}
    lightning = {
        "modelcheckpoint": {"params": {"every_n_train_steps": 500}},
        "callbacks": {"image_logger": {"target": "main.ImageLogger", "params": images}},
        "trainer": {"benchmark": True, "max_steps": 6100, **trainer},
    }
    return {"data": {"target": "main.DataModuleFromConfig", "params": data}, "lightning": lightning}


def bert(tiny: bool) -> dict[str, Any]:
    params = {"n_embed": 32, "n_layer": 1} if tiny else {"n_embed": 1280, "n_layer": 32}
    return {"target": f"{MODULES}.BERTEmbedder", "params": params}


def ldm_inversion(*, tiny: bool = False, style: bool = False, **more: Any) -> dict[str, Any]:
    """LDM's txt2img-1p4B-finetune, object or style."""
    latents = 4 if tiny else 32
    more = {"embedding_reg_weight": 0.0, "personalization_config": personalization(), **more}
    described = model(tiny, latents, bert(tiny), unet(tiny), **more)
    return {"model": described, **training(8 * latents, 4, style)}


def ldm_inference(**more: Any) -> dict[str, Any]:
    """LDM's txt2img-1p4B-eval."""
    return {"model": model(False, 32, bert(False), unet(False), **more)}


def sd1_inversion(*, style: bool = False, unfrozen: bool = False, clip: Path | None = None) -> dict[str, Any]:
    """Stable Diffusion's v1-finetune, v1-finetune_style and v1-finetune_unfrozen.

    With ``clip``, the folder of a small text encoder, the model is tiny too.
    """
    more: dict[str, Any] = {"embedding_reg_weight": 0.0}
    more |= {"unfreeze_model": True, "model_lr": 1.0e-7} if unfrozen else {}
    more["personalization_config"] = personalization()
    text: dict[str, Any] = {"target": f"{MODULES}.FrozenCLIPEmbedder"}
    text |= {"params": {"version": str(clip)}} if clip else {}
    tiny, latents = clip is not None, 4 if clip else 64
    described = model(tiny, latents, text, unet(tiny, context_dim=32 if clip else 768), **more)
    if unfrozen:
        described["base_learning_rate"] = 5.0e-5
    return {"model": described, **training(8 * latents, 1 if unfrozen else 2, style)}


def sd1_inference() -> dict[str, Any]:
    """Stable Diffusion's v1-inference."""
    schedule = {"warm_up_steps": [10000], "cycle_lengths": [10000000000000], "f_start": [1.0e-6]}
    schedule |= {"f_max": [1.0], "f_min": [1.0]}
    more = {"scheduler_config": {"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": schedule}}
    more |= {"personalization_config": personalization(100)}
    more |= {"first_stage_key": "jpg", "cond_stage_key": "txt", "cond_stage_trainable": False}
    text = {"target": f"{MODULES}.FrozenCLIPEmbedder"}
    return {"model": model(False, 64, text, unet(False, context_dim=768), **more)}


def sd2_inference(*, v: bool) -> dict[str, Any]:
    """Stable Diffusion's v2-inference and v2-inference-v."""
    more: dict[str, Any] = {"first_stage_key": "jpg", "cond_stage_key": "txt", "cond_stage_trainable": False}
    more |= {"parameterization": "v"} if v else {}
    heads = {"num_heads": None, "num_head_channels": 64, "use_linear_in_transformer": True, "use_fp16": True}
    text_params = {"freeze": True, "layer": "penultimate"}
    text = {"target": f"{MODULES}.FrozenOpenCLIPEmbedder", "params": text_params}
    return {"model": model(False, 64, text, unet(False, context_dim=1024, **heads), **more)}


def write_checkpoint(yaml: Path, path: Path, randomise: Callable[..., nn.Module]) -> Path:
    """Random weights of a YAML's model under their public names, with what the official code adds."""
    config = in_folder(resolve(ModelConfig, find(yaml)[0]["model"]), yaml.parent)
    state: dict[str, Tensor] = {"betas": torch.linspace(0, 1, 1000), "logvar": torch.zeros(1000)}
    for prefix, part in build(config).parts.items():
        state |= {prefix + name: tensor for name, tensor in randomise(part).state_dict().items()}
    torch.save({"state_dict": state, "global_step": 7}, path)
    return path
