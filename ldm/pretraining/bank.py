"""A bank of pictures encoded once: posteriors and captions, from which a denoiser is pretrained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ldm.errors import UserError
from ldm.io.atomic import atomic_write
from ldm.io.tensors import save_tensors
from ldm.seeding import generator


class LatentBank:
    """Posterior mean and std (N, C, h, w) of N pictures, float16, with one caption each.

    ``subjects`` (N,) int64 in [0, M): which thing a picture shows. ``portraits`` (M, 2, C, h, w): of each
    thing the posterior means of its two portraits (``PictureSource.portraits``), float16.
    ``batch`` walks through a new permutation every epoch, as a pure function of the step.
    """

    TENSORS = ("mean", "std", "subjects", "portraits")

    def __init__(
        self, mean: Tensor, std: Tensor, captions: list[str], subjects: Tensor, portraits: Tensor
    ) -> None:
        self.mean, self.std, self.captions = mean, std, captions
        self.subjects, self.portraits = subjects, portraits
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def scale_factor(self) -> float:
        """1 / standard deviation of the sampled latents (Rombach et al. 2022, appendix G)."""
        mean, std = self.mean[:4096].float(), self.std[:4096].float()
        return float(1 / (mean.var() + std.square().mean()).sqrt())

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_tensors(
                {name: getattr(self, name) for name in self.TENSORS},
                temporary,
                {"captions": json.dumps(self.captions)},
            )

    @classmethod
    def load(cls, *paths: Path | str) -> LatentBank:
        """Read what ``ldm train latents`` wrote, several files as one bank.

        Raises:
            UserError: no file is named, one is not there, or two hold latents of different shapes.
        """
        if not paths:
            raise UserError("latents is an empty list; name what `ldm train latents` wrote")
        captions: list[str] = []
        tensors: dict[str, list[Tensor]] = {name: [] for name in cls.TENSORS}
        known = 0  # things of the files before
        for path in paths:
            if not Path(path).is_file():
                raise UserError(f"no latents at {path}; run `ldm train latents` first")
            with safe_open(str(path), framework="pt") as file:
                if set(file.keys()) != set(cls.TENSORS):
                    raise UserError(f"{path} is of an older version; run `ldm train latents` again")
                captions += json.loads(file.metadata()["captions"])
                for name, parts in tensors.items():
                    parts.append(file.get_tensor(name))
                tensors["subjects"][-1] += known
                known += len(tensors["portraits"][-1])
        if len({mean.shape[1:] for mean in tensors["mean"]}) > 1:
            each = zip(paths, tensors["mean"], strict=True)
            shapes = ", ".join(f"{path} {tuple(mean.shape[1:])}" for path, mean in each)
            raise UserError(f"latents of different shapes cannot be one bank: {shapes}")
        return cls(captions=captions, **{name: torch.cat(parts) for name, parts in tensors.items()})

    def _permutation(self, epoch: int, seed: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            rng = generator(seed, "bank", epoch)
            self._order = (epoch, torch.randperm(len(self), generator=rng))
        return self._order[1]

    def batch(self, step: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Unscaled latents (n, C, h, w) sampled from the posteriors, and their rows (n,)."""
        per_epoch = len(self) // n
        if not per_epoch:
            raise UserError(f"a batch of {n} is larger than the bank of {len(self)} latents")
        epoch, place = divmod(step, per_epoch)
        rows = self._permutation(epoch, seed)[place * n : (place + 1) * n]
        noise = torch.randn(n, *self.mean.shape[1:], generator=generator(seed, "posterior", step))
        return self.mean[rows].float() + self.std[rows].float() * noise, rows
