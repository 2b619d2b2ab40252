"""Training of ``AutoencoderKL``: reconstruction + KL, optionally with a patch discriminator.

Loss of Rombach et al. 2022 (appendix G) without the learned perceptual term, which would need
weights that cannot be downloaded everywhere:
``L1(x, x_rec) + kl_weight * KL / pixels + adversarial_weight * hinge``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ldm.pretraining.examples import from_bytes
from ldm.ranges import Amount, Count, Range
from ldm.seeding import generator
from ldm.training import optim
from ldm.training.stream import StepStream


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the autoencoder's loss.

    Attributes:
        kl_weight: Weight of the KL divergence, in nats a latent element. Keep it small, or latents tell
            little.
        mse_weight: Weight of the squared error.
        adversarial_weight: Weight of the patch discriminator; 0 leaves it out altogether.
        adversarial_start: Optimiser step at which the discriminator comes in.
        discriminator_channels: Channels of the discriminator's first layer.
        train_encoder: Whether the encoder trains. Without it latents that were made before stay valid.
    """

    kl_weight: Amount = 1e-4
    mse_weight: Amount = 1.0
    adversarial_weight: Amount = 0.0
    adversarial_start: Count = 0
    discriminator_channels: Annotated[int, Range(1, 4096)] = 64
    train_encoder: bool = True


class AutoencoderTraining(pl.LightningModule):
    """Trains an autoencoder on batches of pictures (B, 3, H, W) in [-1, 1].

    Args:
        autoencoder: the model.
        make_batch: pictures of a step as bytes (B, 3, H, W) uint8, a pure function of it.
        seed: of the posterior's noise, which is a function of the step too.
        compiled: encoder and decoder go through ``torch.compile``.
        workers: processes that make batches ahead; 0 makes them in this one.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        make_batch: Callable[[int], Tensor],
        optim_config: optim.OptimConfig,
        loss_config: AutoencoderLossConfig,
        max_steps: int,
        seed: int = 0,
        compiled: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.compiled, self.workers = compiled, workers
        self.autoencoder = autoencoder
        self.make_batch = make_batch
        self.optim_config, self.loss_config, self.seed = optim_config, loss_config, seed
        if not loss_config.train_encoder:
            for part in (autoencoder.encoder, autoencoder.quant_conv):
                if part is not None:
                    part.requires_grad_(False)
        self.adversarial = loss_config.adversarial_weight > 0
        self.discriminator: nn.Module | None = (
            PatchDiscriminator(loss_config.discriminator_channels) if self.adversarial else None
        )
        # two players need two optimisers, stepped by hand; Lightning counts the steps of both
        self.automatic_optimization = not self.adversarial
        self.scheduled_steps = max_steps // 2 if self.adversarial else max_steps

    def on_fit_start(self) -> None:
        if self.compiled:
            for part in (self.autoencoder.encoder, self.autoencoder.decoder):
                if part is not None:
                    part.compile()

    def train_dataloader(self) -> Any:
        stream = StepStream(lambda step: (step, self.make_batch(step)), self.global_batch)
        return stream.loader(self.workers)

    @property
    def global_batch(self) -> int:
        """Batches seen so far (each optimiser's step counts in ``global_step``)."""
        if self.adversarial:
            return self.trainer.global_step // 2
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.autoencoder.parameters() if p.requires_grad]
        player = optim.configure(trained, self.optim_config, self.scheduled_steps)
        if self.discriminator is None:
            return player
        return player, optim.configure(
            self.discriminator.parameters(), self.optim_config, self.scheduled_steps
        )

    def reconstruction(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Loss without the adversarial term, and the reconstruction (B, 3, H, W)."""
        posterior = self.autoencoder.encode(x)
        x_rec = self.autoencoder.decode(posterior.sample(generator(self.seed, "posterior", step)))
        x_rec = x_rec.float()
        l1, mse = F.l1_loss(x_rec, x), F.mse_loss(x_rec, x)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = 10 * torch.log10(4.0 / mse.detach())
        self.log_dict({"train/l1": l1, "train/kl": kl, "train/psnr": psnr}, prog_bar=True, batch_size=len(x))
        loss = l1 + self.loss_config.mse_weight * mse + self.loss_config.kl_weight * kl
        return loss, x_rec

    def training_step(self, batch: tuple[int, Tensor], batch_idx: int) -> Tensor | None:
        step, x = batch[0], from_bytes(batch[1])
        if not self.adversarial:
            return self.reconstruction(x, step)[0]
        self._adversarial_step(x, step)
        return None

    def _adversarial_step(self, x: Tensor, step: int) -> None:
        assert self.discriminator is not None
        optimizers: Any = self.optimizers()
        schedulers: Any = self.lr_schedulers()
        started = step >= self.loss_config.adversarial_start
        loss, x_rec = self.reconstruction(x, step)
        if started:
            fool = -self.discriminator(x_rec).mean()
            weight = adaptive_weight(loss, fool, self.autoencoder.decoder.last_layer)
            loss = loss + self.loss_config.adversarial_weight * weight * fool
        self._step(optimizers[0], self.autoencoder, loss)
        judge = hinge_loss(self.discriminator(x), self.discriminator(x_rec.detach()))
        # before its start the discriminator is stepped with a zero loss, so that the two
        # optimisers' counts stay equal
        self._step(optimizers[1], self.discriminator, judge if started else 0.0 * judge)
        self.log("train/discriminator", judge, prog_bar=True, batch_size=len(x))
        for scheduler in schedulers:
            scheduler.step()

    def _step(self, optimizer: Any, module: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.optim_config.clip_norm:
            nn.utils.clip_grad_norm_(module.parameters(), self.optim_config.clip_norm)
        optimizer.step()
