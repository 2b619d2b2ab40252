"""Packs: each concept learns what it learns alone, and what happens to one is nothing to the others."""

import json
import logging
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ldm.backbone.loading import load
from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.config import merge, resolve
from ldm.device import out_of_memory
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import SUMMARY, Job, check_together, write_summary
from ldm.inversion.many.learner import Learner, joint_gradients
from ldm.inversion.many.pack import learn_many
from ldm.inversion.run import learn
from ldm.inversion.sections import CaptionsConfig, ComputeConfig, ShowConfig, StopConfig
from ldm.inversion.task import prepare, read_pictures
from ldm.io.embeddings import Embedding, load_embedding, load_embeddings
from ldm.io.runs import create_run
from ldm.training.fit import LoggingConfig, TrainerConfig, attention_kernel
from ldm.training.memory import TRANSIENT, USABLE, step_bytes
from ldm.training.optim import OptimConfig

pytestmark = pytest.mark.slow

CONCEPTS = Path(__file__).parents[3] / "configs" / "emoji" / "concepts"

#: of how far AdamW can move a number: lr x steps
TOLERANCE = 1e-4
BASE = InversionConfig(
    images=Path(),
    placeholder="",
    init="cat",
    captions=CaptionsConfig(templates="plain"),
    show=ShowConfig(prompts=("a photo of {}",), samples_per_prompt=0),
    batch_size=2,
    stop=StopConfig(monitor_every=4, allow_untrained=True),
    optim=OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=2),
    trainer=TrainerConfig(max_steps=6, accelerator="cpu", checkpoint_every=4, image_every=0),
    logging=LoggingConfig(loggers=()),
)


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig, randomise: Callable[..., nn.Module]) -> LatentDiffusion:
    """One for all tests: packs leave it as it was."""
    model = build(tiny_config)
    for part in model.parts.values():
        randomise(part)
    return model.freeze()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder of three pictures for a concept."""
    root = tmp_path_factory.mktemp("pictures")

    def make(name: str) -> Path:
        (root / name).mkdir()
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        for i in range(3):
            pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.png")
        return root / name

    return make


def steps(n: int) -> TrainerConfig:
    return replace(BASE.trainer, max_steps=n)


@pytest.fixture(scope="module")
def jobs(pictures: Callable[[str], Path]) -> list[Job]:
    """Three that differ in all that a concept may have of its own."""
    many = replace(
        BASE, placeholder="<a>", images=pictures("a"), num_vectors=2,
        word={"kind": "per_layer", "shared_steps": 5}, trainer=steps(9),
    )  # fmt: skip
    few = replace(
        BASE, placeholder="<b>", images=pictures("b"), init="a red dog", trainer=steps(4),
        batch_size=3, seed=5, optim=OptimConfig(lr=3e-3, schedule="constant", clip_norm=0.01),
        regularization=0.1, pictures=replace(BASE.pictures, flip_p=0.0),
    )  # fmt: skip
    # its word is in the others' templates
    plain = replace(
        BASE, placeholder="photo", images=pictures("c"), init=None, num_vectors=3, progressive=(2, 5),
        trainer=replace(steps(7), accumulate=2),
    )  # fmt: skip
    return [Job("many", many), Job("few", few), Job("plain", plain)]


def alone(model: LatentDiffusion, config: InversionConfig, out: Path | None = None) -> Embedding:
    """What a run of its own learns."""
    concept, captions = read_pictures(config, model.image_size)
    run = None if out is None else create_run(out)
    return learn(model.with_own_words(), concept, config, captions=captions, run=run, progress=False)


@pytest.fixture(scope="module")
def expected(model: LatentDiffusion, jobs: list[Job]) -> dict[str, torch.Tensor]:
    """The three words, each from a run of its own."""
    return {job.name: alone(model, job.config).vectors for job in jobs}


def with_trainer(job: Job, **changes: Any) -> Job:
    return replace(job, config=replace(job.config, trainer=replace(job.config.trainer, **changes)))


def word_of(job: Job, out: Path) -> torch.Tensor:
    return load_embedding(out / job.name / "embeddings.safetensors").vectors


def first_vectors(model: LatentDiffusion, job: Job) -> torch.Tensor:
    """Where a word starts: after no steps."""
    return alone(model, with_trainer(job, max_steps=0).config).vectors


def assert_alike(job: Job, vectors: torch.Tensor, expected: torch.Tensor) -> None:
    """As far as float32 goes: sums over a batch are taken in another order."""
    bound = TOLERANCE * job.config.optim.lr * job.config.trainer.max_steps
    assert vectors.shape == expected.shape
    assert float((vectors - expected).abs().max()) < bound, job.name


@pytest.mark.parametrize("pack", [1, 2, 3])
def test_a_pack_learns_what_separate_runs_learn(
    model: LatentDiffusion, jobs: list[Job], expected: dict[str, torch.Tensor], tmp_path: Path, pack: int
) -> None:
    results = learn_many(model, jobs, tmp_path / "runs", pack=pack, progress=False)
    assert [(r.name, r.status, r.steps) for r in results] == [
        ("many", "learned", 9), ("few", "learned", 4), ("plain", "learned", 7),
    ]  # fmt: skip
    for job in jobs:
        assert_alike(job, word_of(job, tmp_path / "runs"), expected[job.name])
    assert not model.manager.placeholders


def test_the_emoji_model_learns_in_a_pack_what_it_learns_alone(tmp_path: Path) -> None:
    model = load("emoji")
    own = {"images": "", "placeholder": "", "batch_size": 4}
    own |= {"stop": {"monitor_every": 100}, "show": {"samples_per_prompt": 0}}
    settings = resolve(InversionConfig, merge(model.inversion_defaults, own))
    trainer = replace(settings.trainer, image_every=0, accelerator="cpu")
    jobs = [
        Job(name, replace(
            settings, images=CONCEPTS / name, placeholder=f"<{name}>", init=init,
            trainer=replace(trainer, max_steps=steps),
        ))
        for name, init, steps in (("koala", "bear", 3), ("owl", "bird", 2))
    ]  # fmt: skip
    learn_many(model, jobs, tmp_path, pack=2, progress=False)
    for job in jobs:
        assert_alike(job, word_of(job, tmp_path), alone(model, job.config).vectors)


def test_bfloat16_is_the_precision_of_the_shared_model_and_not_of_the_words(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    jobs = [with_trainer(job, precision="bf16-mixed", max_steps=3) for job in jobs[:2]]
    learn_many(model, jobs, tmp_path, progress=False)
    assert model.dtype == torch.float32
    for job in jobs:
        word, own = word_of(job, tmp_path), alone(model, job.config).vectors
        assert word.dtype == torch.float32
        # rounding flips the sign of AdamW's first steps where a gradient is small; another would give 1.4
        assert (word - own).norm() < 0.5 * (own - first_vectors(model, job)).norm()


def test_a_run_folder_is_that_of_a_run_of_its_own(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    config = replace(
        jobs[0].config,
        show=replace(jobs[0].config.show, samples_per_prompt=1, steps=2),
        trainer=replace(steps(6), image_every=5),
    )
    learn_many(model, [Job("run", config)], tmp_path / "packed", progress=False)
    alone(model, config, tmp_path / "alone")
    packed, own = (
        {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        for run in (tmp_path / "packed" / "run", tmp_path / "alone")
    )
    assert packed - own == {"config.yaml"} and not own - packed  # `learn` writes no config
    assert (tmp_path / "packed" / "run" / "checkpoints" / "last.ckpt").stat().st_size < 20_000
    manifests = [json.loads((run / "manifest.json").read_text())
                 for run in (tmp_path / "packed" / "run", tmp_path / "alone")]  # fmt: skip
    assert manifests[0].keys() == manifests[1].keys() and manifests[0]["steps"] == 6
    assert manifests[0]["loss"] == pytest.approx(manifests[1]["loss"])


# ------------------------------------------------------------------ what happens to one


def test_failed_concepts_are_named_and_stop_no_other(
    model: LatentDiffusion, jobs: list[Job], expected: dict[str, torch.Tensor], tmp_path: Path,
    pictures: Callable[[str], Path],
) -> None:  # fmt: skip
    corrupt = pictures("corrupt")
    (corrupt / "1.png").write_text("no picture")
    bad = [
        Job("corrupt", replace(BASE, images=corrupt, placeholder="<corrupt>")),
        Job("wild", replace(BASE, images=pictures("wild"), placeholder="<wild>",
                            optim=OptimConfig(lr=1e38, schedule="constant"))),
        Job("untrained", replace(BASE, images=pictures("untrained"), placeholder="<untrained>",
                                 stop=replace(BASE.stop, allow_untrained=False))),
    ]  # fmt: skip
    results = learn_many(model, [*bad, *jobs], tmp_path / "runs", pack=2, progress=False)
    assert [r.status for r in results] == ["failed"] * 3 + ["learned"] * 3
    for result, words in zip(results, ("1.png", "not finite", "untrained"), strict=False):
        assert words in (result.error or "")
    for job in jobs:
        assert_alike(job, word_of(job, tmp_path / "runs"), expected[job.name])


def test_a_concept_that_has_converged_leaves_as_it_would_alone(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    first = replace(
        jobs[0].config,
        stop=replace(jobs[0].config.stop, patience=1, min_improvement=0.5, monitor_every=3),
        trainer=steps(30),
    )
    stops = Job("stops", first)
    results = learn_many(model, [stops, jobs[1]], tmp_path / "runs", pack=2, progress=False)
    assert results[0].steps == 3 and results[1].steps == 4
    own = alone(model, first)
    assert own.metadata["step"] == "3"
    assert float((own.vectors - word_of(stops, tmp_path / "runs")).abs().max()) < 3e-6


# ------------------------------------------------------------------ memory


def memory_for(n: int, patch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Lets steps of more than ``n`` concepts fail; the sizes tried are noted."""
    tried: list[int] = []

    def limited(model: LatentDiffusion, learners: list) -> list:
        tried.append(len(learners))
        if len(learners) > n:
            raise error
        return joint_gradients(model, learners)

    patch.setattr("ldm.inversion.many.pack.joint_gradients", limited)
    return tried


def test_out_of_memory_is_met_by_a_smaller_pack(
    model: LatentDiffusion, jobs: list[Job], expected: dict[str, torch.Tensor], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    tried = memory_for(1, monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory."))
    monkeypatch.setattr(logging.getLogger("ldm"), "propagate", True)
    results = learn_many(model, jobs, tmp_path / "runs", pack=3, progress=False)
    assert [r.status for r in results] == ["learned"] * 3 and tried[:2] == [3, 1]
    assert "out of memory with 3 concepts in a pack: going on with 1" in caplog.messages
    for job in jobs:
        assert_alike(job, word_of(job, tmp_path / "runs"), expected[job.name])


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("alloc_cpu.cpp:126] DefaultCPUAllocator: not enough memory: you tried to"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("not enough memory"), False),
    ],
)
def test_allocators_say_in_their_own_words_that_memory_is_full(error: Exception, full: bool) -> None:
    assert out_of_memory(error) is full


def test_a_concept_that_does_not_fit_alone_is_told_what_to_do(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(0, monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    results = learn_many(model, jobs, tmp_path / "runs", pack=2, progress=False)
    assert [r.status for r in results] == ["failed"] * 3
    assert "batch_size (2;" in str(results[0].error) and "checkpointing" in str(results[0].error)


def test_any_other_error_is_not_taken_for_a_want_of_memory(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(0, monkeypatch, RuntimeError("shapes do not agree"))
    with pytest.raises(RuntimeError, match="do not agree"):
        learn_many(model, jobs, tmp_path / "runs", pack=2, progress=False)


def test_a_steps_memory_on_a_cpu_is_what_autograd_keeps() -> None:
    weight = torch.randn(64, 64)

    def step() -> None:
        x = torch.randn(100, 64, requires_grad=True)
        (x @ weight).exp().sum().backward()  # keeps the weight, and the result of exp

    assert step_bytes(step, torch.device("cpu"), [weight]) == TRANSIENT * 100 * 64 * 4
    assert step_bytes(step, torch.device("cpu")) == TRANSIENT * (100 + 64) * 64 * 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_packs_large_blocks_are_not_mapped_anew_each_time() -> None:
    """In a process of its own, whose allocator nothing has set before."""
    script = """
import resource, torch
from ldm.training.memory import freed_memory_kept
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MB: 16,384 pages of 4 kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
mapped = faults()
with freed_memory_kept():
    for _ in range(4):
        kept = faults()  # the heap grows first
print(mapped, kept, faults())
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    before, inside, after = map(int, done.stdout.split())
    assert inside < 0.1 * min(before, after)


@pytest.mark.parametrize(("room", "size"), [(0.1, 1), (1.1, 1), (2.6, 2), (100, 3)])
def test_an_automatic_pack_is_as_large_as_there_is_memory_for(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    room: float, size: int,
) -> None:  # fmt: skip
    jobs = [replace(job, config=replace(job.config, batch_size=2, trainer=steps(1))) for job in jobs]
    one = measured_bytes(model, jobs[0], tmp_path / "probe")
    monkeypatch.setattr("ldm.inversion.many.pack.free_bytes", lambda device: room * one / USABLE)
    tried = memory_for(99, monkeypatch, MemoryError())
    learn_many(model, jobs, tmp_path / "runs", pack="auto", progress=False)
    assert tried[0] == 1 and max(tried) == size  # the first is the probe


def measured_bytes(model: LatentDiffusion, job: Job, out: Path) -> int:
    concept, _ = read_pictures(job.config, model.image_size)
    task = prepare(model.with_own_words(), concept, job.config, run=create_run(out))
    learner = Learner(task, torch.device("cpu"))
    with attention_kernel("auto"):
        return step_bytes(lambda: joint_gradients(model, [learner]), torch.device("cpu"), model.parameters())


# ------------------------------------------------------------------ going on


def test_an_interrupted_pack_goes_on_from_the_checkpoints(
    model: LatentDiffusion, jobs: list[Job], expected: dict[str, torch.Tensor], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    jobs = [with_trainer(job, checkpoint_every=3) for job in jobs]
    calls = []

    def interrupted(model: LatentDiffusion, learners: list) -> list:
        calls.append([learner.step for learner in learners])
        if len(calls) == 9:
            raise KeyboardInterrupt
        return joint_gradients(model, learners)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ldm.inversion.many.pack.joint_gradients", interrupted)
        learn_many(model, jobs, tmp_path / "runs", pack=2, progress=False)
    assert calls[-1] == [8, 2]  # the second has finished, the third, of two batches a step, taken its place
    finished = (tmp_path / "runs" / "few" / "embeddings.safetensors").stat().st_mtime_ns
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr("ldm.inversion.many.pack.joint_gradients", interrupted)
        results = learn_many(model, jobs[:2], tmp_path / "runs", pack=2, resume=True, progress=False)
    assert calls[0] == [6] and [r.status for r in results] == ["learned", "kept"]
    assert results[1].steps == 4 and results[1].loss is not None
    assert (tmp_path / "runs" / "few" / "embeddings.safetensors").stat().st_mtime_ns == finished
    learn_many(model, jobs, tmp_path / "runs", pack=2, resume=True, progress=False)
    for job in jobs:
        assert_alike(job, word_of(job, tmp_path / "runs"), expected[job.name])


def test_a_pack_that_was_killed_between_two_saves_goes_on_bit_for_bit(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [with_trainer(job, checkpoint_every=3) for job in jobs]
    learn_many(model, jobs, tmp_path / "whole", pack=2, progress=False)
    save = Learner.save
    for stop in (1, 4):  # of the saves, each after its file has its name
        saves = []

        def killed(learner: Learner, saves: list = saves, stop: int = stop) -> None:
            save(learner)
            saves.append(learner.step)
            if len(saves) == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Learner, "save", killed)
            learn_many(model, jobs, tmp_path / f"cut {stop}", pack=2, progress=False)
        learn_many(model, jobs, tmp_path / f"cut {stop}", pack=2, resume=True, progress=False)
        for job in jobs:
            assert torch.equal(word_of(job, tmp_path / f"cut {stop}"), word_of(job, tmp_path / "whole")), stop
        assert not (tmp_path / f"cut {stop}" / "packs").exists()


def test_a_run_of_other_settings_or_a_damaged_checkpoint_is_not_gone_on_from(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def again(job: Job) -> str:
        (result,) = learn_many(model, [job], tmp_path, resume=True, progress=False)
        return str(result.error)

    monkeypatch.setattr(logging.getLogger("ldm"), "propagate", True)
    first = with_trainer(jobs[0], max_steps=6, checkpoint_every=3)
    learn_many(model, [first], tmp_path, progress=False)
    learned = word_of(first, tmp_path)
    kept = (tmp_path / "many" / "config.yaml").read_text()
    assert "seed is 23, not 1" in again(replace(first, config=replace(first.config, seed=1)))
    assert "3 steps" not in again(first) and (tmp_path / "many" / "config.yaml").read_text() == kept
    manifest = json.loads((tmp_path / "many" / "manifest.json").read_text())
    del manifest["finished"]
    (tmp_path / "many" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "many" / "checkpoints" / "last.ckpt").write_bytes(b"PK damaged")
    assert again(first) == "None"  # from the one before, which is of step 3
    assert torch.equal(word_of(first, tmp_path), learned)
    assert "last.ckpt is damaged: going on from step=3.ckpt, at step 3" in caplog.text
    (tmp_path / "many" / "manifest.json").write_text(json.dumps(manifest))
    for name in ("last.ckpt", "step=3.ckpt"):
        (tmp_path / "many" / "checkpoints" / name).write_bytes(b"PK damaged")
    assert "is damaged" in again(first)
    (result,) = learn_many(model, [first], tmp_path, progress=False)
    assert "not empty" in str(result.error)


def test_a_finished_word_is_trained_further_when_more_steps_are_wanted(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    job = jobs[1]  # of a constant rate
    learn_many(model, [with_trainer(job, max_steps=4)], tmp_path / "further", progress=False)
    (result,) = learn_many(
        model, [with_trainer(job, max_steps=6)], tmp_path / "further", resume=True, progress=False
    )
    assert (result.status, result.steps) == ("learned", 6)
    learn_many(model, [with_trainer(job, max_steps=6)], tmp_path / "whole", progress=False)
    assert torch.equal(word_of(job, tmp_path / "further"), word_of(job, tmp_path / "whole"))
    assert "max_steps: 6" in (tmp_path / "further" / job.name / "config.yaml").read_text()
    (result,) = learn_many(
        model, [with_trainer(job, max_steps=5)], tmp_path / "further", resume=True, progress=False
    )
    assert (result.status, result.steps) == ("kept", 6)


# ------------------------------------------------------------------ jobs and results


def test_jobs_travel_between_processes(jobs: list[Job]) -> None:
    assert pickle.loads(pickle.dumps(jobs)) == jobs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"placeholder": "<a>"}, "word '<a>'"),
        ({"model": "other"}, "one model"),
        ({"model_lr": 1e-5}, "model_lr"),
        ({"compute": ComputeConfig(compiled=True)}, "compiled anew"),
        ({"trainer": replace(BASE.trainer, precision="bf16-mixed")}, "one trainer.precision"),
        ({"trainer": replace(BASE.trainer, devices=2)}, "one device"),
    ],
)
def test_jobs_that_no_pack_can_hold_are_refused(jobs: list[Job], change: dict, words: str) -> None:
    odd = Job("odd", replace(jobs[1].config, **change))
    with pytest.raises(UserError, match=words):
        check_together([jobs[0], odd])


def test_two_jobs_of_one_folder_and_an_empty_pack_are_refused(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="name 'many'"):
        check_together([jobs[0], replace(jobs[1], name="many")])
    with pytest.raises(UserError, match="1 or more"):
        learn_many(model, jobs, tmp_path, pack=0)
    assert learn_many(model, [], tmp_path) == []


def test_the_summary_holds_every_job_and_every_word_that_was_learned(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    gone = Job("gone", replace(BASE, images=tmp_path / "nowhere", placeholder="<gone>"))
    results = learn_many(model, [gone, *jobs[:2]], tmp_path / "runs", progress=False)
    write_summary(results, tmp_path / "runs")
    rows = json.loads((tmp_path / "runs" / SUMMARY).read_text())["concepts"]
    assert [(row["name"], row["status"], row["path"]) for row in rows] == [
        ("gone", "failed", "gone"), ("many", "learned", "many"), ("few", "learned", "few"),
    ]  # fmt: skip
    assert "nowhere" in rows[0]["error"] and rows[1]["loss"] > 0 and rows[1]["seconds"] >= 0
    words = load_embeddings(tmp_path / "runs" / "embeddings.safetensors")
    assert [(word.placeholder, word.K) for word in words] == [("<a>", 2), ("<b>", 1)]
    assert torch.equal(words[0].vectors, word_of(jobs[0], tmp_path / "runs"))
