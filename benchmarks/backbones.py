"""Seconds and peak memory of the public backbones at full size, with random weights.

    python benchmarks/backbones.py [--tiny] [--dtype bfloat16] [--folder DIR] [ldm sd1 sd2]

For each model, in a process of its own a step: build it on ``meta``; fill it with random numbers and
save it in the public layout; load that file (its kind is recognised, its weights are mapped), and then
encode a picture, call the UNet once, decode a latent and encode a prompt at the model's own size.
Memory is the process's peak resident set; "imports" is what it is before there is a model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldm.backbone.loading import find, in_folder, load
from ldm.backbone.model import ModelConfig, build
from ldm.config import resolve
from ldm.io.checkpoints import save_checkpoint

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "ldm": "latent-diffusion/txt2img-1p4B",
    "sd1": "stable-diffusion/v1",
    "sd2": "stable-diffusion/v2-768-v",
}
TINY = {
    "autoencoder": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
    "unet": {"model_channels": 64, "channel_mult": [1, 2], "num_res_blocks": 1, "context_dim": 64},
    "clip": {"width": 64, "layers": 2, "heads": 1},
    "bert": {"n_embed": 64, "n_layer": 2},
}


def config_of(name: str, tiny: bool) -> ModelConfig:
    """The public model, or one of its layout with a few million parameters."""
    values, folder = find(ROOT / "configs" / f"{CONFIGS[name]}.yaml")
    model = values["model"]
    if tiny:
        for part in ("autoencoder", "unet"):
            model[part]["params"] |= TINY[part]
        model["text"]["params"] |= TINY["bert" if name == "ldm" else "clip"]
        model["image_size"] = 64
    return in_folder(resolve(ModelConfig, model, "model."), folder)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def write(name: str, tiny: bool, dtype: torch.dtype, path: Path) -> dict[str, Any]:
    """Build on meta, fill with random numbers in ``dtype``, save."""
    model, build_s = timed(lambda: build(config_of(name, tiny), empty=True))
    torch.manual_seed(0)
    for part in model.parts.values():
        part.to(dtype).to_empty(device="cpu")
        for p in part.parameters():
            # scaled so that activations neither vanish nor overflow
            p.data.normal_(std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.02)
    count = sum(p.numel() for part in model.parts.values() for p in part.parameters())
    _, save_s = timed(lambda: save_checkpoint(model.parts, path, dtype=None))
    return {"parameters": count, "GiB": path.stat().st_size / 2**30, "build s": build_s, "save s": save_s}


@torch.no_grad()
def use(name: str, tiny: bool, dtype: torch.dtype, path: Path) -> dict[str, Any]:
    """Load the file by recognition, and call every part once."""
    size = config_of(name, tiny).image_size
    model, load_s = timed(lambda: load(path, dtype=dtype, image_size=size))
    loaded = peak()
    channels, side, _ = model.latent_shape
    images = torch.randn(1, 3, size, size).clamp(-1, 1)
    z, t = torch.randn(1, channels, side, side), torch.tensor([500])
    context, text_s = timed(lambda: model.condition("a photo of a cat"))
    posterior, encode_s = timed(lambda: model.encode(images).mean)
    out, unet_s = timed(lambda: model.predict(z, t, context))
    picture, decode_s = timed(lambda: model.decode(z))
    for tensor in (context, posterior, out, picture):
        assert tensor.isfinite().all()
    return {
        "load s": load_s,
        "loaded GiB": loaded,
        "prompt s": text_s,
        "encode s": encode_s,
        "UNet s": unet_s,
        "decode s": decode_s,
    }


def peak() -> float:
    """Highest resident set so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_a_process_of_its_own(step: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", step, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CONFIGS), metavar="NAME", help="ldm, sd1, sd2")
    parser.add_argument("--tiny", action="store_true", help="a few million parameters, to try it out")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where a file of 3-6 GB fits for a while")
    parser.add_argument("--step", choices=("write", "use"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:  # in the process of its own
        import open_clip  # noqa: F401  (its import is not the loading of a model)

        name, path = args.names
        before = peak()
        step = {"write": write, "use": use}[args.step]
        found = step(name, args.tiny, getattr(torch, args.dtype), Path(path))
        found |= {f"peak {args.step} GiB": peak(), "imports GiB": before}
        sys.stdout.write(json.dumps(found) + "\n")
        return
    rows = []
    for name in args.names:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            words = [name, f"{folder}/model.safetensors", "--dtype", args.dtype, *(["--tiny"] * args.tiny)]
            row = in_a_process_of_its_own("write", *words) | in_a_process_of_its_own("use", *words)
        rows.append({"model": name, **row})
    titles = list(rows[0])
    sys.stdout.write("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|\n")
    for row in rows:
        kinds = {float: "{:.2f}", int: "{:,}", str: "{}"}
        cells = (kinds[type(value)].format(value) for value in row.values())
        sys.stdout.write("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
