"""Text-to-image training of the latent diffusion model: UNet and text conditioner together.

The autoencoder is frozen. Latents were encoded once, or pictures are drawn anew each step and encoded on the
way (``ldm.pretraining.examples``). Captions are dropped with probability ``caption_dropout`` for
classifier-free guidance (Ho & Salimans 2022); weights are averaged by Lightning's ``EMAWeightAveraging``.
A caption may leave out the thing's name: its portraits tell it (``ldm.pretraining.portrait_words``).
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.pretraining.examples import Examples, from_bytes
from ldm.pretraining.portrait_words import PictureWords
from ldm.pretraining.sources import UNNAMED
from ldm.seeding import generator
from ldm.training import optim
from ldm.training.stream import StepStream
from ldm.training.timesteps import TimestepConfig, draw_timesteps


class DiffusionTraining(pl.LightningModule):
    """Trains ``model.unet`` and ``model.text`` on captioned latents or pictures.

    Args:
        model: its autoencoder and manager stay as they are.
        examples: where batches come from.
        batch_size: pictures a step.
        caption_dropout: share of captions replaced by the empty prompt.
        seed: of order, posterior noise, timesteps and diffusion noise, each a function of the step.
        timesteps: distribution of the noise levels.
        compiled: the UNet goes through ``torch.compile``, which pays after some minutes.
        picture_words: stand where captions hide the name.
        workers: processes that make batches ahead; 0 makes them in this one.
    """

    model: LatentDiffusion
    examples: Examples

    def __init__(
        self,
        model: LatentDiffusion,
        examples: Examples,
        optim_config: optim.OptimConfig,
        *,
        batch_size: int,
        max_steps: int,
        caption_dropout: float,
        seed: int,
        timesteps: TimestepConfig | None = None,
        compiled: bool = False,
        picture_words: PictureWords | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        # model and examples are no submodules: the checkpoint and the average hold nothing frozen
        self.unet: nn.Module = model.unet
        self.text: nn.Module = model.text
        self.picture_words = picture_words
        self.register_buffer("scale_factor", torch.tensor(model.scale_factor))
        if model.diffusion_loss.logvar.requires_grad:
            self.diffusion_loss: nn.Module = model.diffusion_loss
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "examples", examples)
        self.optim_config, self.batch_size, self.max_steps = optim_config, batch_size, max_steps
        self.caption_dropout, self.seed = caption_dropout, seed
        self.timesteps, self.compiled, self.workers = timesteps or TimestepConfig(), compiled, workers
        if picture_words is None and examples.hides_names():
            raise UserError(f"some captions hide names ({UNNAMED}); set picture_words=true")
        self.num_timesteps: int = model.schedule.num_timesteps
        self._empty = model.text.tokenize([""])

    def make_batch(self, step: int) -> dict[str, Any]:
        """Latents or pictures, caption ids, things and timesteps of a step; a pure function of it."""
        x, ids, subjects = self.examples.batch(step, self.batch_size, self.seed, self.model.text)
        rng = generator(self.seed, "diffusion", step)
        drop = torch.rand(len(x), 1, generator=rng) < self.caption_dropout
        return {
            "step": step,
            "x": x,
            "ids": torch.where(drop, self._empty, ids),
            "subjects": subjects,
            "t": draw_timesteps(len(x), self.num_timesteps, self.timesteps, rng),
        }

    def latents(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Scaled latents (n, C, h, w) float32 of a batch's ``x``; pictures are encoded in float32."""
        if x.dtype != torch.uint8:
            return x * self.model.scale_factor
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            posterior = self.model.autoencoder.encode(from_bytes(x))
            return posterior.sample(rng) * self.model.scale_factor

    def train_dataloader(self) -> Any:
        first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return StepStream(self.make_batch, first).loader(self.workers)

    def on_fit_start(self) -> None:
        # Lightning has moved its submodules; the schedule and the autoencoder are none of them
        self.model.to(self.device)
        if self.compiled:
            self.unet.compile()

    def configure_optimizers(self) -> Any:
        ends = (self.model.unet.input_blocks[0], self.model.unet.out)
        return optim.configure_network([self], self.optim_config, self.max_steps, ends)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        model = self.model
        rng = generator(self.seed, "noise", batch["step"], device=self.device)
        z = self.latents(batch["x"], rng)
        noise = torch.randn(z.shape, generator=rng, device=z.device)
        ids, embeds = batch["ids"], model.text.embed(batch["ids"])
        if self.picture_words is not None:
            embeds = self.picture_words.put(ids, embeds, batch["subjects"])
        cond = model.text.encode(embeds, ids)
        terms = model.loss_terms(z, cond, batch["t"], noise)
        self.log("train/loss", terms.total, prog_bar=True)
        # above half the schedule the layout is decided, below it the detail
        late = (batch["t"] > self.num_timesteps // 2).float()
        for name, chosen in (("noisy", late), ("clean", 1 - late)):
            self.log(f"train/simple_{name}", (terms.simple * chosen).sum() / chosen.sum())
        return terms.total
