"""The pretraining stages, each one config and one resumable run folder: autoencoder, latents, diffusion."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from rich.progress import track
from torch import Tensor

from ldm.backbone.export import export_model
from ldm.backbone.model import LatentDiffusion, build
from ldm.config import dump_yaml, instantiate, load_yaml, recheck, to_plain
from ldm.device import device_of, working_precision
from ldm.errors import UserError
from ldm.inversion.resume import OF_STAGES, refuse_changes, refuse_fewer_steps, whole_checkpoint
from ldm.io.atomic import write_text
from ldm.io.checkpoints import (
    AUTOENCODER,
    TEXT,
    UNET,
    load_model_weights,
    read_state_dict,
)
from ldm.io.secrets import redacted_values
from ldm.pretraining.autoencoder import AutoencoderTraining
from ldm.pretraining.bank import LatentBank
from ldm.pretraining.config import AutoencoderStage, DiffusionStage, LatentsStage
from ldm.pretraining.diffusion import DiffusionTraining
from ldm.pretraining.examples import BankExamples, DrawnExamples, Examples, to_bytes
from ldm.pretraining.portrait_words import FILE, PictureWords, load_picture_words, save_picture_words
from ldm.pretraining.sources import PictureSource
from ldm.sampling.sample import sample
from ldm.shorthand import spelled
from ldm.training.callbacks import ImageLogger
from ldm.training.fit import fit

#: for pictures on the way: other batch sizes are not worth compiling
EAGER = partial(torch.compiler.set_stance, "force_eager")
#: where a part stands in a public checkpoint
PUBLIC = {"autoencoder": AUTOENCODER, "unet": UNET, "text": TEXT}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder, to resume from."""
    found = whole_checkpoint(folder)
    return found.path if found else None


def start(folder: Path, config: Any, resume: bool) -> Path | None:
    """Make the run folder, write its config, and find what to resume from.

    Raises:
        UserError: the folder already holds a run and ``resume`` is false, or the run cannot go on with
            these settings, several devices are asked for, or a number is out of its range.
    """
    recheck(config)
    config.trainer.check_machine()
    if config.trainer.processes > 1:
        raise UserError("this stage trains on one device; leave out trainer.devices and trainer.nodes")
    checkpoint = whole_checkpoint(folder)
    if checkpoint is not None and not resume:
        raise UserError(f"{folder} already holds a run; add --resume to continue it or choose another --out")
    if resume:
        refuse_changes(folder, config, OF_STAGES)
        refuse_fewer_steps(folder, checkpoint.step if checkpoint else 0, config.trainer.max_steps)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_yaml(redacted_values(to_plain(config))))
    return checkpoint.path if checkpoint else None


def train_autoencoder(config: AutoencoderStage, folder: Path, resume: bool = False) -> Path:
    """Train the autoencoder; returns the last checkpoint."""
    checkpoint = start(folder, config, resume)
    source: PictureSource = instantiate(config.data)
    torch.manual_seed(config.seed)
    autoencoder = instantiate(config.autoencoder)
    if config.start_from is not None:
        load_part(autoencoder, config.start_from, "autoencoder")
    elif checkpoint is None and autoencoder.linear is not None:
        batches = range(config.linear_pictures // config.batch_size + 1)
        autoencoder.fit_linear(
            torch.cat([source.batch(step, config.batch_size, config.seed).images for step in batches])
        )
    module = AutoencoderTraining(
        autoencoder,
        lambda step: to_bytes(source.batch(step, config.batch_size, config.seed).images),
        config.optim,
        config.loss,
        config.trainer.max_steps,
        config.seed,
        config.compiled,
        config.workers,
    )
    fixed = source.batch(0, 16, config.seed + 1).images

    def draw(module: Any) -> dict[str, Tensor]:
        x = fixed.to(module.device)
        with EAGER():
            decoded = module.autoencoder.decode(module.autoencoder.encode(x).mode())
        return {"reconstructions": torch.cat([x, decoded.float()])}

    images = ImageLogger(draw, folder / "images", config.trainer.image_every, columns=16)
    fit(
        module,
        folder,
        config.trainer,
        config.logging,
        seed=config.seed,
        callbacks=[images],
        clip_norm=0.0 if module.adversarial else config.optim.clip_norm,
        resume=checkpoint,
    )
    return folder / "checkpoints" / "last.ckpt"


def load_part(module: torch.nn.Module, source: Path, name: str) -> None:
    """Copy one part's weights from a model folder, or from a run's last checkpoint.

    Args:
        module: the part. name: autoencoder, unet or text.
        source: the checkpoint's averaged weights are taken if the run averages.
    """
    shipped, path = source / "model.safetensors", last_checkpoint(source)
    if shipped.is_file():
        load_model_weights({PUBLIC[name]: module}, read_state_dict(shipped), source=str(shipped))
        return
    if path is None:
        raise UserError(f"{source} holds no checkpoint; train that stage first")
    prefix = f"{name}."
    own = {k: v for k, v in read_state_dict(path).items() if k.startswith(prefix)}
    load_model_weights({prefix: module}, own, source=str(path))


def encode_latents(config: LatentsStage, path: Path) -> LatentBank:
    """Encode ``count`` pictures with the trained autoencoder and write the bank to ``path``."""
    recheck(config)
    autoencoder = instantiate(config.autoencoder).eval()
    load_part(autoencoder, config.autoencoder_run, "autoencoder")
    source: PictureSource = instantiate(config.data)
    half = working_precision(config.precision, "cpu") != "32-true"
    means, stds, captions, subjects = [], [], [], []
    batches = -(-config.count // config.batch_size)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        for step in track(range(batches), description="encoding pictures"):
            images, text, shown = source.batch(step, config.batch_size, config.seed)
            posterior = autoencoder.encode(images)
            means.append(posterior.mean.half())
            stds.append(posterior.std.half())
            captions += text
            subjects.append(shown)
        portraits = [
            autoencoder.encode(pair.flatten(0, 1)).mean.half().unflatten(0, (-1, 2))
            for pair in track(source.portraits(config.batch_size // 2 or 1), description="portraits")
        ]
    bank = LatentBank(torch.cat(means), torch.cat(stds), captions, torch.cat(subjects), torch.cat(portraits))
    bank.save(path)
    return bank


def examples_of(config: DiffusionStage) -> Examples:
    """Where the stage's batches come from.

    Raises:
        UserError: neither or both of ``latents`` and ``data`` are given.
    """
    if bool(config.latents) == (config.data is not None):
        raise UserError("give either latents (files of `ldm train latents`) or data (a source of pictures)")
    if config.data is None:
        return BankExamples.load(*config.latents)
    return DrawnExamples(instantiate(config.data))


def diffusion_model(config: DiffusionStage, examples: Examples) -> LatentDiffusion:
    """The stage's model: trained autoencoder, UNet and text as they start.

    The scale factor is that of the examples, or of the model folder that goes on learning.
    """
    autoencoder = instantiate(config.model.autoencoder)
    load_part(autoencoder, config.autoencoder_run, "autoencoder")
    scale_factor = round(examples.scale_factor(autoencoder), 5)
    if config.start_from is not None and (config.start_from / "model.safetensors").is_file():
        scale_factor = load_yaml([config.start_from / "config.yaml"])["model"]["scale_factor"]
    model = _assembled(config, scale_factor)
    if config.start_from is not None:
        load_part(model.unet, config.start_from, "unet")
        load_part(model.text, config.start_from, "text")
    return model


def _assembled(config: DiffusionStage, scale_factor: float) -> LatentDiffusion:
    """The trained autoencoder with a UNet and a text conditioner that know nothing."""
    torch.manual_seed(config.seed)
    model = build(replace(config.model, scale_factor=scale_factor))
    load_part(model.autoencoder, config.autoencoder_run, "autoencoder")
    return model


def _picture_words(config: DiffusionStage, model: LatentDiffusion, examples: Examples) -> PictureWords:
    """Words of the portraits, as a run that goes on had learned them: its UNet knows no others."""
    device = device_of(config.trainer.accelerator)
    portraits = examples.portraits(model.autoencoder, device)
    before = config.start_from
    if before and (before / FILE).is_file():
        words = load_picture_words(model.text, before).to(device)
        words.read(portraits)
        return words
    words = PictureWords.fitted(model.text, portraits, examples.shares)
    path = None if before is None else last_checkpoint(before)
    if before and path and any(name.startswith("picture_words.") for name in read_state_dict(path)):
        load_part(words, before, "picture_words")
        words.read(portraits)
    return words


def train_diffusion(config: DiffusionStage, folder: Path, resume: bool = False) -> Path:
    """Train UNet and text conditioner; returns the last checkpoint."""
    checkpoint = start(folder, config, resume)
    examples = examples_of(config)
    model = diffusion_model(config, examples)
    module = DiffusionTraining(
        model,
        examples,
        config.optim,
        batch_size=config.batch_size,
        max_steps=config.trainer.max_steps,
        caption_dropout=config.caption_dropout,
        seed=config.seed,
        timesteps=config.timesteps,
        compiled=config.compiled,
        picture_words=_picture_words(config, model, examples) if config.picture_words else None,
        workers=config.workers,
    )
    average = EMAWeightAveraging(decay=config.ema_decay, update_every_n_steps=config.ema_every)

    def draw(module: Any) -> dict[str, Tensor]:
        # one picture a prompt, twice, from the weights as they are being trained
        prompts = [p for p in config.prompts for _ in range(2)]
        with EAGER():
            pictures = sample(model, prompts, steps=25, scale=config.sample_scale, seed=0)
        return {"samples": pictures}

    every = config.trainer.image_every if config.prompts else 0
    images = ImageLogger(draw, folder / "images", every, columns=12)
    fit(
        module,
        folder,
        config.trainer,
        config.logging,
        seed=config.seed,
        callbacks=[average, images],
        clip_norm=config.optim.clip_norm,
        resume=checkpoint,
    )
    return folder / "checkpoints" / "last.ckpt"


def export(config: DiffusionStage, run: Path, out: Path, checkpoint: Path | None = None) -> Path:
    """Write the averaged model of a diffusion run as a model folder that ``ldm.load`` reads.

    The folder holds ``model.safetensors`` (float16, public layout), ``config.yaml`` and the
    vocabulary.
    """
    path = checkpoint or last_checkpoint(run)
    if path is None:
        raise UserError(f"{run} holds no checkpoint; train the diffusion stage first")
    state = read_state_dict(path)
    if "scale_factor" not in state:
        raise UserError(f"{path} is of an older version, which did not keep its scale factor: train it anew")
    model = _assembled(config, round(float(state["scale_factor"]), 5))
    trained = {"unet.": model.unet, "text.": model.text}
    aside = ("diffusion_loss.*", "picture_words.*", "scale_factor")
    load_model_weights(trained, state, source=str(path), ignore=aside)
    if config.decoder_run is not None:
        load_part(model.autoencoder, config.decoder_run, "autoencoder")
    model.inversion_defaults = spelled(config.inversion or {}, tell=False)
    export_model(model, out, dtype=torch.float16)
    prefix = "picture_words."
    words = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if words:
        save_picture_words(words, out)
    return out
