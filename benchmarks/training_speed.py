"""Pictures a second that the shipped model's UNet trains at: precision and attention kernel.

    python benchmarks/training_speed.py --threads 2

Prints one line a setting: forward, backward and AdamW on 64 random latents, the rate over ``--seconds``.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.config import instantiate
from ldm.loading import find

BATCH = 64
KERNELS = {"fused": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}


def rate(half: bool, kernel: str, seconds: float) -> float:
    """Pictures a second after one step of warm-up."""
    values, _ = find("emoji")
    unet = instantiate(values["model"]["unet"])
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    z, context = torch.randn(BATCH, 12, 8, 8), torch.randn(BATCH, 32, 256)
    t = torch.randint(0, 1000, (BATCH,))
    steps, start = -1, time.perf_counter()
    with sdpa_kernel([KERNELS[kernel]]):
        while steps < 1 or time.perf_counter() - start < seconds:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = unet(z, t, context)
            out.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps == 0:  # the first step was the warm-up
                start = time.perf_counter()
    return BATCH * steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for half in (False, True):
        for kernel in KERNELS:
            found = rate(half, kernel, args.seconds)
            name = "bfloat16" if half else "float32"
            sys.stdout.write(f"{args.threads} threads, {name}, {kernel} attention: {found:.0f} pictures/s\n")


if __name__ == "__main__":
    main()
