"""Small tensors from the host to the device that computes, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def carry(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``.

    A copy from ordinary memory makes the host wait until a GPU has done all that it was given; one
    from pinned memory takes its place in the queue.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
