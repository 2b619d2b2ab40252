"""The autoencoder's stage and the encoding of latents, in miniature: they train and resume bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stages import LOGGING, OPTIM, TRAINER, WORDS, Interrupted, assert_same, checkpoint, interrupt
from torch import Tensor, nn

from ldm.backbone.model import ModelConfig
from ldm.config import load_yaml, resolve
from ldm.errors import UserError
from ldm.models.discriminator import PatchDiscriminator
from ldm.pretraining.autoencoder import AutoencoderLossConfig
from ldm.pretraining.bank import LatentBank
from ldm.pretraining.config import AutoencoderStage, LatentsStage
from ldm.pretraining.sources import FolderPictures
from ldm.pretraining.stages import encode_latents, train_autoencoder
from ldm.training.optim import OptimConfig

pytestmark = pytest.mark.slow


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
        data={"target": "ldm.pretraining.sources.FolderPictures", "params": data},
        batch_size=4,
        optim=OPTIM,
        trainer=TRAINER,
        logging=LOGGING,
    )


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


def test_a_compiled_stage_compiles_both_halves_and_keeps_their_names(
    autoencoder_stage: AutoencoderStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    # the call itself is torch's; a real compilation takes a minute
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    plain = checkpoint(train_autoencoder(autoencoder_stage, tmp_path / "plain"))
    state = checkpoint(train_autoencoder(replace(autoencoder_stage, compiled=True), tmp_path / "run"))
    assert compiled == ["Encoder", "Decoder"]
    assert_same(state["state_dict"], plain["state_dict"])


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
    images, captions, subjects = source.batch(1, 4, 0)
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


def test_several_files_are_one_bank_if_their_shapes_agree(bank: Path, tmp_path: Path) -> None:
    loaded, small = LatentBank.load(bank), tmp_path / "small.safetensors"
    things = loaded.subjects, loaded.portraits
    first = (loaded.mean[:4] + 1, loaded.std[:4], loaded.captions[:4], loaded.subjects[:4])
    LatentBank(*first, loaded.portraits).save(small)
    both = LatentBank.load(bank, small)
    assert both.captions == loaded.captions + loaded.captions[:4]
    assert torch.equal(both.mean[-4:], loaded.mean[:4] + 1) and len(both.std) == len(both) == 14
    assert both.subjects.tolist() == [*loaded.subjects.tolist(), 3, 4, 5, 3]  # other things
    assert torch.equal(both.portraits[both.subjects[10:]], loaded.portraits[loaded.subjects[:4]])
    LatentBank(loaded.mean[:, :1].clone(), loaded.std[:, :1].clone(), loaded.captions, *things).save(small)
    with pytest.raises(UserError, match=r"different shapes.*small\.safetensors"):
        LatentBank.load(bank, small)
    with pytest.raises(UserError, match="empty list"):
        LatentBank.load()


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
