"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan et al. 2024).

A weight matrix moves alike in all of its singular directions and not only in the few that lead its
gradient. Vectors, tables and the first and last layers keep AdamW. Steps are scaled to the size of AdamW's
(Liu et al. 2025, arXiv 2502.16982), so that both share a learning rate and its schedule. Matrices of one
shape are orthogonalised in one batched product, which is what makes it cheap for a network of many layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: of the quintic Newton-Schulz iteration, and how many are made
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
#: the root mean square of a step's entries that AdamW's steps have
ADAMW_RMS = 0.2


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearest matrices with singular values of about 1 (0.7 to 1.2), of matrices (N, rows, columns).

    Newton-Schulz in bfloat16 on a GPU, else in float32.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def matrices_and_others(modules: Iterable[nn.Module], kept: Iterable[nn.Module] = ()) -> list[dict[str, Any]]:
    """Parameter groups for :class:`Muon`: weights of linear and convolutional layers, and all else.

    Args:
        modules: what trains.
        kept: layers whose weights stay with AdamW, such as the first and the last.
    """
    aside = {id(p) for module in kept for p in module.parameters()}
    layers = [m for module in modules for m in module.modules()]
    weights = [m.weight for m in layers if isinstance(m, (nn.Linear, nn.Conv2d))]
    hidden = {id(w): w for w in weights if w.requires_grad and id(w) not in aside}
    every = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    others = [p for key, p in every.items() if key not in hidden]
    return [{"params": list(hidden.values()), "muon": True}, {"params": others, "muon": False}]


class Muon(torch.optim.Optimizer):
    """Muon where a group says ``muon=True``, AdamW elsewhere.

    Args:
        params: groups of :func:`matrices_and_others`.
        lr: of both.
        momentum: of Muon, with Nesterov's look ahead.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            (self._muon if group["muon"] else self._adamw)(params, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            self.state[p].setdefault("momentum", torch.zeros_like(p))
        grads = [p.grad for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, p in enumerate(params):
            by_shape[len(p), p[0].numel()].append(i)
        for (rows, columns), chosen in by_shape.items():
            turned = orthogonalize(torch.stack([ahead[i].reshape(rows, columns) for i in chosen]))
            size = group["lr"] * ADAMW_RMS * max(rows, columns) ** 0.5
            each = [t.view_as(params[i]).to(params[i]) for t, i in zip(turned, chosen, strict=True)]
            torch._foreach_add_([params[i] for i in chosen], each, alpha=-size)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] |= {"step": 0, "first": torch.zeros_like(p), "second": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        grads = [p.grad for p in params if p.grad is not None]
        states = [self.state[p] for p in params]
        first, second = [s["first"] for s in states], [s["second"] for s in states]
        (beta1, beta2), step = group["betas"], states[0]["step"]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        size = torch._foreach_div(second, 1 - beta2**step)
        torch._foreach_sqrt_(size)
        torch._foreach_add_(size, group["eps"])
        torch._foreach_addcdiv_(params, first, size, -group["lr"] / (1 - beta1**step))
