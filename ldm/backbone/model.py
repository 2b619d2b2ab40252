"""The text-to-image model as one object: autoencoder, UNet, text conditioner, manager and schedule.

This is the way of the data (``docs/architecture.md``): pictures to latents and back, prompts to contexts
through the embedding manager, noisy latents to the noise in them. It owns no training and no sampling loop.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.backbone.prompts import encode
from ldm.config import instantiate
from ldm.diffusion.condition import Condition, condition_of
from ldm.diffusion.loss import DiffusionLoss, LossTerms
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError
from ldm.io import checkpoints
from ldm.models.attention import AttentionMaps
from ldm.models.autoencoder import AutoencoderKL, DiagonalGaussian
from ldm.models.unet import UNetModel
from ldm.official.quirks import FIXED, CompatConfig
from ldm.ranges import Range
from ldm.text.conditioner import TextConditioner
from ldm.words.manager import EmbeddingManager
from ldm.words.room import CutNotices, room_of
from ldm.words.start import encoder_outputs, initial_vectors


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule.

    Attributes:
        timesteps: Number T of noise levels.
        linear_start: First beta of the ``linear`` schedule.
        linear_end: Last beta of the ``linear`` schedule.
        kind: ``linear`` (in the square root of beta, as in LDM and Stable Diffusion), ``cosine``,
            ``sqrt_linear`` or ``sqrt``.
        betas: All T betas, instead of a ``kind``.
        zero_snr: Rescale the schedule so that no signal is left at the last level (Lin et al. 2023).
    """

    timesteps: Annotated[int, Range(2, 100_000)] = 1000
    linear_start: float = 0.00085
    linear_end: float = 0.012
    kind: str = "linear"
    betas: tuple[float, ...] = ()
    zero_snr: bool = False


@dataclass(frozen=True)
class LossConfig:
    """Weights of the diffusion loss; the defaults are the paper's plain squared error.

    Attributes:
        l_simple_weight: Weight of the squared error.
        original_elbo_weight: Weight of the squared error as the variational bound weights each timestep.
        logvar_init: Start of the logarithmic variance of each timestep.
        learn_logvar: Learn that variance.
        min_snr_gamma: Bound gamma of min-SNR weighting (Hang et al. 2023); ``null`` weights all timesteps
            alike.
    """

    l_simple_weight: float = 1.0
    original_elbo_weight: float = 0.0
    logvar_init: float = 0.0
    learn_logvar: bool = False
    min_snr_gamma: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    """What ``ldm.load`` reads: the key ``model`` of a YAML file.

    Attributes:
        autoencoder: ``{target: class, params: {...}}`` of the autoencoder.
        unet: The same of the UNet.
        text: The same of the text encoder.
        image_size: Side in pixels of the pictures that the model was trained on.
        scale_factor: Factor on latents before diffusion.
        parameterization: What the UNet predicts: ``eps``, ``v`` or ``x0``.
        schedule: The noise schedule.
        loss: Weights of the loss.
        checkpoint: File of the weights, relative to the YAML file.
    """

    autoencoder: dict
    unet: dict
    text: dict
    image_size: Annotated[int, Range(1, 2**14)] = 256
    scale_factor: float = 0.18215
    parameterization: str = "eps"
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    checkpoint: str | None = None


class LatentDiffusion(nn.Module):
    """Autoencoder, UNet, text conditioner, embedding manager and schedule (Rombach et al. 2022).

    Attributes:
        latent_shape: (C, h, w) of the latents at ``image_size``.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        unet: UNetModel,
        text: TextConditioner,
        *,
        image_size: int,
        scale_factor: float,
        parameterization: str = "eps",
        schedule: ScheduleConfig | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__()
        schedule, loss = schedule or ScheduleConfig(), loss or LossConfig()
        self.autoencoder, self.unet, self.text = autoencoder, unet, text
        self.manager = EmbeddingManager(
            text.width,
            len(text.token_table),
            text.tokenizer.end_id,
            layers=unet.num_transformers,
            timesteps=schedule.timesteps,
        )
        self.schedule = Schedule(**vars(schedule))
        self.diffusion_loss = DiffusionLoss(
            self.schedule,
            parameterization,
            loss.l_simple_weight,
            loss.original_elbo_weight,
            loss.logvar_init,
            loss.learn_logvar,
            loss.min_snr_gamma,
        )
        self.parameterization, self.scale_factor = parameterization, scale_factor
        self.image_size = image_size
        side = image_size // autoencoder.factor
        self.latent_shape = (autoencoder.embed_dim, side, side)
        self.config: ModelConfig | None = None  # what it was built from
        self.inversion_defaults: dict[str, Any] = {}  # settings that suit this model
        self._fingerprint: str | None = None
        self.cuts = CutNotices()

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The frozen parts under the prefixes of the public checkpoint layout."""
        return {
            "model.diffusion_model.": self.unet,
            "first_stage_model.": self.autoencoder,
            "cond_stage_model.": self.text,
        }

    @property
    def device(self) -> torch.device:
        return self.text.token_table.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the weights of UNet and text conditioner are stored and computed."""
        return self.text.token_table.dtype

    def freeze(self) -> LatentDiffusion:
        """Frozen means frozen: no gradients and evaluation mode for all but the manager."""
        for part in self.parts.values():
            part.requires_grad_(False).eval()
        return self

    def unfreeze(self) -> LatentDiffusion:
        """Let UNet and text conditioner train as well (pivotal tuning); the autoencoder stays frozen."""
        self.weights_change()
        self.unet.requires_grad_(True)
        self.text.requires_grad_(True)
        return self

    def weights_change(self) -> None:
        """It will be another model: forget what was computed from its weights."""
        self._fingerprint = None

    def train(self, mode: bool = True) -> LatentDiffusion:
        """As ``nn.Module.train``, but a part without trainable weights stays in evaluation mode."""
        parts = self.parts.values()
        frozen = [part for part in parts if not any(p.requires_grad for p in part.parameters())]
        self.training = mode
        for child in self.children():  # each once: there are hundreds of modules below
            child.train(mode and child not in frozen)
        return self

    def with_own_words(self) -> LatentDiffusion:
        """The same model, its weights shared, which learns words of its own: a placeholder that is
        added to one of the two is ordinary text to the other."""
        twin, text = copy.copy(self), copy.copy(self.text)
        twin._modules = dict(self._modules)  # else the twin's parts would become this model's too
        text.tokenizer = copy.deepcopy(self.text.tokenizer)
        twin.text, twin.manager = text, copy.deepcopy(self.manager)
        twin.cuts = CutNotices()
        return twin

    def fingerprint(self) -> str:
        """sha256 of the frozen weights: names the base model an embedding belongs to."""
        if self._fingerprint is None:
            self._fingerprint = checkpoints.fingerprint(self.parts)
        return self._fingerprint

    # ------------------------------------------------------------------ pictures and latents

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Posterior over unscaled latents (B, C, h, w) of pictures (B, 3, H, W) in [-1, 1]."""
        return self.autoencoder.encode(images.to(self.device, self.autoencoder.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [-1, 1], float32, of scaled latents (B, C, h, w)."""
        return self.autoencoder.decode((z / self.scale_factor).to(self.autoencoder.dtype)).float()

    # ------------------------------------------------------------------ prompts

    def add_placeholder(
        self,
        placeholder: str,
        vectors: Tensor | None = None,
        *,
        init: str | None = None,
        init_from: Literal["embedding", "encoder"] = "embedding",
        init_scale: float = 1.0,
        num_vectors: int = 1,
        word: Mapping[str, Any] | str = "plain",
        parts: Mapping[str, Tensor] | None = None,
        progressive: tuple[int, ...] | None = None,
        generator: torch.Generator | None = None,
        compat: CompatConfig = FIXED,
    ) -> int:
        """Make a string a word of this model; returns its private token id.

        Args:
            placeholder: any string.
            vectors: (K, D) to use as they are, or in the shape of the kind's files; else they start from
            init: a phrase, or ``None`` for the vocabulary's mean.
            init_from: the phrase's token embeddings, or what the text encoder gives for them (CrossInit).
            init_scale: factor on the start; below 1 the first steps turn the vector further.
            num_vectors: K, when ``vectors`` is not given.
            word: the kind of word (``ldm.words.kinds``), or a mapping ``{kind: ..., setting: ...}``; one
                with several sets of vectors starts all of them from (K, D).
            parts: what the word's file holds beside its vectors.
            progressive: optimiser steps at which the second, third, ... vector comes into use.
            generator: of all that starts at random (default: seed 0).
            compat: quirks of the official code's start and placeholder.

        Raises:
            UserError: an init phrase with words that are not in the vocabulary, vectors of another
                width, or a placeholder that ``compat.takes_word`` refuses.
        """
        tokenizer = self.text.tokenizer
        if vectors is None:
            ids = tokenizer.words(init) if init else []
            if init and (not ids or tokenizer.unknown_id in ids):
                raise UserError(
                    f"the init phrase {init!r} has words that this model does not know; choose others"
                )
            table, position = self.text.token_table, self.text.init_position
            if init and init_from == "encoder":  # whose outputs know their positions
                table, position = encoder_outputs(self.text, init), None
                ids = list(range(len(table)))
            generator = generator or torch.Generator().manual_seed(0)
            vectors = init_scale * initial_vectors(
                table, ids, num_vectors, generator, compat=compat, position=position
            )
        vectors, room = torch.atleast_2d(vectors), room_of(tokenizer, self.manager)
        if vectors.shape[-2] > room:
            raise UserError(
                f"{placeholder!r} has {vectors.shape[-2]} vectors, and a prompt of this model holds {room}: "
                "use fewer"
            )
        token_id = tokenizer.add_placeholder(placeholder, takes_word=compat.takes_word)
        name = tokenizer.decode_id(token_id)
        try:
            self.manager.add(
                name,
                token_id,
                vectors,
                progressive,
                word=word,
                parts=parts,
                vocabulary=self.text.token_table,
                generator=generator,
            )
        except ValueError:
            if name not in self.manager.placeholders:  # else it was there before, and stays
                tokenizer.remove_placeholder(name)
            raise
        return token_id

    def remove_placeholder(self, placeholder: str) -> None:
        """Forget a placeholder and its vectors."""
        tokenizer = self.text.tokenizer
        # the tokenizer adds the string in its one spelling, or knows it already
        name = tokenizer.decode_id(tokenizer.add_placeholder(placeholder))
        tokenizer.remove_placeholder(name)
        self.manager.remove(name)

    def condition(
        self, prompts: str | list[str], step: int | Tensor | None = None, truncate: int | None = None
    ) -> Condition:
        """What the UNet is told by B prompts, or by one; each different prompt is encoded once.

        Args:
            prompts: B prompts, or one.
            step: optimiser step of progressive words, one for all or a (B,) tensor; ``None``: grown.
            truncate: how many of their first units count of words that can be cut (``space_time``).

        Raises:
            UserError: such a word has fewer units than ``truncate``.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        self.cuts.tell(self.text.tokenizer, self.manager, dict.fromkeys(prompts))
        return encode(self.text, self.manager, prompts, step, truncate)

    # ------------------------------------------------------------------ diffusion

    def predict(
        self, z_t: Tensor, t: Tensor, cond: Condition | Tensor, maps: AttentionMaps | None = None
    ) -> Tensor:
        """The UNet's own output (eps, v or x0) at noisy latents (B, C, h, w), t (B,) int64.

        ``cond`` is a :class:`Condition` of B rows, or a plain tensor (B, L, D), one context for all layers.
        ``maps`` is told what the layers of its resolution read of it.
        """
        context = condition_of(cond).at(t).to(self.dtype)
        return self.unet(z_t.to(self.dtype), t, context.layers, maps)

    def eps(self, z_t: Tensor, t: Tensor, cond: Condition | Tensor) -> Tensor:
        """The noise in z_t (B, C, h, w), whatever the UNet's parameterization."""
        return self.schedule.to_eps(self.predict(z_t, t, cond), z_t, t, self.parameterization)

    def q_sample(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents z (B, C, h, w) noised to timesteps t (B,)."""
        return self.schedule.q_sample(z, t, noise)

    def loss_terms(
        self,
        z: Tensor,
        cond: Condition | Tensor,
        t: Tensor,
        noise: Tensor,
        mask: Tensor | None = None,
        maps: AttentionMaps | None = None,
    ) -> LossTerms:
        """All terms of the denoising loss, per sample; a mask (B, 1, h, w) says where it counts."""
        z_t = self.q_sample(z, t, noise)
        return self.diffusion_loss(self.predict(z_t, t, cond, maps), z, z_t, t, noise, mask)

    def loss(self, z: Tensor, cond: Condition | Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The scalar that training minimises (Gal et al. 2022, eq. 2)."""
        return self.loss_terms(z, cond, t, noise).total


class _NoNormal(TorchFunctionMode):
    """Leaves out normal initialisation, which on ``meta`` imports a compiler: a second and 150 MB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(config: ModelConfig, *, empty: bool = False) -> LatentDiffusion:
    """A model of this config with random weights; ``empty``: none yet, its parts are on ``meta``."""
    with ExitStack() as stack:
        if empty:
            stack.enter_context(torch.device("meta"))
            stack.enter_context(_NoNormal())
        parts = [instantiate(node) for node in (config.autoencoder, config.unet, config.text)]
    model = LatentDiffusion(
        *parts,
        image_size=config.image_size,
        scale_factor=config.scale_factor,
        parameterization=config.parameterization,
        schedule=config.schedule,
        loss=config.loss,
    )
    model.config = config
    return model
