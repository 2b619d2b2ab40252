"""Batches as a pure function of the step, so that a resumed run sees the data it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset


class StepStream(IterableDataset):
    """Endless stream of ``make_batch(step)`` from ``first_step`` on; one item is a whole batch.

    With several workers, worker w of n makes the steps w, w + n, ...; the order is unchanged.
    """

    def __init__(self, make_batch: Callable[[int], Any], first_step: int = 0) -> None:
        self.make_batch = make_batch
        self.first_step = first_step

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        step, stride = (self.first_step, 1) if info is None else (self.first_step + info.id, info.num_workers)
        while True:
            yield self.make_batch(step)
            step += stride

    def loader(self, workers: int = 0) -> DataLoader:
        """A DataLoader that hands the batches on as they are; pinned where a GPU will fetch them."""
        return DataLoader(self, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available())
