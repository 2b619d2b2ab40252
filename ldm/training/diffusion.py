"""Text-to-image training of the latent diffusion model: UNet and text conditioner together.

The autoencoder is frozen and not even called: pictures were encoded once (``ldm.data.bank``).
Captions are dropped with probability ``caption_dropout`` for classifier-free guidance (Ho & Salimans
2022); weights are averaged by Lightning's ``EMAWeightAveraging``. A caption may leave out the thing's
name: its portraits tell it (``ldm.training.picture_word``).
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.data.bank import LatentBank
from ldm.data.pictures import UNNAMED
from ldm.data.stream import StepStream
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.seeding import generator
from ldm.training import optim
from ldm.training.picture_word import PictureWords
from ldm.training.timesteps import TimestepConfig, draw_timesteps


class DiffusionTraining(pl.LightningModule):
    """Trains ``model.unet`` and ``model.text`` on a bank of latents.

    Args:
        model: its autoencoder and manager stay as they are.
        bank: posteriors and captions.
        batch_size: latents a step.
        caption_dropout: share of captions replaced by the empty prompt.
        seed: of order, posterior noise, timesteps and diffusion noise, each a function of the step.
        timesteps: distribution of the noise levels.
        compiled: the UNet goes through ``torch.compile``, which pays after some minutes.
        picture_words: stand where captions hide the name.
    """

    model: LatentDiffusion
    bank: LatentBank

    def __init__(
        self,
        model: LatentDiffusion,
        bank: LatentBank,
        optim_config: optim.OptimConfig,
        *,
        batch_size: int,
        max_steps: int,
        caption_dropout: float,
        seed: int,
        timesteps: TimestepConfig | None = None,
        compiled: bool = False,
        picture_words: PictureWords | None = None,
    ) -> None:
        super().__init__()
        # model and bank are no submodules: the checkpoint and the average hold nothing frozen
        self.unet: nn.Module = model.unet
        self.text: nn.Module = model.text
        self.picture_words = picture_words
        if model.diffusion_loss.logvar.requires_grad:
            self.diffusion_loss: nn.Module = model.diffusion_loss
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "bank", bank)
        self.optim_config, self.batch_size, self.max_steps = optim_config, batch_size, max_steps
        self.caption_dropout, self.seed = caption_dropout, seed
        self.timesteps, self.compiled = timesteps or TimestepConfig(), compiled
        if picture_words is None and any(UNNAMED in caption for caption in bank.captions):
            raise UserError(f"captions of these latents hide names ({UNNAMED}); set picture_words=true")
        self.num_timesteps: int = model.schedule.num_timesteps
        self._ids = model.text.tokenize(bank.captions).to(torch.int32)
        self._empty = model.text.tokenize([""])

    def make_batch(self, step: int) -> dict[str, Tensor]:
        """Latents, caption ids, timesteps and noise of a step; a pure function of it."""
        z, rows = self.bank.batch(step, self.batch_size, self.seed)
        rng = generator(self.seed, "diffusion", step)
        ids = self._ids[rows].long()
        drop = torch.rand(len(rows), 1, generator=rng) < self.caption_dropout
        return {
            "z": z * self.model.scale_factor,
            "ids": torch.where(drop, self._empty, ids),
            "subjects": self.bank.subjects[rows],
            "t": draw_timesteps(len(rows), self.num_timesteps, self.timesteps, rng),
            "noise": torch.randn(z.shape, generator=rng),
        }

    def train_dataloader(self) -> Any:
        first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return StepStream(self.make_batch, first).loader()

    def on_fit_start(self) -> None:
        # Lightning has moved its submodules; the schedule and the autoencoder are none of them
        self.model.to(self.device)
        if self.compiled:
            self.unet.compile()

    def configure_optimizers(self) -> Any:
        return optim.configure(self.parameters(), self.optim_config, self.max_steps)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        model = self.model
        ids, embeds = batch["ids"], model.text.embed(batch["ids"])
        if self.picture_words is not None:
            embeds = self.picture_words.put(ids, embeds, batch["subjects"])
        cond = model.text.encode(embeds, ids)
        terms = model.loss_terms(batch["z"], cond, batch["t"], batch["noise"])
        late = batch["t"] > model.schedule.num_timesteps // 2
        self.log("train/loss", terms.total, prog_bar=True)
        # above half the schedule the layout is decided, below it the detail
        self.log("train/simple_noisy", terms.simple[late].mean())
        self.log("train/simple_clean", terms.simple[~late].mean())
        return terms.total
