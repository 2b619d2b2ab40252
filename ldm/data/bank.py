"""A bank of pictures encoded once: posteriors and captions, from which a denoiser is pretrained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.errors import UserError
from ldm.io.runs import atomic_write
from ldm.seeding import generator


class LatentBank:
    """Posterior mean and std (N, C, h, w) of N pictures, float16, with one caption each.

    ``subjects`` (N,) int64: which thing a picture shows (equal numbers: the same thing).
    ``batch`` walks through a new permutation every epoch, as a pure function of the step.
    """

    def __init__(self, mean: Tensor, std: Tensor, captions: list[str], subjects: Tensor) -> None:
        self.mean, self.std, self.captions, self.subjects = mean, std, captions, subjects
        self._by_subject = subjects.argsort(stable=True)  # pictures of one thing side by side
        _, self._group, self._group_size = subjects.unique(return_inverse=True, return_counts=True)
        self._group_start = self._group_size.cumsum(0) - self._group_size
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
            save_file(
                {"mean": self.mean, "std": self.std, "subjects": self.subjects},
                str(temporary),
                metadata={"captions": json.dumps(self.captions)},
            )

    @classmethod
    def load(cls, *paths: Path | str) -> LatentBank:
        """Read what ``ldm train latents`` wrote, several files as one bank.

        Raises:
            UserError: no file is named, one is not there, or two hold latents of different shapes.
        """
        if not paths:
            raise UserError("latents is an empty list; name what `ldm train latents` wrote")
        means, stds, captions, subjects = [], [], [], []
        known = 0  # things of the files before
        for path in paths:
            if not Path(path).is_file():
                raise UserError(f"no latents at {path}; run `ldm train latents` first")
            with safe_open(str(path), framework="pt") as file:
                captions += json.loads(file.metadata()["captions"])
                means.append(file.get_tensor("mean"))
                stds.append(file.get_tensor("std"))
                if "subjects" not in file.keys():  # noqa: SIM118
                    raise UserError(f"{path} is of an older version; run `ldm train latents` again")
                subjects.append(file.get_tensor("subjects") + known)
                known = int(subjects[-1].max()) + 1
        if len({mean.shape[1:] for mean in means}) > 1:
            shapes = ", ".join(f"{path} {tuple(m.shape[1:])}" for path, m in zip(paths, means, strict=True))
            raise UserError(f"latents of different shapes cannot be one bank: {shapes}")
        return cls(torch.cat(means), torch.cat(stds), captions, torch.cat(subjects))

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

    def others(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """For rows (n,) other pictures of the same things, mean latents (n, C, h, w), unscaled.

        Of a thing with a single picture it is that one.
        """
        group = self._group[rows]
        size, start = self._group_size[group], self._group_start[group]
        chosen = start + (torch.rand(len(rows), generator=rng) * size).long().minimum(size - 1)
        found = self._by_subject[chosen]
        following = self._by_subject[start + (chosen - start + 1) % size]
        return self.mean[torch.where(found == rows, following, found)].float()
