"""The diffusion stage in miniature: it trains, resumes bit for bit, averages and exports."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stages import LOGGING, OPTIM, TRAINER, WORDS, Interrupted, assert_same, checkpoint, interrupt
from torch import nn

from ldm.backbone.export import average_models
from ldm.backbone.loading import load
from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import load_yaml, resolve
from ldm.errors import UserError
from ldm.io.checkpoints import read_state_dict
from ldm.pretraining.bank import LatentBank
from ldm.pretraining.config import DiffusionStage
from ldm.pretraining.diffusion import DiffusionTraining
from ldm.pretraining.examples import BankExamples
from ldm.pretraining.portrait_words import PictureWords, half_whitening, load_picture_words, rotation
from ldm.pretraining.stages import diffusion_model, export, train_diffusion
from ldm.sampling.sample import sample
from ldm.training.timesteps import TimestepConfig, draw_timesteps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def diffusion_stage(tiny_config: ModelConfig, autoencoder_run: Path, bank: Path) -> DiffusionStage:
    return DiffusionStage(
        model=tiny_config,
        autoencoder_run=autoencoder_run,
        latents=(bank,),
        batch_size=4,
        ema_decay=0.5,
        prompts=("a cat",),
        optim=OPTIM,
        trainer=replace(TRAINER, accumulate=2),
        logging=LOGGING,
    )


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
    assert {key.split(".")[0] for key in average} == {"unet", "text", "scale_factor"}
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


def test_devices_that_would_all_compute_the_same_are_refused(
    diffusion_stage: DiffusionStage, tmp_path: Path
) -> None:
    several = replace(diffusion_stage, trainer=replace(diffusion_stage.trainer, devices=2))
    with pytest.raises(UserError, match="one device"):
        train_diffusion(several, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_copied_run_goes_on_in_its_new_folder(
    finished: tuple[Path, dict[str, Any]], diffusion_stage: DiffusionStage, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    longer = replace(diffusion_stage, trainer=replace(diffusion_stage.trainer, max_steps=6))
    train_diffusion(longer, copy, resume=True)
    assert checkpoint(copy / "checkpoints/last.ckpt")["global_step"] == 6
    assert not list(copy.glob("checkpoints/last-*"))


def test_captions_are_dropped_and_timesteps_spread_as_the_stage_says(
    tiny_model: LatentDiffusion, bank: Path
) -> None:
    loaded = BankExamples.load(bank)
    options = {"batch_size": 10, "max_steps": 1, "seed": 0}
    module = DiffusionTraining(tiny_model, loaded, OPTIM, caption_dropout=0.3, **options)
    batches = [module.make_batch(step) for step in range(100)]
    empty = tiny_model.text.tokenize([""])
    dropped = torch.cat([(b["ids"] == empty).all(1) for b in batches]).float().mean()
    assert dropped.item() == pytest.approx(0.3, abs=0.05)
    for b in batches:  # one timestep a stratum, in random order
        assert sorted((b["t"] // 100).tolist()) == list(range(10))
    torch.testing.assert_close(module.make_batch(7), batches[7], rtol=0, atol=0)
    assert not torch.equal(batches[7]["t"], batches[8]["t"])
    kept = DiffusionTraining(tiny_model, loaded, OPTIM, caption_dropout=0.0, **options)
    ids = tiny_model.text.tokenize(loaded.bank.captions)[loaded.bank.batch(0, 10, 0)[1]]
    assert torch.equal(kept.make_batch(0)["ids"], ids)


def test_a_hidden_name_is_told_by_portraits(
    diffusion_stage: DiffusionStage, bank: Path, tmp_path: Path
) -> None:
    loaded = LatentBank.load(bank)
    captions = [*loaded.captions[:5], *["a <this>"] * 5]
    hidden = tmp_path / "hidden.safetensors"
    LatentBank(loaded.mean, loaded.std, captions, loaded.subjects, loaded.portraits).save(hidden)
    stage = replace(diffusion_stage, latents=(hidden,))
    with pytest.raises(UserError, match="picture_words=true"):
        train_diffusion(stage, tmp_path / "refused")
    stage = replace(stage, picture_words=True)
    run = tmp_path / "run"
    state = checkpoint(train_diffusion(stage, run))["state_dict"]
    last = "picture_words.net.4.weight"
    assert state[last].abs().max() > 0  # the network learns, and starts at the components alone
    assert {name.split(".")[0] for name in state} == {"unet", "text", "picture_words", "scale_factor"}
    again = replace(stage, start_from=run, optim=replace(stage.optim, lr=0.0))
    going_on = checkpoint(train_diffusion(again, tmp_path / "going on"))["state_dict"]
    kept = [name for name in state if name.startswith("picture_words.")]
    for name in kept:  # what the network had learned is not lost, nor what it reads
        torch.testing.assert_close(going_on[name], state[name])
    other = LatentBank(loaded.mean, loaded.std, captions, loaded.subjects, loaded.portraits.flip(0))
    other.save(hidden)
    different = checkpoint(train_diffusion(stage, tmp_path / "other"))["state_dict"]
    assert any(not torch.equal(state[name], different[name]) for name in state)  # portraits do tell
    out = export(stage, run, tmp_path / "m")
    assert not any("picture_words" in name for name in read_state_dict(out / "model.safetensors"))
    told = load_picture_words(load(out).text, out).of(loaded.portraits)
    prefix = "picture_words."
    trained = PictureWords(load(out).text, loaded.portraits[0].numel())
    trained.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    expected = trained.of(loaded.portraits)
    torch.testing.assert_close(told, expected, rtol=0.02, atol=0.02 * float(expected.detach().std()))
    shipped = replace(again, start_from=out, autoencoder_run=out)
    from_model = checkpoint(train_diffusion(shipped, tmp_path / "from the model"))["state_dict"]
    torch.testing.assert_close(from_model[last], state[last], rtol=1e-2, atol=1e-3)
    with pytest.raises(UserError, match="not trained with words of portraits"):
        load_picture_words(load(out).text, tmp_path)


def test_the_word_of_a_thing_stands_where_its_name_is_hidden(tiny_model: LatentDiffusion, bank: Path) -> None:
    text = tiny_model.text
    examples = BankExamples.load(bank)
    words = PictureWords.fitted(text, examples.bank.portraits, examples.shares)
    told = words.words(torch.arange(3))
    assert told.shape == (3, text.width)
    length = text.token_table.square().mean().sqrt().expand(3)
    torch.testing.assert_close(told.square().mean(1).sqrt(), length, rtol=1e-2, atol=0.0)
    portraits = examples.bank.portraits.flatten(1).float()
    centre, axes = half_whitening(portraits, examples.shares, text.width)
    components = (portraits - centre) @ axes @ rotation(text.width)
    cosine = torch.cosine_similarity(told, components - components.mean(1, keepdim=True))
    torch.testing.assert_close(cosine, torch.ones(3))  # before the network has learned anything
    ids = text.tokenize(["a <this> cat", "a cat"])
    embeds = text.embed(ids)
    put = words.put(ids, embeds, torch.tensor([2, 1]))
    torch.testing.assert_close(put[0, 2], told[2])
    assert torch.equal(put[1], embeds[1]) and torch.equal(put[0, :2], embeds[0, :2])
    text.tokenizer.remove_placeholder("<this>")


def test_half_whitened_components_are_uncorrelated_and_lead_by_the_square_root() -> None:
    rng = torch.Generator().manual_seed(0)
    deviation = torch.tensor([9.0, 4.0, 1.0, 0.25])
    basis = torch.linalg.qr(torch.randn(6, 6, generator=rng))[0][:4]
    x = torch.randn(4000, 4, generator=rng) * deviation @ basis
    centre, axes = half_whitening(x, torch.ones(len(x)), 8)  # four components in a code of eight
    codes = (x - centre) @ axes @ rotation(8)
    assert codes.shape == (4000, 8)
    codes = codes - codes.mean(0)
    spread = torch.linalg.svdvals(codes) / len(x) ** 0.5
    torch.testing.assert_close(spread[:4], deviation.sqrt(), rtol=0.05, atol=0.0)
    assert spread[4:].max() < 1e-3
    near, far = (x[0] - x).norm(dim=1)[1:], (codes[0] - codes).norm(dim=1)[1:]
    assert torch.corrcoef(torch.stack([near, far]))[0, 1] > 0.9  # neighbours stay neighbours
    # a row drawn twice as often counts as two rows
    twice = half_whitening(torch.cat([x, x[:9]]), torch.ones(len(x) + 9), 8)
    named = half_whitening(x, 1.0 + (torch.arange(len(x)) < 9), 8)
    torch.testing.assert_close(named[0], twice[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(named[1] @ named[1].T, twice[1] @ twice[1].T, rtol=1e-3, atol=1e-3)


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
    average = {k: v.half().float() for k, v in state["state_dict"].items() if k != "scale_factor"}
    trained = {"unet": model.unet, "text": model.text}
    assert_same({f"{n}.{k}": v for n, m in trained.items() for k, v in m.state_dict().items()}, average)
    ours = {k: v.half().float() for k, v in autoencoder.state_dict().items()}
    assert_same(model.autoencoder.state_dict(), ours)
    bank = LatentBank.load(*diffusion_stage.latents)
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
    going_on = diffusion_model(stage, BankExamples.load(*stage.latents))
    assert going_on.fingerprint() == load(out).fingerprint()
    other = BankExamples.load(*stage.latents)
    other.bank.mean *= 3  # pictures that spread otherwise: the scale factor stays the one the UNet knows
    assert diffusion_model(stage, other).scale_factor == going_on.scale_factor != other.scale_factor


@pytest.fixture()
def captioned_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(WORDS):
        Image.new("RGB", (40, 40), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} cat")
    return folder


def test_pictures_drawn_anew_train_as_latents_do(
    diffusion_stage: DiffusionStage, captioned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"root": str(captioned_folder), "image_size": diffusion_stage.model.image_size}
    node = {"target": "ldm.pretraining.sources.FolderPictures", "params": params}
    mixed = {
        "target": "ldm.pretraining.mixed.MixedPictures",
        "params": {"sources": [{"share": 3, **node}, node]},
    }
    stage = replace(diffusion_stage, latents=(), data=mixed)
    with pytest.raises(UserError, match="either latents .* or data"):
        train_diffusion(replace(stage, data=None), tmp_path / "neither")
    with pytest.raises(UserError, match="either latents .* or data"):
        train_diffusion(replace(stage, latents=diffusion_stage.latents), tmp_path / "both")
    whole = checkpoint(train_diffusion(stage, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt(patch, DiffusionTraining, "make_batch", 5)
        with pytest.raises(Interrupted):
            train_diffusion(stage, tmp_path / "cut")
    resumed = checkpoint(train_diffusion(stage, tmp_path / "cut", resume=True))
    assert_same(resumed["current_model_state"], whole["current_model_state"])
    ahead = checkpoint(train_diffusion(replace(stage, workers=2), tmp_path / "ahead"))
    assert_same(ahead["current_model_state"], whole["current_model_state"])
    latents = load(export(stage, tmp_path / "whole", tmp_path / "model"))
    assert sample(latents, "a cat", steps=2, seed=0).isfinite().all()


def test_a_run_with_muon_trains_every_weight(
    finished: tuple[Path, dict[str, Any]], diffusion_stage: DiffusionStage, tmp_path: Path
) -> None:
    stage = replace(diffusion_stage, optim=replace(diffusion_stage.optim, kind="muon"))
    state = checkpoint(train_diffusion(stage, tmp_path / "run"))
    other = finished[1]["current_model_state"]
    own = state["current_model_state"]
    differ = [key for key, value in own.items() if not torch.equal(value, other[key])]
    assert any("attn2.to_k" in key for key in differ)
    groups = state["optimizer_states"][0]["param_groups"]
    assert [group["muon"] for group in groups] == [True, False]
    # the same weights train, each in one group
    before = sum(len(g["params"]) for g in finished[1]["optimizer_states"][0]["param_groups"])
    assert sum(len(group["params"]) for group in groups) == before


def test_timesteps_follow_the_logistic_normal_in_strata() -> None:
    rng = torch.Generator().manual_seed(0)
    config = TimestepConfig("logit_normal", mean=0.5, std=0.8)
    t = draw_timesteps(20_000, 1000, config, rng)
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() <= 999
    logit = torch.logit((t.double() + 0.5) / 1000)
    assert logit.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logit.std().item() == pytest.approx(0.8, abs=0.01)
    few = draw_timesteps(8, 1000, config, rng)
    # strata: every eighth of the distribution is met once in eight draws, in random order
    places = torch.special.ndtr((torch.logit((few + 0.5) / 1000) - 0.5) / 0.8) * 8
    assert sorted(places.long().tolist()) == list(range(8)) and places.tolist() != sorted(places.tolist())
    extreme = draw_timesteps(64, 1000, TimestepConfig("logit_normal", 20.0, 1.0), rng)
    assert (extreme == 999).all()


def test_timesteps_below_the_lowest_are_not_drawn() -> None:
    rng = torch.Generator().manual_seed(0)
    t = draw_timesteps(6000, 1000, TimestepConfig(lowest=0.4), rng)
    assert sorted(set(t.tolist())) == list(range(400, 1000))  # all of the others alike
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="timesteps.lowest"):
            resolve(TimestepConfig, {"lowest": share}, "timesteps.")


def test_an_unknown_kind_of_timesteps_is_refused(diffusion_stage: DiffusionStage, tmp_path: Path) -> None:
    stage = replace(diffusion_stage, timesteps=TimestepConfig("cubic"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cubic.*logit_normal"):
        train_diffusion(stage, tmp_path / "run")


def test_a_compiled_run_keeps_the_names_of_its_weights(
    finished: tuple[Path, dict[str, Any]], diffusion_stage: DiffusionStage, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    compiled = []
    # the call itself is torch's; a real compilation takes a minute
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    state = checkpoint(train_diffusion(replace(diffusion_stage, compiled=True), tmp_path / "run"))
    assert compiled == ["UNetModel"]
    assert_same(state["state_dict"], finished[1]["state_dict"])


def test_models_of_one_training_are_averaged(tiny_model: LatentDiffusion) -> None:
    first, second, third = (copy.deepcopy(tiny_model) for _ in range(3))
    with torch.no_grad():
        for model, shift in ((second, 1.0), (third, -4.0)):
            for part in model.parts.values():
                for value in part.state_dict().values():
                    value.add_(shift)
    before_it_was_averaged = first.fingerprint()
    assert average_models([first, second, third]) is first
    assert first.fingerprint() != before_it_was_averaged
    for prefix, part in first.parts.items():
        before = tiny_model.parts[prefix].state_dict()
        for name, value in part.state_dict().items():
            torch.testing.assert_close(value, before[name] - 1)


def test_the_average_of_equal_models_is_that_model_to_the_bit(tiny_model: LatentDiffusion) -> None:
    mean = average_models([copy.deepcopy(tiny_model) for _ in range(3)])
    for prefix, part in mean.parts.items():
        assert_same(part.state_dict(), tiny_model.parts[prefix].state_dict())


def test_models_of_different_kinds_have_no_average(tiny_model: LatentDiffusion) -> None:
    wider = copy.deepcopy(tiny_model)
    wider.text.register_buffer("more", torch.zeros(1))
    with pytest.raises(UserError, match="model 2 .*cond_stage_model.more differs"):
        average_models([copy.deepcopy(tiny_model), wider])
