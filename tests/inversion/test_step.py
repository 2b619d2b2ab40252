"""What keeps the optimisation step near its floor, and that it changes nothing that is learned."""

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from learning import BASE, TRAINER, _module, learn_word
from torch import Tensor, nn

from ldm.backbone.forms import compiled, recomputed, stored_in
from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.context import context_term
from ldm.inversion.module import frozen_hash
from ldm.inversion.run import learn
from ldm.inversion.sections import ContextConfig
from ldm.inversion.step import Part, losses
from ldm.io.runs import create_run
from ldm.models.attention import CrossAttention
from ldm.models.autoencoder import PatchPCA
from ldm.training.optim import OptimConfig
from ldm.training.scalars import LateLosses, _Pending

pytestmark = pytest.mark.slow

FIVE = replace(TRAINER, max_steps=5, image_every=0)


@pytest.fixture
def concept() -> Concept:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (Path("a.png"), Path("b.png"), Path("c.png")), ("1", "2", "3"))


# ------------------------------------------------------------------------------ the host never waits
def test_a_step_reads_no_value_back_from_the_device(tiny_model: LatentDiffusion, concept: Concept) -> None:
    tiny_model.add_placeholder("<toy>", init="cat")
    wish = replace(BASE, context=ContextConfig(weight=0.1, templates=("a {} on snow",)))
    module = _module(tiny_model, concept, context=context_term(tiny_model, wish, ["<toy>"]))
    module.to("meta")  # where there are shapes and no values: whatever asks for one fails
    (loss,) = losses(tiny_model, [Part(module.objective, module.objective.draw(0), 0)])
    loss.total.backward()
    assert tiny_model.manager.parameter("<toy>").grad.device.type == "meta"


class Log:
    """What ``LateLosses`` needs to know of a logger."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))


class Copy:
    """A copy from a device that arrives when it is told to."""

    def __init__(self) -> None:
        self.arrived = False

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.arrived = True


def test_losses_are_logged_with_their_own_step_once_they_have_arrived() -> None:
    late, log, copies = LateLosses(), Log(), [Copy() for _ in range(4)]
    for step, copy in enumerate(copies):
        late._pending.append(_Pending(step, ("loss",), torch.tensor([float(step)]), copy))
    late.report([log], 2)
    assert not log.rows
    copies[1].arrived = True  # not before the one that was queued earlier
    late.report([log], 2)
    assert not log.rows
    copies[0].arrived = True
    late.report([log], 2)
    assert log.rows == [(1, {"loss": 1.0})]
    late.report([log], 2, wait=True)
    assert log.rows == [(1, {"loss": 1.0}), (3, {"loss": 3.0})]


def test_a_loss_that_is_not_finite_is_told_when_it_arrives_with_its_step() -> None:
    late, copy = LateLosses(), Copy()
    late._pending.append(_Pending(7, ("loss",), torch.tensor([float("nan")]), copy))
    late.report([], 2)
    with pytest.raises(UserError, match="not finite at step 7"):
        late.report([], 2, wait=True)


def test_a_run_that_diverges_ends_in_one_line_and_saves_nothing_that_is_not_finite(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path
) -> None:
    config = replace(BASE, optim=OptimConfig(lr=1e38, schedule="constant"), trainer=FIVE)
    with pytest.raises(UserError, match="not finite at step [12]; lower") as caught:
        learn(tiny_model, concept, config, run=create_run(tmp_path / "run"), progress=False)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_the_loss_is_logged_every_so_many_steps(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path
) -> None:
    run = create_run(tmp_path / "run")
    trainer = replace(FIVE, log_every=2)
    learn(tiny_model, concept, replace(BASE, trainer=trainer, regularization=0.1), run=run, progress=False)
    rows = list(csv.DictReader((run.path / "logs" / "csv" / "metrics.csv").open()))
    logged = {int(row["step"]): row for row in rows if row["train/loss"]}
    assert list(logged) == [1, 3]
    assert all(float(row["train/regularization"]) >= 0 for row in logged.values())


# ------------------------------------------------------------------------------ forms of the network
def test_stored_weights_come_back_bit_for_bit_and_convolutions_are_channels_last(
    tiny_model: LatentDiffusion,
) -> None:
    before = frozen_hash(tiny_model)
    weight = tiny_model.unet.out[2].weight
    for precision in ("32-true", "bf16-mixed"):
        with stored_in(tiny_model, precision):
            assert all(
                p.dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
                for part in tiny_model.parts.values()
                for p in part.parameters()
            )
            if precision == "32-true":
                assert weight.is_contiguous(memory_format=torch.channels_last)
        assert frozen_hash(tiny_model) == before and weight.is_contiguous()


def test_every_tensor_of_the_model_comes_back_buffers_too(tiny_model: LatentDiffusion) -> None:
    tiny_model.autoencoder.linear = PatchPCA(4, 4)
    tiny_model.autoencoder.linear.fit(torch.rand(16, 3, 16, 16))
    tensors = lambda: [*tiny_model.parameters(), *tiny_model.buffers()]  # noqa: E731
    before, z = [t.clone() for t in tensors()], torch.randn(1, 4, 4, 4)
    picture = tiny_model.decode(z)
    with stored_in(tiny_model, "bf16-mixed"):
        assert tiny_model.autoencoder.linear.decoding.dtype == torch.bfloat16
    after = tensors()
    assert [t.dtype for t in after] == [t.dtype for t in before]
    assert all(map(torch.equal, after, before))
    assert torch.equal(tiny_model.decode(z), picture)


def test_checkpointing_learns_the_same_vector_bit_for_bit_with_less_kept(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    plain = learn_word(tiny_model, concept, trainer=FIVE)
    assert torch.equal(
        learn_word(tiny_model, concept, trainer=FIVE, compute=replace(BASE.compute, checkpointing=True)),
        plain,
    )
    assert not tiny_model.unet.middle_block[0].use_checkpoint

    def kept() -> int:
        sizes: list[int] = []
        context = torch.randn(2, 12, 32, requires_grad=True)

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tiny_model.unet(torch.randn(2, 4, 4, 4), torch.tensor([1, 2]), context)
        return sum(sizes)

    everything = kept()
    with recomputed(tiny_model.unet):
        assert kept() < 0.5 * everything


def test_a_compiled_run_learns_the_same_vector_within_rounding(
    tiny_config: ModelConfig, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every kind of block; those with attention, which take longest to trace, at one of the two resolutions
    unet = {**tiny_config.unet, "params": {**tiny_config.unet["params"], "attention_resolutions": [2]}}
    model = tiny.model(replace(tiny_config, unet=unet))
    plain = learn_word(model, concept, trainer=FIVE)
    # traced and differentiated as by the real one, but not handed to a C++ compiler for a minute
    monkeypatch.setattr(torch, "compile", partial(_quick, torch.compile))
    found = learn_word(model, concept, trainer=FIVE, compute=replace(BASE.compute, compiled=True))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)


def _quick(compile: Callable[..., Any], function: Any, **settings: Any) -> Any:
    return compile(function, backend="aot_eager", dynamic=settings["dynamic"])


def test_only_what_asks_for_gradients_is_compiled_and_the_network_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *a: calls.append("fast") or a[0])
    unet = nn.Module()
    monkeypatch.setattr(nn.Module, "forward", lambda self, *a: calls.append("eager") or a[0])
    with compiled(unet):
        unet(torch.zeros(1), torch.zeros(1))
        with torch.no_grad():
            unet(torch.zeros(1), torch.zeros(1))
    unet(torch.zeros(1), torch.zeros(1))
    assert calls == ["fast", "eager", "eager"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_cuda_graphs_without_a_gpu_are_refused(tiny_model: LatentDiffusion, concept: Concept) -> None:
    with pytest.raises(UserError, match="cuda_graphs"):
        learn_word(tiny_model, concept, trainer=FIVE, compute=replace(BASE.compute, cuda_graphs=True))


@pytest.mark.parametrize(("name", "fused"), [("auto", True), ("plain", False)])
def test_the_attention_kernel_is_torchs_choice_unless_the_plain_one_is_asked_for(
    tiny_model: LatentDiffusion, concept: Concept, name: Any, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bool] = set()
    forward = CrossAttention.forward

    def watched(self: CrossAttention, x: Tensor, context: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled():
            seen.add(torch.backends.cuda.flash_sdp_enabled())  # of all devices, whatever its name
        return forward(self, x, context)

    monkeypatch.setattr(CrossAttention, "forward", watched)
    learn_word(tiny_model, concept, trainer=replace(FIVE, max_steps=1, attention=name))
    assert seen == {fused}


# ------------------------------------------------------------------------------ what trains
def test_other_known_words_are_neither_trained_nor_measured(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path
) -> None:
    tiny_model.add_placeholder("<other>", init="dog")
    other = tiny_model.manager.vectors("<other>").detach().clone()
    decay = OptimConfig(lr=1e-2, schedule="constant", weight_decay=0.5)
    run = create_run(tmp_path / "run")
    learn(tiny_model, concept, replace(BASE, optim=decay, trainer=FIVE), run=run, progress=False)
    assert torch.equal(tiny_model.manager.vectors("<other>"), other)
    assert "<other>" not in (run.path / "logs" / "csv" / "metrics.csv").read_text()
