"""The pretraining stages in miniature: they train, resume bit for bit, average and export."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.config import load_yaml, resolve
from ldm.data.bank import LatentBank
from ldm.data.pictures import FolderPictures
from ldm.errors import UserError
from ldm.io.checkpoints import read_state_dict
from ldm.loading import load
from ldm.model import LatentDiffusion, ModelConfig, build
from ldm.models.discriminator import PatchDiscriminator
from ldm.sampling import sample
from ldm.training.autoencoder import AutoencoderLossConfig
from ldm.training.diffusion import DiffusionTraining
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig
from ldm.training.pretrain import (
    AutoencoderStage,
    DiffusionStage,
    LatentsStage,
    diffusion_model,
    encode_latents,
    export,
    train_autoencoder,
    train_diffusion,
)

TRAINER = TrainerConfig(max_steps=4, accelerator="cpu", checkpoint_every=2, image_every=100)
OPTIM = OptimConfig(lr=1e-3, warmup_steps=1, lr_final_ratio=0.1, clip_norm=1.0)
LOGGING = LoggingConfig(loggers=("csv",))
WORDS = ("red", "green", "blue", "white", "black")


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, word in enumerate(WORDS):
        image = Image.new("RGB", (20, 20), word)
        image.paste("yellow", (2 * i, 4, 2 * i + 6, 10))
        image.save(folder / f"{word}.png")
        (folder / f"{word}.txt").write_text(f"a  big cat on a {word}\nbackground\n")
    return folder


@pytest.fixture
def autoencoder_stage(pictures: Path, tiny_config: ModelConfig) -> AutoencoderStage:
    data = {"root": str(pictures), "image_size": 32}
    return AutoencoderStage(
        autoencoder=tiny_config.autoencoder,
        data={"target": "ldm.data.pictures.FolderPictures", "params": data},
        batch_size=4,
        optim=OPTIM,
        trainer=TRAINER,
        logging=LOGGING,
    )


@pytest.fixture(scope="module")
def autoencoder(tiny_config: ModelConfig, randomise: Callable[..., nn.Module]) -> nn.Module:
    return randomise(build(tiny_config).autoencoder)


@pytest.fixture(scope="module")
def autoencoder_run(tmp_path_factory: pytest.TempPathFactory, autoencoder: nn.Module) -> Path:
    """What a finished autoencoder stage leaves behind."""
    run = tmp_path_factory.mktemp("autoencoder")
    (run / "checkpoints").mkdir()
    weights = {f"autoencoder.{k}": v for k, v in autoencoder.state_dict().items()}
    torch.save({"state_dict": weights}, run / "checkpoints" / "last.ckpt")
    return run


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(10, 4, 4, 4, generator=generator)
    captions = [f"a {WORDS[i % 5]} cat" for i in range(10)]
    path = tmp_path_factory.mktemp("bank") / "latents.safetensors"
    LatentBank(mean.half(), torch.full_like(mean, 0.5).half(), captions).save(path)
    return path


@pytest.fixture(scope="module")
def diffusion_stage(tiny_config: ModelConfig, autoencoder_run: Path, bank: Path) -> DiffusionStage:
    return DiffusionStage(
        model=tiny_config,
        autoencoder_run=autoencoder_run,
        latents=bank,
        batch_size=4,
        ema_decay=0.5,
        prompts=("a cat",),
        optim=OPTIM,
        trainer=replace(TRAINER, accumulate=2),
        logging=LOGGING,
    )


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, at: int) -> None:
    """Make ``owner.name(step, ...)`` fail at a step, as a machine that goes down would."""
    original = getattr(owner, name)

    def failing(self: Any, step: int, *args: Any) -> Any:
        if step == at:
            raise Interrupted
        return original(self, step, *args)

    monkeypatch.setattr(owner, name, failing)


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=key)


def moved(before: nn.Module, after: dict[str, Tensor], prefix: str) -> list[bool]:
    return [not torch.equal(after[prefix + name], value) for name, value in before.state_dict().items()]


# ------------------------------------------------------------------ autoencoder
def test_autoencoder_stage_learns_and_leaves_a_whole_run(
    autoencoder_stage: AutoencoderStage, tmp_path: Path
) -> None:
    stage = replace(
        autoencoder_stage,
        optim=replace(OPTIM, lr=3e-3),
        trainer=replace(TRAINER, max_steps=16, log_every=1),
    )
    last = train_autoencoder(stage, tmp_path / "run")
    assert checkpoint(last)["global_step"] == 16
    rows = (tmp_path / "run/logs/csv/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/l1")
    losses = [float(v) for row in rows[1:] if (v := row.split(",")[column])]
    assert len(losses) == 16 and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert {p.name for p in (tmp_path / "run/images").iterdir()} == {
        "reconstructions_000000.png",
        "reconstructions_000016.png",
    }
    assert resolve(AutoencoderStage, load_yaml([tmp_path / "run/config.yaml"])) == stage
    with pytest.raises(UserError, match="--resume"):
        train_autoencoder(stage, tmp_path / "run")


@pytest.mark.parametrize(("accumulate", "adversarial", "at"), [(1, 0.0, 3), (2, 0.0, 5), (1, 0.5, 3)])
def test_autoencoder_resumes_to_the_weights_of_an_uninterrupted_run(
    autoencoder_stage: AutoencoderStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
    adversarial: float,
    at: int,
) -> None:
    # Lightning counts the steps of both players
    steps = 8 if adversarial else 4
    stage = replace(
        autoencoder_stage,
        trainer=replace(TRAINER, accumulate=accumulate, max_steps=steps),
        loss=AutoencoderLossConfig(adversarial_weight=adversarial, discriminator_channels=8),
    )
    whole = checkpoint(train_autoencoder(stage, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt(patch, FolderPictures, "batch", at)
        with pytest.raises(Interrupted):
            train_autoencoder(stage, tmp_path / "cut")
    assert 0 < checkpoint(tmp_path / "cut/checkpoints/last.ckpt")["global_step"] < steps
    resumed = checkpoint(train_autoencoder(stage, tmp_path / "cut", resume=True))
    assert resumed["global_step"] == whole["global_step"] == steps
    assert_same(resumed["state_dict"], whole["state_dict"])


@pytest.mark.parametrize("start", [0, 100])
def test_two_players_step_together_and_the_judge_learns_once_it_has_started(
    autoencoder_stage: AutoencoderStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    judges: list[dict[str, Tensor]] = []
    original = PatchDiscriminator.__init__

    def remember(self: PatchDiscriminator, *args: Any) -> None:
        original(self, *args)
        judges.append({k: v.clone() for k, v in self.state_dict().items()})

    monkeypatch.setattr(PatchDiscriminator, "__init__", remember)
    stage = replace(
        autoencoder_stage,
        optim=OptimConfig(lr=1e-3, schedule="linear", lr_final_ratio=0.1),
        loss=AutoencoderLossConfig(adversarial_weight=0.5, adversarial_start=start, discriminator_channels=8),
        trainer=replace(TRAINER, max_steps=6),
    )
    state = checkpoint(train_autoencoder(stage, tmp_path / "run"))
    weights = state["state_dict"]
    learnt = [not torch.equal(weights[f"discriminator.{k}"], v) for k, v in judges[0].items()]
    assert any(learnt) is (start == 0)
    steps = [{int(s["step"]) for s in o["state"].values()} for o in state["optimizer_states"]]
    assert len(steps) == 2 and steps[0] == steps[1]
    # the schedule ends where the run does
    for schedule in state["lr_schedulers"]:
        assert schedule["_last_lr"] == pytest.approx([1e-4])


def test_the_decoder_alone_can_go_on_from_an_earlier_run(
    autoencoder_stage: AutoencoderStage,
    autoencoder_run: Path,
    autoencoder: nn.Module,
    tmp_path: Path,
) -> None:
    stage = replace(
        autoencoder_stage,
        start_from=autoencoder_run,
        loss=AutoencoderLossConfig(train_encoder=False),
    )
    state = checkpoint(train_autoencoder(stage, tmp_path / "run"))["state_dict"]
    assert not any(moved(autoencoder.encoder, state, "autoencoder.encoder."))
    assert not any(moved(autoencoder.quant_conv, state, "autoencoder.quant_conv."))
    assert any(moved(autoencoder.decoder, state, "autoencoder.decoder."))


# ------------------------------------------------------------------ latents
@pytest.fixture
def latents_stage(autoencoder_stage: AutoencoderStage, autoencoder_run: Path) -> LatentsStage:
    return LatentsStage(
        autoencoder=autoencoder_stage.autoencoder,
        autoencoder_run=autoencoder_run,
        data=autoencoder_stage.data,
        count=12,
        batch_size=4,
        precision="32-true",
    )


def test_latents_stage_encodes_pictures_beside_their_captions(
    latents_stage: LatentsStage, autoencoder: nn.Module, tmp_path: Path
) -> None:
    made = encode_latents(latents_stage, tmp_path / "out/latents.safetensors")
    bank = LatentBank.load(tmp_path / "out/latents.safetensors")
    assert torch.equal(bank.mean, made.mean) and bank.captions == made.captions
    assert len(bank) == 12 and set(bank.captions) <= {f"a big cat on a {w} background" for w in WORDS}
    source = FolderPictures(**latents_stage.data["params"])
    images, captions = source.batch(1, 4, 0)
    assert bank.captions[4:8] == captions
    with torch.no_grad():
        posterior = autoencoder.encode(images)
    torch.testing.assert_close(bank.mean[4:8].float(), posterior.mean, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(bank.std[4:8].float(), posterior.std, rtol=1e-2, atol=1e-2)


def test_a_run_of_another_autoencoder_is_refused(latents_stage: LatentsStage, tmp_path: Path) -> None:
    params = {**latents_stage.autoencoder["params"], "z_channels": 3}
    other = {**latents_stage.autoencoder, "params": params}
    with pytest.raises(UserError, match="another model"):
        encode_latents(replace(latents_stage, autoencoder=other), tmp_path / "x.safetensors")
    empty = replace(latents_stage, autoencoder_run=tmp_path / "empty")
    with pytest.raises(UserError, match="train that stage first"):
        encode_latents(empty, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_bank_visits_every_row_once_an_epoch_as_a_function_of_the_step(bank: Path) -> None:
    loaded = LatentBank.load(bank)
    rows = [loaded.batch(step, 5, seed=0)[1].tolist() for step in range(4)]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(10))
    assert rows[:2] != rows[2:]
    z, again = loaded.batch(3, 5, seed=0)
    assert again.tolist() == rows[3]  # also out of order
    assert torch.equal(z, LatentBank.load(bank).batch(3, 5, seed=0)[0])
    many = torch.cat([loaded.batch(step, 10, seed=0)[0] for step in range(100)])
    assert (many * loaded.scale_factor).std().item() == pytest.approx(1, rel=0.02)
    with pytest.raises(UserError, match="larger than the bank"):
        loaded.batch(0, 11, seed=0)
    with pytest.raises(UserError, match="ldm train latents"):
        LatentBank.load(bank.with_name("nowhere.safetensors"))


def test_folder_pictures_want_captions_and_are_a_function_of_the_step(pictures: Path) -> None:
    source = FolderPictures(str(pictures), image_size=16)
    a, b, c = source.batch(5, 8, 0), source.batch(5, 8, 0), source.batch(6, 8, 0)
    assert a.images.shape == (8, 3, 16, 16) and a.images.abs().max() <= 1
    assert torch.equal(a.images, b.images) and a.captions == b.captions
    assert not torch.equal(a.images, c.images)


def test_a_picture_without_a_caption_is_named(pictures: Path, tmp_path: Path) -> None:
    Image.open(pictures / "red.png").save(tmp_path / "lonely.png")
    with pytest.raises(UserError, match=r"lonely\.png has no caption.*lonely\.txt"):
        FolderPictures(str(tmp_path), image_size=16)


# ------------------------------------------------------------------ diffusion
@pytest.fixture(scope="module")
def finished(
    diffusion_stage: DiffusionStage, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of the diffusion stage, and its last checkpoint."""
    run = tmp_path_factory.mktemp("diffusion") / "run"
    return run, checkpoint(train_diffusion(diffusion_stage, run))


def test_diffusion_stage_trains_unet_and_text_and_averages_them(
    finished: tuple[Path, dict[str, Any]], diffusion_stage: DiffusionStage
) -> None:
    run, state = finished
    assert state["global_step"] == 4
    average, raw = state["state_dict"], state["current_model_state"]
    # only what trains is kept: no autoencoder, no manager, no tables
    assert {key.split(".")[0] for key in average} == {"unet", "text"}
    assert average.keys() == raw.keys()
    differ = [not torch.equal(average[k], raw[k]) for k in raw]
    assert sum(differ) > 0.9 * len(differ)
    assert {p.name for p in (run / "images").iterdir()} == {
        "samples_000000.png",
        "samples_000004.png",
    }
    assert resolve(DiffusionStage, load_yaml([run / "config.yaml"])) == diffusion_stage


def test_diffusion_resumes_to_the_weights_of_an_uninterrupted_run(
    finished: tuple[Path, dict[str, Any]],
    diffusion_stage: DiffusionStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, DiffusionTraining, "make_batch", 5)
        with pytest.raises(Interrupted):
            train_diffusion(diffusion_stage, tmp_path / "cut")
    assert checkpoint(tmp_path / "cut/checkpoints/last.ckpt")["global_step"] == 2
    resumed = checkpoint(train_diffusion(diffusion_stage, tmp_path / "cut", resume=True))
    for key in ("state_dict", "current_model_state"):
        assert_same(resumed[key], finished[1][key])


def test_captions_are_dropped_and_timesteps_spread_as_the_stage_says(
    tiny_model: LatentDiffusion, bank: Path
) -> None:
    loaded = LatentBank.load(bank)
    options = {"batch_size": 10, "max_steps": 1, "seed": 0}
    module = DiffusionTraining(tiny_model, loaded, OPTIM, caption_dropout=0.3, **options)
    batches = [module.make_batch(step) for step in range(100)]
    empty = tiny_model.text.tokenize([""])
    dropped = torch.cat([(b["ids"] == empty).all(1) for b in batches]).float().mean()
    assert dropped.item() == pytest.approx(0.3, abs=0.05)
    for b in batches:  # one timestep a stratum, in random order
        assert sorted((b["t"] // 100).tolist()) == list(range(10))
    torch.testing.assert_close(module.make_batch(7), batches[7], rtol=0, atol=0)
    kept = DiffusionTraining(tiny_model, loaded, OPTIM, caption_dropout=0.0, **options)
    ids = tiny_model.text.tokenize(loaded.captions)[loaded.batch(0, 10, 0)[1]]
    assert torch.equal(kept.make_batch(0)["ids"], ids)


def test_export_is_a_model_folder_with_the_averaged_weights(
    finished: tuple[Path, dict[str, Any]],
    diffusion_stage: DiffusionStage,
    autoencoder: nn.Module,
    tmp_path: Path,
) -> None:
    run, state = finished
    out = export(diffusion_stage, run, tmp_path / "model")
    assert {p.name for p in out.iterdir()} == {"config.yaml", "model.safetensors", "vocab.txt"}
    stored = read_state_dict(out / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    model = load(out)
    average = {k: v.half().float() for k, v in state["state_dict"].items()}
    trained = {"unet": model.unet, "text": model.text}
    assert_same({f"{n}.{k}": v for n, m in trained.items() for k, v in m.state_dict().items()}, average)
    ours = {k: v.half().float() for k, v in autoencoder.state_dict().items()}
    assert_same(model.autoencoder.state_dict(), ours)
    bank = LatentBank.load(diffusion_stage.latents)
    assert model.scale_factor == pytest.approx(bank.scale_factor, abs=1e-5)
    assert not any(p.requires_grad for p in model.parameters())
    assert sample(model, "a cat", steps=2, seed=0).isfinite().all()
    with pytest.raises(UserError, match="no checkpoint"):
        export(diffusion_stage, tmp_path / "nowhere", tmp_path / "other")


def test_a_shipped_model_can_go_on_learning_without_the_runs_that_made_it(
    finished: tuple[Path, dict[str, Any]], diffusion_stage: DiffusionStage, tmp_path: Path
) -> None:
    out = export(diffusion_stage, finished[0], tmp_path / "model")
    stage = replace(diffusion_stage, autoencoder_run=out, start_from=out)
    going_on = diffusion_model(stage, LatentBank.load(stage.latents))
    assert going_on.fingerprint() == load(out).fingerprint()
