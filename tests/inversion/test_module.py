"""Inversion: only v* moves, runs resume exactly, and what a run leaves behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from learning import BASE, TRAINER, _module, learn_word
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy

from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.config import check
from ldm.inversion.module import TextualInversion, frozen_hash
from ldm.inversion.run import learn
from ldm.io.embeddings import Embedding, load_embedding, save_embeddings
from ldm.io.runs import create_run
from ldm.sampling.sample import sample
from ldm.training.fit import LoggingConfig
from ldm.training.optim import OptimConfig, lr_factor, scale_lr
from ldm.training.timesteps import TimestepConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"), ("1", "2", "3"))


def test_after_twenty_steps_only_v_star_differs(tiny_model: LatentDiffusion, concept: Concept) -> None:
    before = frozen_hash(tiny_model)
    tiny_model.add_placeholder("<other>", init="dog")
    other = tiny_model.manager.vectors("<other>").clone()
    vectors = learn_word(tiny_model, concept)
    assert frozen_hash(tiny_model) == before
    assert torch.equal(tiny_model.manager.vectors("<other>"), other)
    start = tiny_model.manager.init_vectors("<toy>")
    assert (vectors - start).norm() > 1e-3
    assert all(p.grad is None for part in tiny_model.parts.values() for p in part.parameters())


def test_frozen_parts_stay_in_evaluation_mode(tiny_model: LatentDiffusion, concept: Concept) -> None:
    module = _module(tiny_model, concept)
    module.train()
    assert not (module.unet.training or module.text.training or module.autoencoder.training)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained and all(".manager." in name for name in trained)


def test_the_same_seed_learns_the_same_vector_and_another_another(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    first = learn_word(tiny_model, concept)
    assert torch.equal(first, learn_word(tiny_model, concept))
    assert not torch.equal(first, learn_word(tiny_model, concept, seed=1))


@pytest.mark.parametrize("word", ["plain", "per_layer"])
def test_an_interrupted_run_resumes_bit_for_bit(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path, word: str
) -> None:
    optim = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=3)
    config = replace(BASE, optim=optim, word=word)
    whole = learn(tiny_model, concept, config, run=create_run(tmp_path / "whole"))
    cut = create_run(tmp_path / "cut")

    class Stop(Exception):
        pass

    def interrupt(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 12:
            raise Stop
        return original(self, batch, batch_idx)

    original = TextualInversion.training_step
    TextualInversion.training_step = interrupt  # type: ignore[method-assign]
    try:
        with pytest.raises(Stop):
            learn(tiny_model, concept, config, run=cut)
    finally:
        TextualInversion.training_step = original  # type: ignore[method-assign]
    checkpoint = cut.path / "checkpoints" / "last.ckpt"
    assert checkpoint.stat().st_size < 100_000
    run = create_run(cut.path, resume=True)
    resumed = learn(tiny_model, concept, config, run=run, resume=True)
    assert torch.equal(resumed.vectors, whole.vectors)


def test_a_checkpoint_of_another_base_model_is_refused(tiny_model: LatentDiffusion, concept: Concept) -> None:
    module = _module(tiny_model, concept)
    with pytest.raises(UserError, match="another base model"):
        module.on_load_checkpoint({"base_model": "0" * 64})


def test_a_run_leaves_config_embeddings_pictures_logs_and_manifest(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path
) -> None:
    run = create_run(tmp_path / "run")
    embedding = learn(tiny_model, concept, BASE, run=run)
    kept = load_embedding(run.path / "embeddings.safetensors")
    assert torch.equal(kept.vectors, embedding.vectors) and kept.placeholder == "<toy>"
    assert load_embedding(run.path / "checkpoints" / "embeddings_gs-5.safetensors").metadata["step"] == "5"
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["base_model"] == tiny_model.fingerprint() and manifest["seed"] == 23
    assert len(manifest["image_hashes"]) == 3 and manifest["steps"] == 20
    for step in (0, 10, 20):
        assert Image.open(run.path / "images" / f"samples_{step:06d}.png").width >= 16
    assert (run.path / "report.html").stat().st_size > 1000
    assert "fixed_loss" in (run.path / "logs" / "csv" / "metrics.csv").read_text().splitlines()[0]


def test_wandb_without_an_account_and_tensorboard_log_offline(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    logging = LoggingConfig(loggers=("tensorboard", "wandb"))
    trainer = replace(TRAINER, max_steps=2, image_every=2)
    run = create_run(tmp_path / "run")
    learn(tiny_model, concept, replace(BASE, logging=logging, trainer=trainer), run=run, progress=False)
    assert list((run.path / "logs").rglob("offline-run-*/*.wandb"))
    assert list((run.path / "logs" / "tensorboard").glob("events.*"))


def test_a_users_own_trainer_trains_it_with_their_callback_logger_strategy_and_precision(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    seen: list[int] = []
    logged: dict[int, dict[str, float]] = {}

    class Own(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append(trainer.global_step)

    class Log(DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            logged.setdefault(step, {}).update(metrics)

    trainer = pl.Trainer(
        max_steps=3, callbacks=[Own()], logger=Log(), strategy=SingleDeviceStrategy("cpu"),
        plugins=[MixedPrecision("bf16-mixed", "cpu")], log_every_n_steps=1, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    module = _module(tiny_model, concept)
    trainer.fit(module)
    assert seen == [1, 2, 3] and [step for step in logged if "train/loss" in logged[step]] == [0, 1, 2]
    v_star = tiny_model.manager.vectors("<toy>")
    assert not torch.equal(v_star, tiny_model.manager.init_vectors("<toy>"))


def test_the_regulariser_keeps_the_word_nearer_to_its_start(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    def distance(weight: float) -> float:
        vectors = learn_word(tiny_model, concept, regularization=weight)
        return float((vectors - tiny_model.manager.init_vectors("<toy>")).norm())

    assert distance(1e3) < 0.5 * distance(0.0)


def test_each_layer_of_the_unet_learns_its_own_vectors(tiny_model: LatentDiffusion, concept: Concept) -> None:
    before = frozen_hash(tiny_model)
    vectors = learn_word(tiny_model, concept, num_vectors=2, progressive=(30,), word="per_layer")
    start = tiny_model.manager.init_vectors("<toy>")
    assert frozen_hash(tiny_model) == before
    assert vectors.shape == start.shape == (tiny_model.unet.num_transformers, 2, 32)
    assert start.equal(start[:1].expand_as(start)), "all layers start alike"
    assert torch.equal(vectors[:, 1], start[:, 1])  # not in use within 20 steps
    moved = (vectors - start)[:, 0]
    assert moved.norm(dim=1).min() > 1e-3 and torch.pdist(moved).min() > 1e-3
    images = sample(tiny_model, ["a photo of <toy>", "a photo of a cat"], steps=2, seed=0, progress=False)
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()


def test_layers_that_move_alike_learn_what_one_vector_learns_and_then_part(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    one = learn_word(tiny_model, concept)
    alike = learn_word(tiny_model, concept, word={"kind": "per_layer", "shared_steps": 20})
    assert alike.equal(alike[:1].expand_as(alike))
    start = tiny_model.manager.init_vectors("<toy>")[0]
    assert (alike[0] - one).norm() < 0.02 * (one - start).norm()
    apart = learn_word(tiny_model, concept, word={"kind": "per_layer", "shared_steps": 19})
    assert torch.pdist(apart[:, 0]).min() > 0


def test_a_word_without_layers_can_be_where_each_layer_starts(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path
) -> None:
    word = Embedding("<toy>", torch.randn(2, 32), {})
    path = save_embeddings(word, tmp_path / "start.safetensors")
    learn_word(tiny_model, concept, init_embedding=path, init=None, num_vectors=2, word="per_layer")
    start = tiny_model.manager.init_vectors("<toy>")
    assert start.equal(word.vectors.expand(tiny_model.unet.num_transformers, -1, -1))


def test_the_official_format_has_no_place_for_layers() -> None:
    with pytest.raises(UserError, match="formats=.safetensors."):
        check(replace(BASE, word="per_layer", formats=("pt",)))


def test_steps_that_layers_share_are_refused_where_there_are_no_layers() -> None:
    with pytest.raises(UserError, match="unknown config key 'word.shared_steps'"):
        replace(BASE, word={"shared_steps": 15})
    with pytest.raises(UserError, match="no kind of word 'per-layer'; choose one of"):
        replace(BASE, word="per-layer")


def test_progressive_vectors_enter_at_their_steps(tiny_model: LatentDiffusion, concept: Concept) -> None:
    vectors = learn_word(tiny_model, concept, num_vectors=2, progressive=(30,))
    start = tiny_model.manager.init_vectors("<toy>")
    assert not torch.equal(vectors[0], start[0])
    assert torch.equal(vectors[1], start[1])  # not in use within 20 steps


def test_per_image_words_are_dropped_after_training(tiny_config: ModelConfig, concept: Concept) -> None:
    text = {**tiny_config.text, "params": {**tiny_config.text["params"], "max_seq_len": 64}}
    model = build(replace(tiny_config, text=text)).freeze()
    learn_word(model, concept, captions=replace(BASE.captions, per_image_tokens=True))
    assert list(model.manager.placeholders) == ["<toy>"]
    assert list(model.text.tokenizer.placeholders) == ["<toy>"]


def test_bfloat16_parts_keep_v_star_in_float32(tiny_model: LatentDiffusion, concept: Concept) -> None:
    trainer = replace(TRAINER, precision="bf16-mixed", max_steps=3)
    vectors = learn_word(tiny_model, concept, trainer=trainer)
    assert vectors.dtype == torch.float32 and tiny_model.manager.vectors("<toy>").dtype == torch.float32
    assert tiny_model.dtype == torch.float32  # the model is given back as it was


def test_nothing_is_measured_in_larger_batches_than_a_step_trains_on(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    sizes = []
    tiny_model.unet.register_forward_pre_hook(lambda unet, args: sizes.append(len(args[0])))
    learn_word(tiny_model, concept, batch_size=2, trainer=replace(TRAINER, max_steps=2))
    assert set(sizes) == {2}  # at full size a batch of 32 would take tens of gigabytes


def test_a_base_model_that_looks_untrained_is_refused(tiny_model: LatentDiffusion, concept: Concept) -> None:
    with pytest.raises(UserError, match="untrained"):
        learn_word(tiny_model, concept, stop=replace(BASE.stop, allow_untrained=False))


def test_unknown_init_words_and_prompts_without_the_word_are_refused(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    with pytest.raises(UserError, match="init phrase"):
        learn_word(tiny_model, concept, init="猫")
    with pytest.raises(UserError, match="no placeholder"):
        check(replace(BASE, show=replace(BASE.show, prompts=("a photo of a cat",))))


def test_captions_that_are_cut_before_the_word_are_refused(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    captions = [["a photo of a big red dog and a small green car on the beach of a <toy>"]] * 3
    with pytest.raises(UserError, match="cut off"):
        learn(tiny_model, concept, BASE, captions=captions, progress=False)


def test_training_goes_on_from_the_vectors_of_an_embedding_file(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path
) -> None:
    path = tmp_path / "word.pt"
    given = Embedding("<other>", torch.full((2, 32), 0.1))
    save_embeddings(given, path)
    vectors = learn_word(tiny_model, concept, init_embedding=path, init=None, num_vectors=2)
    assert vectors.shape == (2, 32) and (vectors - given.vectors).abs().max() < 0.1
    save_embeddings(Embedding("<other>", torch.zeros(1, 7)), path)
    with pytest.raises(UserError, match="7"):
        learn_word(tiny_model, concept, init_embedding=path)


@pytest.mark.parametrize("changes", [
    {"init": "cat", "num_vectors": 2}, {"init": None, "num_vectors": 1}, {"init": None, "num_vectors": 3},
    {"init": None, "num_vectors": 2, "more_words": {"<b>": "dog"}},
])  # fmt: skip
def test_a_start_that_the_config_contradicts_is_refused(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path, changes: dict[str, Any]
) -> None:
    words = [Embedding(name, torch.ones(2, 32)) for name in ("<toy>", "<b>")]
    path = save_embeddings(words, tmp_path / "word.safetensors")
    with pytest.raises(UserError, match="leave out init or|give num_vectors=2") as caught:
        learn_word(tiny_model, concept, init_embedding=path, **changes)
    assert "word.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_a_word_is_learned_at_the_noise_levels_that_are_asked_for(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    module = _module(tiny_model, concept, timesteps=TimestepConfig(lowest=0.6))
    z, total = torch.zeros(8, 4, 2, 2), tiny_model.schedule.num_timesteps
    drawn = torch.cat([module.objective.noise(z, step)[0] for step in range(50)])
    assert 0.6 * total <= drawn.min() < 0.7 * total and 0.9 * total < drawn.max() < total
    everywhere = learn_word(tiny_model, concept)
    assert not torch.equal(learn_word(tiny_model, concept, timesteps=TimestepConfig(lowest=0.6)), everywhere)
    with pytest.raises(UserError, match="timesteps.lowest is 1"):
        check(replace(BASE, timesteps=TimestepConfig(lowest=1.0)))


def test_learning_rate_scaling_and_schedules() -> None:
    assert scale_lr(0.005, accumulate=1, devices=2, batch_size=4) == pytest.approx(0.04)
    config = OptimConfig(schedule="cosine", warmup_steps=10, lr_final_ratio=0.1)
    factors = [lr_factor(step, 110, config) for step in (0, 9, 10, 60, 110, 200)]
    assert factors == pytest.approx([0.1, 1.0, 1.0, 0.55, 0.1, 0.1])
    assert lr_factor(1000, 10, OptimConfig(schedule="constant")) == 1.0


def test_a_word_is_called_in_official_files_by_the_models_own_token(
    tiny_config: ModelConfig, concept: Concept, tmp_path: Path
) -> None:
    vocabulary = Path(tiny_config.text["params"]["vocab_file"]).read_text().replace("tree", "*")
    (tmp_path / "vocab.txt").write_text(vocabulary)
    params = {**tiny_config.text["params"], "vocab_file": str(tmp_path / "vocab.txt")}
    model = build(replace(tiny_config, text={**tiny_config.text, "params": params})).freeze()
    trainer = replace(TRAINER, max_steps=1, image_every=0)
    for word, token in (("<toy>", "*"), ("toy", "toy"), ("*", "*")):
        config = replace(BASE, placeholder=word, trainer=trainer, formats=("pt",))
        run = create_run(tmp_path / f"run {token} {word.strip('<>*')}")
        learn(model, concept, config, run=run, progress=False)
        number = str(vocabulary.splitlines().index(token))
        for name in ("checkpoints/embeddings.pt", "embeddings.safetensors"):
            assert load_embedding(run.path / name).metadata["token_id"] == number  # width 32 tells nothing
