"""Muon against torch's own on matrices, AdamW against torch's own on the rest."""

import copy

import torch
from torch import Tensor, nn

from ldm.training.muon import Muon, matrices_and_others, orthogonalize


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(8, 6, generator=rng), torch.randn(8, 3, generator=rng)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 9), nn.GELU(), nn.Linear(9, 3))


def assert_close(a: list[Tensor], b: list[Tensor], atol: float) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


def test_orthogonal_matrices_come_out_whatever_went_in() -> None:
    rng = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 20), (3, 20, 8), (1, 7, 7)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=rng) * 50))
        assert values.min() > 0.6 and values.max() < 1.25


def test_matrices_step_as_torchs_muon() -> None:
    ours, theirs = network(), network()
    split = [[p for p in model.parameters() if p.ndim == 2] for model in (ours, theirs)]
    train(ours, Muon([{"params": split[0], "muon": True}], lr=1e-2, weight_decay=0.1))
    torchs = torch.optim.Muon(split[1], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    train(theirs, torchs)
    # torch iterates in bfloat16: a step is 0.2 x 1e-2 x 3 an entry at most
    assert_close(split[0], split[1], atol=1.5e-3)
    moved = (split[0][1] - network()[2].weight).abs().max()
    assert moved > 5e-3


def test_all_else_steps_as_torchs_adamw() -> None:
    ours, theirs = network(), network()
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    train(ours, Muon([{"params": list(ours.parameters()), "muon": False}], **options))
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options))
    assert_close(list(ours.parameters()), list(theirs.parameters()), atol=1e-6)


def test_kernels_of_convolutions_are_matrices_and_ends_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.Embedding(4, 8))
    matrices, others = matrices_and_others([model], kept=[model[0]])
    assert [p.shape for p in matrices["params"]] == [(8, 8, 3, 3)]
    assert len(others["params"]) == len(list(model.parameters())) - 1
    optimizer = Muon([matrices, others], lr=1e-3)
    before = copy.deepcopy(model[2].weight)
    model[2](torch.randn(16, 8, 5, 5)).square().sum().backward()
    optimizer.step()
    step = (model[2].weight - before).view(8, -1)
    size = step.square().mean().sqrt() / 1e-3
    assert 0.15 < size < 0.25  # as large as AdamW's


def test_a_state_goes_on_where_it_was() -> None:
    whole, cut = network(), network()
    train(whole, optimizer := Muon(matrices_and_others([whole]), lr=1e-2), steps=5)
    del optimizer
    first = Muon(matrices_and_others([cut]), lr=1e-2)
    rng = torch.Generator().manual_seed(1)
    for step in range(5):
        if step == 2:
            again = Muon(matrices_and_others([cut]), lr=1e-2)
            again.load_state_dict(copy.deepcopy(first.state_dict()))
            first = again
        x, y = torch.randn(8, 6, generator=rng), torch.randn(8, 3, generator=rng)
        first.zero_grad()
        (cut(x) - y).square().mean().backward()
        first.step()
    assert_close(list(whole.parameters()), list(cut.parameters()), atol=0)
