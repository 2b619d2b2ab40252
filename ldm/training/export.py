"""A trained model as a folder that ``ldm.load`` reads: weights in the public layout, config, vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ldm.config import dump_yaml, to_plain
from ldm.io.checkpoints import save_checkpoint
from ldm.io.runs import write_text
from ldm.model import LatentDiffusion


def export_model(model: LatentDiffusion, out: Path, dtype: torch.dtype | None = None) -> Path:
    """Write ``out/model.safetensors``, ``config.yaml`` and, where the text part has one, ``vocab.txt``.

    Args:
        model: one of ``ldm.model.build`` or ``ldm.load``.
        dtype: of the stored weights; ``None``: as they are held.

    Raises:
        UserError: the folder cannot be written, or values do not fit ``dtype``.
    """
    assert model.config is not None, "a model that was not built from a config cannot be described"
    config = replace(model.config, checkpoint="model.safetensors")
    params = dict(config.text.get("params") or {})
    if "vocab_file" in params:
        words = Path(params["vocab_file"]).read_text(encoding="utf-8")
        write_text(out / "vocab.txt", words)
        config = replace(config, text={**config.text, "params": {**params, "vocab_file": "vocab.txt"}})
    sections = {"model": to_plain(config)}
    if model.inversion_defaults:
        sections["inversion"] = model.inversion_defaults
    save_checkpoint(model.parts, out / "model.safetensors", dtype=dtype)
    write_text(out / "config.yaml", dump_yaml(sections))
    return out
