"""The step and the sampling that users of diffusers and transformers would write, on the same weights.

Textual Inversion as in their training example: pictures are read, resized and encoded in every step,
the whole embedding table is AdamW's, and the rows of all other words are put back afterwards.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders import single_file_utils as convert
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.backbone.model import LatentDiffusion
from ldm.inversion.concept import Concept
from ldm.inversion.templates import render, templates

WORD = "<peer>"
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
BERT_TOP = {
    "transformer.token_emb.": "model.embed_tokens.",
    "transformer.pos_emb.emb.": "model.embed_positions.",
    "transformer.norm.": "model.layer_norm.",
}
BERT_PARTS = {
    "to_q.": "self_attn.q_proj.",
    "to_k.": "self_attn.k_proj.",
    "to_v.": "self_attn.v_proj.",
    "to_out.": "self_attn.out_proj.",
    "net.0.0.": "fc1.",
    "net.2.": "fc2.",
}


class Pictures(Dataset):
    """Their dataset: a picture and a prompt an item, resized anew each time."""

    def __init__(self, peer: Peer, concept: Concept, repeats: int = 100) -> None:
        arrays = ((concept.images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(array) for array in arrays]
        self.peer, self.repeats, self.templates = peer, repeats, templates("object")

    def __len__(self) -> int:
        return self.repeats * len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        side = self.peer.ours.image_size
        image = self.images[index % len(self.images)].resize((side, side), Image.Resampling.BICUBIC)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
        line = self.templates[int(torch.randint(len(self.templates), ()))]
        return {"pixels": pixels, "ids": self.peer.ids([render(line, WORD)])[0]}


class Peer:
    """Models, data and optimiser of their training loop.

    Args:
        ours: whose weights are copied; the two must agree (:meth:`check`).
        concept: the pictures.
        batch: pictures a step.
        lr: learning rate.
    """

    def __init__(self, ours: LatentDiffusion, concept: Concept, batch: int, lr: float = 5e-4) -> None:
        self.ours, self.device, self.dtype = ours, ours.device, ours.dtype
        self.unet = their_unet(ours).to(self.device, self.dtype)
        self.vae = their_autoencoder(ours).to(self.device, self.dtype)
        self.text, self.table = their_text(ours)
        self.text.to(self.device)  # float32, as their example keeps what trains
        for module in (self.unet, self.vae, self.text):
            module.requires_grad_(False).eval()
        self.word_id = len(self.table.weight) - 1
        self.tokenizer = copy.deepcopy(ours.text.tokenizer)
        self.tokenizer.add_placeholder(WORD)
        self.table.weight.requires_grad_(True)
        self.original = self.table.weight.detach().clone()
        self.optimizer = torch.optim.AdamW([self.table.weight], lr=lr, weight_decay=1e-2)
        self.schedule = DDPMScheduler(**self._schedule())
        self.alphas_cumprod = self.schedule.alphas_cumprod.to(self.device)
        self.loader = DataLoader(Pictures(self, concept), batch_size=batch, shuffle=True)
        self._batches = iter(self.loader)

    def _schedule(self) -> dict[str, Any]:
        ours = self.ours.schedule
        return {
            "num_train_timesteps": ours.num_timesteps,
            "trained_betas": ours.betas.cpu().numpy(),
            "prediction_type": PREDICTION[self.ours.parameterization],
        }

    def ids(self, prompts: list[str]) -> Tensor:
        """Token ids; the new word is the row that was added at the end of the table."""
        ids = self.tokenizer(prompts)
        return torch.where(ids == self.tokenizer.placeholders[WORD], self.word_id, ids)

    def context(self, ids: Tensor) -> Tensor:
        """(B, L, D) of ids (B, L)."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.text(ids, return_dict=False)[0]

    def step(self) -> None:
        """One optimisation step."""
        try:
            batch = next(self._batches)
        except StopIteration:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        pixels, ids = batch["pixels"].to(self.device, self.dtype), batch["ids"].to(self.device)
        with torch.no_grad():
            z = self.vae.encode(pixels).latent_dist.sample() * self.ours.scale_factor
        noise = torch.randn_like(z)
        t = torch.randint(0, self.ours.schedule.num_timesteps, (len(z),), device=self.device)
        z_t = self.schedule.add_noise(z, noise, t)
        context = self.context(ids).to(self.dtype)
        out = self.unet(z_t, t, context).sample
        target = noise if self.ours.parameterization == "eps" else self.schedule.get_velocity(z, noise, t)
        F.mse_loss(out.float(), target.float()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        others = torch.ones(len(self.table.weight), dtype=torch.bool)
        others[self.word_id] = False
        with torch.no_grad():
            self.table.weight[others] = self.original[others]

    @torch.no_grad()
    def sample(self, prompts: list[str], steps: int, scale: float) -> Tensor:
        """Pictures (B, 3, H, W): DDIM with guidance, as their pipelines do it."""
        scheduler = DDIMScheduler(**self._schedule(), clip_sample=False, set_alpha_to_one=False)
        scheduler.set_timesteps(steps)
        ids = self.ids(["" for _ in prompts] + prompts).to(self.device)
        contexts = self.context(ids).to(self.dtype)
        z = torch.randn(len(prompts), *self.ours.latent_shape, device=self.device, dtype=self.dtype)
        for t in scheduler.timesteps:
            out = self.unet(torch.cat([z, z]), t, contexts).sample
            without, with_ = out.chunk(2)
            z = scheduler.step(without + scale * (with_ - without), t, z).prev_sample
        return self.vae.decode(z / self.ours.scale_factor).sample

    @torch.no_grad()
    def check(self) -> float:
        """Largest relative difference of UNet, text tower and autoencoder from ours."""
        rng = torch.Generator().manual_seed(1)
        side = self.ours.image_size
        images = torch.randn(1, 3, side, side, generator=rng).clamp(-1, 1).to(self.device, self.dtype)
        z = torch.randn(2, *self.ours.latent_shape, generator=rng).to(self.device, self.dtype)
        t = torch.tensor([17, 900], device=self.device)
        prompts = ["a photo of a cat", ""]
        context = self.ours.condition(prompts).at(t)
        pairs = (
            (context.tokens[:, 0], self.context(self.ids(prompts).to(self.device))),
            (self.ours.predict(z, t, context), self.unet(z, t, context.tokens[:, 0].to(self.dtype)).sample),
            (self.ours.encode(images).mean, self.vae.encode(images).latent_dist.mean),
        )
        return max(float((b.float() - a.float()).norm() / a.float().norm()) for a, b in pairs)


# ------------------------------------------------------------------------------ the same weights
def their_unet(ours: LatentDiffusion) -> nn.Module:
    """diffusers' UNet with our weights, by its own converter of public checkpoints."""
    assert ours.config is not None
    params = {"transformer_depth": 1, **ours.config.unet["params"]}
    config = {
        "model": {
            "params": {
                "unet_config": {"params": params},
                "first_stage_config": {"params": {"ddconfig": ours.config.autoencoder["params"]}},
            }
        }
    }
    state = {f"model.diffusion_model.{k}": v for k, v in ours.unet.state_dict().items()}
    made = convert.create_unet_diffusers_config_from_ldm(config, state)
    if "num_head_channels" in params:  # their attention_head_dim is a number of heads
        widths = [params["model_channels"] * m for m in params["channel_mult"]]
        made["attention_head_dim"] = [w // params["num_head_channels"] for w in widths]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**made)
    unet.load_state_dict(convert.convert_ldm_unet_checkpoint(state, made), strict=True, assign=True)
    return unet


def their_autoencoder(ours: LatentDiffusion) -> nn.Module:
    """diffusers' autoencoder with our weights."""
    assert ours.config is not None
    ddconfig = {"in_channels": 3, "out_ch": 3, **ours.config.autoencoder["params"]}
    config = {"model": {"params": {"first_stage_config": {"params": {"ddconfig": ddconfig}}}}}
    state = {f"first_stage_model.{k}": v for k, v in ours.autoencoder.state_dict().items()}
    made = convert.create_vae_diffusers_config_from_ldm(config, state)
    vae = AutoencoderKL(**made)
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(state, made), strict=True)
    return vae


def their_text(ours: LatentDiffusion) -> tuple[nn.Module, nn.Embedding]:
    """transformers' CLIP or diffusers' LDM-BERT with our weights and one row more, and its table."""
    assert ours.config is not None
    state = {k: v.float() for k, v in ours.text.state_dict().items()}
    rows = len(ours.text.token_table) + 1
    if ours.config.text["target"].endswith("ClipConditioner"):
        params = {"width": 768, "layers": 12, "heads": 12, **ours.config.text["params"]}
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=rows,
                hidden_size=params["width"],
                intermediate_size=4 * params["width"],
                num_hidden_layers=params["layers"],
                num_attention_heads=params["heads"],
            )
        )
        own = set(text.state_dict())
        names = {k: k.removeprefix("transformer.") for k in state}
        names = {k: v if v in own else v.removeprefix("text_model.") for k, v in names.items()}
        table = text.get_input_embeddings()
    else:
        params = {"heads": 8, "dim_head": 64, **ours.config.text["params"]}
        text = LDMBertModel(
            LDMBertConfig(
                vocab_size=rows,
                max_position_embeddings=ours.text.max_length,
                encoder_layers=params["n_layer"],
                encoder_ffn_dim=4 * params["n_embed"],
                encoder_attention_heads=params["heads"],
                head_dim=params["dim_head"],
                d_model=params["n_embed"],
            )
        )
        names = {k: _bert_name(k) for k in state}
        table = text.model.embed_tokens
    theirs = {names[k]: v for k, v in state.items()}
    embeddings = next(name for name, p in text.named_parameters() if p is table.weight)
    for name, p in text.state_dict().items():  # one row more: the new word's
        if name == embeddings or name.startswith("to_logits") and name in theirs:
            theirs[name] = torch.cat([theirs[name], theirs[name][:1]])
        theirs.setdefault(name, p)  # an unused head, positions
    text.load_state_dict({name: theirs[name] for name in text.state_dict()})
    return text, table


def _bert_name(name: str) -> str:
    """The public name of a weight as diffusers calls it: two of our layers are one of theirs."""
    if not (layer := re.search(r"attn_layers\.layers\.(\d+)\.(\d)\.(.*)", name)):
        for ours, theirs in BERT_TOP.items():
            name = name.replace(ours, theirs)
        return name.removeprefix("transformer.")
    i, part, rest = int(layer[1]), int(layer[2]), layer[3]
    if part == 0:
        rest = f"{('self_attn', 'final')[i % 2]}_layer_norm.{rest}"
    else:
        for ours, theirs in BERT_PARTS.items():
            rest = rest.replace(ours, theirs)
    return f"model.layers.{i // 2}.{rest}"
