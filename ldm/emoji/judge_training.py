"""Training of the judge: a small CLIP on composed emoji pictures and their captions.

The symmetric contrastive loss of Radford et al. 2021, as ``open_clip.loss.ClipLoss`` has it. A
batch holds *distinct* concepts, so that no caption of it is right for a second picture, and some of
them once more on another colour, so that the background counts too. Pictures are degraded a little
(blur, noise, a lost octave, brightness): generated ones are never as clean as composed ones, and a
judge that only knows clean pictures would mark them down for that alone.

All concepts of the groups are drawn, **also those held out from the generator**: the judge must
recognise them. Train it on the groups that the model draws which it is to judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.emoji.captions import NEUTRAL, STYLE_WORDS, STYLES, fill
from ldm.emoji.compose import Composer, EmojiBatch
from ldm.emoji.sprites import EmojiSprites
from ldm.evaluation.clip_judge import ClipConfig, build_clip, save_clip
from ldm.pretraining.stages import start
from ldm.ranges import Amount, Batch, Count, Seed, Share
from ldm.seeding import generator as seeded
from ldm.text.english import article
from ldm.text.tokenizer import Tokenizer
from ldm.training.fit import LoggingConfig, TrainerConfig, fit
from ldm.training.optim import OptimConfig, configure
from ldm.training.stream import StepStream

MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(frozen=True)
class JudgeData:
    """What the judge sees.

    Attributes:
        root: folder of the prepared emoji.
        groups: emoji groups (``None``: all eight).
        plain: share of captions that only name the concept (a template, no background).
        twins: pictures of a batch tried a second time on another colour.
        degrade: strength of the degradations, 0 switches them off.
    """

    root: str = "data/emoji"
    groups: list[str] | None = None
    plain: Share = 0.4
    twins: Count = 48
    degrade: Amount = 1.0


@dataclass(frozen=True)
class ClipStage:
    """``ldm train clip``: all keys of ``configs/emoji/clip.yaml``.

    Attributes:
        clip: Size of the network.
        vocabulary: WordPiece vocabulary of its texts, one entry a line.
        data: What it is shown.
        batch_size: Pictures in a batch.
        seed: Pictures and captions are functions of it and of the step.
        optim: Optimiser and learning-rate schedule.
        trainer: Number of steps, precision, device, and how often to log and checkpoint.
        logging: Where curves are written to.
    """

    clip: ClipConfig
    vocabulary: Path = Path("ldm/assets/emoji/vocab.txt")
    data: JudgeData = field(default_factory=JudgeData)
    batch_size: Batch = 192
    seed: Seed = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


class Pairs(NamedTuple):
    """``images`` (n, 3, S, S) in [-1, 1] and ``ids`` (n, L) of the caption of each."""

    images: Tensor
    ids: Tensor


def _softeners(size: int) -> tuple[Tensor, Tensor]:
    """Two (size, size) matrices, applied to rows and to columns: a blur of 1.2 pixels, and the
    loss of the finest octave (halved and enlarged again)."""
    at = torch.arange(float(size))
    away = (at[:, None] - at).square()
    # cut off: the far tail is made of denormal numbers, which a CPU multiplies ten times slower
    blur = torch.exp(away / (-2 * 1.2**2)) * (away < 25)
    halved = F.avg_pool1d(torch.eye(size)[None], 2)  # (1, size, size / 2)
    octave = F.interpolate(halved, size, mode="linear")[0]
    return blur / blur.sum(1, keepdim=True), octave.T.contiguous()


def degrade(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Pictures (n, 3, S, S) in [-1, 1] a little worse, each by its own amounts.

    Up to: a blur of 1.2 pixels, the loss of the finest octave (half of the size and back),
    +-12 % contrast, +-0.08 brightness, noise of 0.1 standard deviation, all times ``strength``.
    """
    n, _, size, _ = images.shape
    u = torch.rand(n, 5, 1, 1, generator=generator) * strength
    blur, octave = _softeners(size)
    keep = torch.eye(size)
    soften = torch.lerp(keep, blur, u[:, 0].square()) @ torch.lerp(keep, octave, u[:, 1].square())
    images = torch.matmul(torch.matmul(soften[:, None], images), soften.mT[:, None])
    u = u[..., None]
    images = images * (1 + 0.12 * (2 * u[:, 2] - strength)) + 0.08 * (2 * u[:, 3] - strength)
    noise = torch.randn(images.shape, generator=generator)
    return images.addcmul(noise, 0.1 * u[:, 4].square()).clamp(-1, 1)


class JudgePairs:
    """Batches of pictures and caption ids, a pure function of the step.

    The first ``n`` rows show distinct concepts; up to ``config.twins`` more repeat some of them on
    another solid colour, and then both captions name their colour.
    """

    def __init__(self, config: JudgeData, tokenizer: Tokenizer, image_size: int) -> None:
        self.config, self.tokenizer = config, tokenizer
        sprites = EmojiSprites.load(Path(config.root), config.groups)
        self.composer = Composer(sprites, image_size)

    def batch(self, step: int, n: int, seed: int) -> Pairs:
        """``n`` to ``n + twins`` pairs."""
        images, captions = self.pictures(n, seeded(seed, "judge", step))
        return Pairs(images, self.tokenizer(captions))

    def pictures(self, n: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """The same as pictures and captions."""
        twins = self.config.twins
        order = torch.randperm(len(self.composer.sprites), generator=generator)[:n]
        concepts = torch.cat([order, order[:twins]])
        styles = torch.randint(len(STYLES), (len(concepts),), generator=generator)
        drawn = self.composer.draw(concepts, styles, generator)
        u = torch.rand(len(concepts), 2, generator=generator).tolist()
        captions = [
            self._plain(drawn, i, b / self.config.plain) if b < self.config.plain else caption
            for i, (caption, (_, b)) in enumerate(zip(drawn.captions, u, strict=True))
        ]
        rows = list(range(len(order)))
        for i, j in zip(range(twins), range(len(order), len(concepts)), strict=False):
            here, there = drawn.background[i], drawn.background[j]
            if here and there and here != there:
                rows.append(j)
                captions[i] = self._coloured(drawn, i, u[i][0])
                captions[j] = self._coloured(drawn, j, u[j][0])
        images = degrade(drawn.images[rows], generator, self.config.degrade)
        return images, [captions[i] for i in rows]

    def _label(self, drawn: EmojiBatch, i: int) -> str:
        return self.composer.captioner.labels[int(drawn.concepts[i])]

    def _plain(self, drawn: EmojiBatch, i: int, u: float) -> str:
        """The concept alone: its name, or a neutral template of it."""
        name = self._label(drawn, i)
        if u < 0.3:
            return name
        u = (u - 0.3) / 0.7
        return fill(NEUTRAL[int(u * len(NEUTRAL))], name)

    def _coloured(self, drawn: EmojiBatch, i: int, u: float) -> str:
        """Concept and colour, and for half of them how the picture is made."""
        name, colour = self._label(drawn, i), drawn.background[i] or ""
        words = STYLE_WORDS[STYLES[int(drawn.styles[i])]]
        template = NEUTRAL[int(u * 2 % 1 * len(NEUTRAL))]
        if u < 0.5:
            word = words[int(u * 2 * len(words))]
            template = f"{article(word)}{word} of a {{}}"
        return f"{fill(template, name)} on {article(colour)}{colour} background"


class ClipTraining(pl.LightningModule):
    """Trains an ``open_clip`` CLIP on :class:`Pairs`.

    Args:
        clip: the model.
        make_batch: pairs of a step, a pure function of it.
    """

    def __init__(
        self,
        clip: Any,
        make_batch: Callable[[int], Pairs],
        optim_config: OptimConfig,
        max_steps: int,
    ) -> None:
        super().__init__()
        from open_clip.loss import ClipLoss

        self.clip, self.make_batch = clip, make_batch
        self.optim_config, self.max_steps = optim_config, max_steps
        self.contrast = ClipLoss()

    def train_dataloader(self) -> DataLoader:
        return StepStream(self.make_batch, self.trainer.global_step).loader()

    def configure_optimizers(self) -> Any:
        return configure(self.clip.parameters(), self.optim_config, self.max_steps)

    def training_step(self, pairs: Pairs, batch_idx: int) -> Tensor:
        image_features = self.clip.encode_image(pairs.images)
        text_features = self.clip.encode_text(pairs.ids)
        # a logit of 50 has steps of 0.25 in bfloat16: the product of the features is float32
        with torch.autocast(self.device.type, enabled=False):
            image_features = F.normalize(image_features.float(), dim=-1)
            text_features = F.normalize(text_features.float(), dim=-1)
            scale = self.clip.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
            loss = self.contrast(image_features, text_features, scale)
        nearest = (image_features @ text_features.T).detach().argmax(1)
        own = torch.arange(len(nearest), device=nearest.device)
        right = (nearest == own).float().mean()
        self.log_dict(
            {"train/loss": loss, "train/right": right, "train/logit_scale": scale.detach()},
            prog_bar=True,
            batch_size=len(nearest),
        )
        return loss


def train_clip(config: ClipStage, folder: Path, resume: bool = False) -> Path:
    """Train the judge; returns the folder ``<folder>/clip`` that ``load_clip`` reads."""
    checkpoint = start(folder, config, resume)
    tokenizer = Tokenizer(config.vocabulary, config.clip.context_length)
    torch.manual_seed(config.seed)
    clip = build_clip(config.clip, tokenizer).to(memory_format=torch.channels_last)
    pairs = JudgePairs(config.data, tokenizer, int(config.clip.vision.get("image_size", 64)))
    module = ClipTraining(
        clip,
        lambda step: pairs.batch(step, config.batch_size, config.seed),
        config.optim,
        config.trainer.max_steps,
    )
    fit(
        module,
        folder,
        config.trainer,
        config.logging,
        seed=config.seed,
        clip_norm=config.optim.clip_norm,
        resume=checkpoint,
    )
    concepts = pairs.composer.sprites.concepts
    return save_clip(clip, config.clip, config.vocabulary, folder / "clip", concepts)
