"""Pictures a second that the shipped model's UNet trains at: precision and attention kernel.

    python benchmarks/training_speed.py --threads 2 [--compile]

Prints one line a setting: forward, backward and AdamW on 64 random latents, the rate over ``--seconds``.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.backbone.loading import find
from ldm.config import instantiate

BATCH = 64
KERNELS = {"fused": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}


def rate(half: bool, kernel: str, seconds: float, compiled: bool = False) -> float:
    """Pictures a second after one step of warm-up (which compiles, if at all)."""
    values, _ = find("emoji")
    unet = instantiate(values["model"]["unet"])
    if compiled:
        unet.compile()
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    z = torch.randn(BATCH, unet.in_channels, 8, 8)
    context = torch.randn(BATCH, 32, unet.context_dim, requires_grad=True)  # the text conditioner learns too
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
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for half in (False, True):
        for kernel in KERNELS:
            name = "bfloat16" if half else "float32"
            found = rate(half, kernel, args.seconds)
            sys.stdout.write(f"{args.threads} threads, {name}, {kernel} attention: {found:.0f} pictures/s\n")
    if args.compile:
        found = rate(True, "plain", args.seconds, compiled=True)
        sys.stdout.write(f"{args.threads} threads, bfloat16, plain, compiled: {found:.0f} pictures/s\n")


if __name__ == "__main__":
    main()
