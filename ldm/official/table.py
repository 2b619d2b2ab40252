"""The table of official targets: which class of ours each is, and what becomes of its parameters.

A parameter is a name here, ignored for a reason, possible with certain values only, or a node of its
own. The few adapters say what a name alone cannot. ``ldm.official.config`` walks this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ldm.config import ASSETS, merge

#: steps between the vectors of ``progressive_words``, fixed in the official code
PROGRESSIVE_SCALE = 2000


# ------------------------------------------------------------------ what becomes of a parameter
@dataclass(frozen=True)
class Ignored:
    """Left out; ``why`` is for the reader of the table."""

    why: str


@dataclass(frozen=True)
class Choice:
    """One of a few values; each has its value under ``key`` here, or with ``key=None`` none at all."""

    key: str | None
    values: Mapping[Any, Any]


@dataclass(frozen=True)
class Node:
    """A mapping ``{target, params}`` with one of ``targets`` (the first if it names none).

    It becomes ours under ``key``; with ``key=None`` it is checked and left out, and with ``""`` its
    parameters are settings like those around it. Without ``read`` its parameters are not looked at.
    """

    key: str | None
    targets: tuple[str, ...]
    read: bool = True


@dataclass(frozen=True)
class Inside:
    """A plain mapping whose entries are parameters themselves."""

    rules: Mapping[str, Rule]


#: a string is the name here; dots go down into sections
Rule = str | Ignored | Choice | Node | Inside
Rules = Mapping[str, Rule]


@dataclass(frozen=True)
class Target:
    """An official class: ours, the rules of its parameters, and a last word about the result."""

    ours: str
    rules: Rules
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict


def same(*names: str) -> dict[str, Rule]:
    return {name: name for name in names}


def ignored(why: str, *names: str) -> dict[str, Rule]:
    return {name: Ignored(why) for name in names}


def only(*values: Any) -> Choice:
    return Choice(None, dict.fromkeys(values))


# ------------------------------------------------------------------ adapters
def _bert(params: dict[str, Any]) -> dict[str, Any]:
    # what the official class has fixed: x-transformers' heads, and an output head that nobody reads
    vocabulary = str(ASSETS / "bert" / "vocab.txt")
    return {"vocab_file": vocabulary, "heads": 8, "dim_head": 64, "logits_head": True, **params}


def _word(params: dict[str, Any]) -> dict[str, Any]:
    """EmbeddingManager: lists are lists, and what its switches mean here."""
    found = {**params, "placeholders": _listed(params.get("placeholders"))}
    found["inits"] = _listed(params.get("inits"))
    k = params.get("num_vectors", 1)
    if found.pop("progressive_words", False) and isinstance(k, int):
        found["progressive"] = [PROGRESSIVE_SCALE * i for i in range(1, k)]
    if not found.get("init_embedding"):
        found.pop("init_embedding", None)
    elif found["inits"]:  # the official code loads the file over what the words gave
        found["inits"] = []
    return found


def _listed(value: Any) -> list[str]:
    items = [] if value is None else value if isinstance(value, list | tuple) else [value]
    return [str(item) for item in items]


def _pictures(params: dict[str, Any]) -> dict[str, Any]:
    cropped = params.pop("center_crop", False)
    return merge(params, {"pictures": {"fit": "crop"}}) if cropped else params


def _style(params: dict[str, Any]) -> dict[str, Any]:
    return merge(_pictures(params), {"captions": {"templates": "style"}})


# ------------------------------------------------------------------ the table
_UNUSED = "bookkeeping of the official trainer"
_LATENTS = "pictures are encoded once and batches are drawn without an end: no workers, no epochs"
_FIELDS = "a batch here has types, not names"

MODEL = "ldm.models.diffusion.ddpm.LatentDiffusion"
DATA = "main.DataModuleFromConfig"
_PICTURES = ("ldm.data.personalized.PersonalizedBase", "ldm.data.personalized_style.PersonalizedBase")
_TEXT = tuple(
    f"ldm.modules.encoders.modules.{name}"
    for name in ("BERTEmbedder", "FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder")
)
#: Pillow's names; "linear" is an old one of "bilinear"
_FILTERS = {"linear": "bilinear", **{name: name for name in ("bilinear", "bicubic", "lanczos")}}
_PICTURE_RULES: Rules = {
    "data_root": "images",
    "size": "size",
    "set": only("train", "val"),
    "interpolation": Choice("pictures.interpolation", _FILTERS),
    "coarse_class_text": "captions.coarse_class",
    "placeholder_token": "placeholder_token",
    "per_image_tokens": "image_words",
    "flip_p": "pictures.flip_p",
    "center_crop": "center_crop",
    "mixing_prob": "captions.mixing_prob",
    **ignored(_LATENTS, "repeats"),
}

TABLE: dict[str, Target] = {
    MODEL: Target(
        "",
        {
            "linear_start": "model.schedule.linear_start",
            "linear_end": "model.schedule.linear_end",
            "timesteps": "model.schedule.timesteps",
            "beta_schedule": "model.schedule.kind",
            "scale_factor": "model.scale_factor",
            "parameterization": "model.parameterization",
            "image_size": "latent_size",
            "ckpt_path": "model.checkpoint",
            "l_simple_weight": "model.loss.l_simple_weight",
            "original_elbo_weight": "model.loss.original_elbo_weight",
            "logvar_init": "model.loss.logvar_init",
            "learn_logvar": "model.loss.learn_logvar",
            "embedding_reg_weight": "regularization",
            "unfreeze_model": "unfreeze_model",
            "model_lr": "model_lr",
            "unet_config": Node("model.unet", ("ldm.modules.diffusionmodules.openaimodel.UNetModel",)),
            "first_stage_config": Node("model.autoencoder", ("ldm.models.autoencoder.AutoencoderKL",)),
            "cond_stage_config": Node("model.text", _TEXT),
            "personalization_config": Node("", ("ldm.modules.embedding_manager.EmbeddingManager",)),
            "scheduler_config": Node(None, ("ldm.lr_scheduler.LambdaLinearScheduler",)),
            "conditioning_key": only("crossattn"),
            "num_timesteps_cond": only(1, None),
            "scale_by_std": only(False),
            "loss_type": only("l2"),
            **ignored(_FIELDS, "first_stage_key", "cond_stage_key"),
            **ignored("the autoencoder's embed_dim says it", "channels"),
            **ignored("true in files where nothing of the text encoder trains", "cond_stage_trainable"),
            **ignored("EMA weights of a checkpoint are found when it is loaded", "use_ema"),
            **ignored(_UNUSED, "monitor", "log_every_t"),
        },
    ),
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": Target(
        "ldm.models.unet.UNetModel",
        {
            **same("in_channels", "out_channels", "model_channels", "num_res_blocks"),
            **same("attention_resolutions", "channel_mult", "num_heads", "num_head_channels"),
            **same("transformer_depth", "context_dim", "use_linear_in_transformer", "dropout"),
            **same("use_checkpoint"),  # does nothing in the official code; here it saves memory
            "use_spatial_transformer": only(True),
            "use_scale_shift_norm": only(False),
            "resblock_updown": only(False),
            "conv_resample": only(True),
            "dims": only(2),
            **ignored("the network takes any size", "image_size"),
            **ignored("no difference with a spatial transformer", "legacy"),
            **ignored("the trainer's precision says it", "use_fp16"),
        },
    ),
    "ldm.models.autoencoder.AutoencoderKL": Target(
        "ldm.models.autoencoder.AutoencoderKL",
        {
            "embed_dim": "embed_dim",
            "ddconfig": Inside(
                {
                    **same("z_channels", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks"),
                    **same("dropout"),
                    "double_z": only(True),
                    "attn_resolutions": only(()),
                    "attn_type": only("vanilla", "vanilla-xformers"),
                    **ignored("the network takes any size", "resolution"),
                }
            ),
            "lossconfig": Node(None, ("torch.nn.Identity",)),
            **ignored(_UNUSED, "monitor"),
        },
    ),
    "ldm.modules.encoders.modules.BERTEmbedder": Target(
        "ldm.text.bert.BertConditioner",
        {
            **same("n_embed", "n_layer", "vocab_size", "max_seq_len"),
            "use_tokenizer": only(True),
            **ignored("the trainer places the model", "device"),
        },
        _bert,
    ),
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": Target(
        "ldm.text.clip.ClipConditioner",
        {**same("version", "max_length"), **ignored("the trainer places the model", "device")},
    ),
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder": Target(
        "ldm.text.clip.OpenClipConditioner",
        {
            "max_length": "max_length",
            "arch": only("ViT-H-14"),
            "layer": only("penultimate"),
            **ignored("the weights come from the checkpoint", "version"),
            **ignored("frozen means frozen, but by unfreeze_model", "freeze"),
            **ignored("the trainer places the model", "device"),
        },
    ),
    "ldm.modules.embedding_manager.EmbeddingManager": Target(
        "",
        {
            "placeholder_strings": "placeholders",
            "initializer_words": "inits",
            "num_vectors_per_token": "num_vectors",
            "progressive_words": "progressive_words",
            "per_image_tokens": "image_vectors",
            "embedding_manager_ckpt": "init_embedding",
            "shuffle_mode": only("off", False, None),
            **ignored("the official class takes it and does nothing with it", "coarse_class_text"),
        },
        _word,
    ),
    DATA: Target(
        "",
        {
            "batch_size": "batch_size",
            "train": Node("", _PICTURES),
            # a fixed batch is measured instead, whatever their parameters say
            "validation": Node(None, _PICTURES, read=False),
            "test": Node(None, _PICTURES, read=False),
            **ignored(_LATENTS, "num_workers", "wrap", "shuffle_test_loader", "use_worker_init_fn"),
        },
    ),
    _PICTURES[0]: Target("", _PICTURE_RULES, _pictures),
    _PICTURES[1]: Target("", _PICTURE_RULES, _style),
    "main.ImageLogger": Target(
        "",
        {
            "batch_frequency": "trainer.image_every",
            **ignored("the config's prompts say what is drawn", "max_images", "log_images_kwargs"),
            **ignored(_UNUSED, "increase_log_steps", "clamp", "rescale", "log_first_step"),
        },
    ),
    "pytorch_lightning.callbacks.ModelCheckpoint": Target(
        "",
        {
            "every_n_train_steps": "trainer.checkpoint_every",
            **ignored("the newest is kept, and every word", "save_top_k", "save_last", "monitor"),
            **ignored(_UNUSED, "verbose", "filename", "dirpath"),
        },
    ),
    "ldm.lr_scheduler.LambdaLinearScheduler": Target(
        "",
        ignored("inversion has a constant rate", "warm_up_steps", "cycle_lengths", "f_start", "f_max")
        | ignored("inversion has a constant rate", "f_min", "verbosity_interval"),
    ),
    "torch.nn.Identity": Target("", {}),
}

#: the file as a whole
FILE: Rules = {
    "model": Inside(
        {
            "base_learning_rate": "optim.lr",
            "target": only(MODEL),
            "params": Inside(TABLE[MODEL].rules),
        }
    ),
    "data": Node("", (DATA,)),
    "lightning": Inside(
        {
            "modelcheckpoint": Node("", ("pytorch_lightning.callbacks.ModelCheckpoint",)),
            "callbacks": Inside({"image_logger": Node("", ("main.ImageLogger",))}),
            "trainer": Inside(
                {
                    "max_steps": "trainer.max_steps",
                    "accumulate_grad_batches": "trainer.accumulate",
                    "gradient_clip_val": "optim.clip_norm",
                    "log_every_n_steps": "trainer.log_every",
                    "precision": Choice(
                        "trainer.precision", {16: "16-mixed", 32: "32-true", "bf16": "bf16-mixed"}
                    ),
                    **ignored("--gpus says it", "gpus", "accelerator", "strategy", "devices"),
                    **ignored(_LATENTS, "max_epochs", "check_val_every_n_epoch", "val_check_interval"),
                    **ignored(_UNUSED, "benchmark", "num_sanity_val_steps", "find_unused_parameters"),
                }
            ),
            **ignored("`logging.loggers` says it", "logger"),
            **ignored("--gpus says it", "gpus", "accelerator", "strategy", "devices"),
            **ignored(_UNUSED, "find_unused_parameters", "benchmark"),
        }
    ),
}
