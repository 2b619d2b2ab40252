"""One checkpoint: a run that was begun alone goes on in a pack, and the other way round, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import BASE as LEARNED
from PIL import Image
from toy_kind import TwoHalves

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.checkpoint import loops_at
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import Job
from ldm.inversion.many.learner import joint_gradients
from ldm.inversion.many.pack import learn_many
from ldm.inversion.module import TextualInversion
from ldm.inversion.run import learn
from ldm.inversion.sections import ContextConfig
from ldm.inversion.task import read_pictures
from ldm.io.embeddings import load_embedding
from ldm.io.runs import create_run
from ldm.training.optim import OptimConfig
from ldm.words.kind import KINDS

pytestmark = pytest.mark.slow

CUT = 5  # of 8 steps, two after the last checkpoint
Go = Callable[[InversionConfig, Path, bool], None]


@pytest.fixture
def config(tmp_path: Path) -> InversionConfig:
    (tmp_path / "pictures").mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 16), colour).save(tmp_path / "pictures" / f"{i}.png")
    return replace(
        LEARNED, images=tmp_path / "pictures", batch_size=2, show=replace(LEARNED.show, samples_per_prompt=0),
        stop=replace(LEARNED.stop, monitor_every=2),
        optim=OptimConfig(lr=1e-2, schedule="cosine", warmup_steps=3, clip_norm=0.05), regularization=0.1,
        context=ContextConfig(weight=0.1, templates=("a {} on the beach", "a red {} in snow")),
        trainer=replace(LEARNED.trainer, max_steps=8, checkpoint_every=3, image_every=0, accumulate=2),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "two_halves", TwoHalves)


def alone(model: LatentDiffusion) -> Go:
    def go(config: InversionConfig, out: Path, resume: bool) -> None:
        concept, _ = read_pictures(config, model.image_size)
        run = create_run(out, resume=resume)
        learn(model.with_own_words(), concept, config, run=run, resume=resume, progress=False)

    return go


def packed(model: LatentDiffusion) -> Go:
    def go(config: InversionConfig, out: Path, resume: bool) -> None:
        job = Job(out.name, config)
        (result,) = learn_many(model, [job], out.parent, pack=1, resume=resume, progress=False)
        if result.error:
            raise UserError(result.error)

    return go


def cut(go: Go, config: InversionConfig, out: Path) -> None:
    """Begin a run that is killed in its step ``CUT``."""
    batches = [0]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            batches[0] += 1
            if batches[0] > CUT * config.trainer.accumulate:
                raise KeyboardInterrupt
            return original(*args)

        return call

    with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr("ldm.inversion.many.pack.joint_gradients", counted(joint_gradients))
        patch.setattr(TextualInversion, "training_step", counted(TextualInversion.training_step))
        go(config, out, False)


def checkpoint_of(out: Path) -> dict[str, Any]:
    assert (out / "checkpoints" / "last.ckpt").stat().st_size < 100_000
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two parts of checkpoints hold the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def word_of(out: Path) -> torch.Tensor:
    return load_embedding(out / "embeddings.safetensors").vectors


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"word": {"kind": "per_layer", "shared_steps": 4}, "num_vectors": 2},
        {"word": "two_halves"},
        {"word": {"kind": "directional", "decay": 0.5}},
        {"word": "per_stage"},
        {"word": {"kind": "space_time", "hidden": 8, "anchors": 2, "frequencies": 16, "bypass": True}},
    ],
    ids=str,
)
def test_a_run_goes_on_in_a_pack_and_a_member_of_a_pack_alone_bit_for_bit(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path, own: dict[str, Any]
) -> None:
    """Both leave the same when they are cut; so each goes on from its own if it goes on from the other's."""
    config = replace(config, **own)
    ways = {"alone": alone(tiny_model), "packed": packed(tiny_model)}
    for name, go in ways.items():
        go(config, tmp_path / name, False)
        cut(go, config, tmp_path / f"cut {name}")
    whole = word_of(tmp_path / "alone")
    assert torch.equal(word_of(tmp_path / "packed"), whole)
    run, member = (checkpoint_of(tmp_path / f"cut {name}") for name in ways)
    assert run["global_step"] == member["global_step"] == 3
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(run[part], member[part]), part
    for begun, go_on in (("alone", ways["packed"]), ("packed", ways["alone"])):
        out = tmp_path / f"cut {begun}"
        go_on(config, out, True)
        assert torch.equal(word_of(out), whole), out.name
        assert checkpoint_of(out)["global_step"] == 8


def test_both_write_the_same_checkpoint(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path
) -> None:
    for name, go in (("alone", alone(tiny_model)), ("packed", packed(tiny_model))):
        go(config, tmp_path / name, False)
    own, pack = (checkpoint_of(tmp_path / name) for name in ("alone", "packed"))
    assert own.keys() - {"hparams_name", "hyper_parameters"} == pack.keys()
    assert own["base_model"] == pack["base_model"] and own["global_step"] == pack["global_step"] == 8
    history = [state["callbacks"]["FixedBatchMonitor"]["history"] for state in (own, pack)]
    assert history[0] == history[1] and [row["step"] for row in history[0]] == [0, 2, 4, 6, 8]
    assert all(state["callbacks"]["TimeLimit"]["seconds"] > 0 for state in (own, pack))
    counts = loops_at(8, config.trainer.accumulate)["fit_loop"]
    assert pack["loops"]["fit_loop"] == counts
    lightning = own["loops"]["fit_loop"]
    assert {key: lightning[key] for key in counts} == counts  # what it writes itself
    for key, value in own["state_dict"].items():
        assert key.startswith("model.manager.")
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, pack["state_dict"][key])


def test_what_a_users_own_callback_keeps_stays_while_the_run_is_in_a_pack(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    cut(alone(tiny_model), config, out)
    state = checkpoint_of(out)
    state["callbacks"]["Own"] = {"seen": 7}
    torch.save(state, out / "checkpoints" / "last.ckpt")
    packed(tiny_model)(config, out, True)
    assert checkpoint_of(out)["callbacks"]["Own"] == {"seen": 7}


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path
) -> None:
    out, folder = tmp_path / "run", tmp_path / "run" / "checkpoints"
    cut(packed(tiny_model), replace(config, trainer=replace(config.trainer, checkpoint_every=2)), out)
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["last.ckpt", "step=2.ckpt"]
    (folder / "last.ckpt").write_bytes(b"PK damaged")
    cut(packed(tiny_model), config, tmp_path / "whole")
    packed(tiny_model)(replace(config, trainer=replace(config.trainer, checkpoint_every=2)), out, True)
    alone(tiny_model)(config, tmp_path / "alone", False)
    assert torch.equal(word_of(out), word_of(tmp_path / "alone"))


# ------------------------------------------------------------------ precisions
ON_A_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize(
    "precision",
    [
        "bf16-mixed",
        "bf16-true",
        "64-true",
        *(pytest.param(p, marks=ON_A_GPU) for p in ("16-mixed", "16-true")),
    ],
)
def test_a_pack_learns_in_every_precision_what_a_run_of_its_own_learns(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path, precision: str
) -> None:
    accelerator, device = ("gpu", "cuda") if precision.startswith("16") else ("cpu", "cpu")
    trainer = replace(config.trainer, precision=precision, accelerator=accelerator)  # type: ignore[arg-type]
    config = replace(config, trainer=trainer)
    tiny_model.to(device)  # before the pictures are encoded
    ways = {"alone": alone(tiny_model), "packed": packed(tiny_model)}
    for name, go in ways.items():
        go(config, tmp_path / name, False)
        assert tiny_model.dtype == torch.float32  # given back as it was
    own, pack = (word_of(tmp_path / name) for name in ways)
    start = load_embedding(tmp_path / "alone" / "checkpoints" / "embeddings_gs-3.safetensors").vectors
    assert own.dtype == torch.float32 and torch.equal(own, pack) and not torch.equal(own, start)
    cut(ways["packed"], config, tmp_path / "cut")
    ways["alone"](config, tmp_path / "cut", True)
    assert torch.equal(word_of(tmp_path / "cut"), own)
    if precision == "16-mixed":
        scales = [checkpoint_of(tmp_path / name)["MixedPrecision"] for name in (*ways, "cut")]
        assert scales[0] == scales[1] == scales[2] and scales[0]["scale"] > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_a_precision_that_this_machine_does_not_have_is_refused_for_a_pack_too(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path
) -> None:
    config = replace(config, trainer=replace(config.trainer, precision="16-mixed"))
    with pytest.raises(UserError, match="needs a GPU"):
        packed(tiny_model)(config, tmp_path / "run", False)
