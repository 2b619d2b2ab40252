"""A trained model as a folder that ``ldm.load`` reads: weights in the public layout, config, vocabulary.

Also the average of several: stages of one training that each went on from the last one's weights lie in one
basin, and the mean of their weights is often better than any (model soups, Wortsman et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ldm.backbone.model import LatentDiffusion
from ldm.config import dump_yaml, to_plain
from ldm.errors import UserError
from ldm.io.atomic import write_text
from ldm.io.checkpoints import save_checkpoint
from ldm.paths import found


def export_model(model: LatentDiffusion, out: Path, dtype: torch.dtype | None = None) -> Path:
    """Write ``out/model.safetensors``, ``config.yaml`` and, where the text part has one, ``vocab.txt``.

    Args:
        model: one of ``ldm.backbone.model.build`` or ``ldm.load``.
        dtype: of the stored weights; ``None``: as they are held.

    Raises:
        UserError: the folder cannot be written, or values do not fit ``dtype``.
    """
    assert model.config is not None, "a model that was not built from a config cannot be described"
    config = replace(model.config, checkpoint="model.safetensors")
    params = dict(config.text.get("params") or {})
    if "vocab_file" in params:
        words = found(params["vocab_file"]).read_text(encoding="utf-8")
        write_text(out / "vocab.txt", words)
        config = replace(config, text={**config.text, "params": {**params, "vocab_file": "vocab.txt"}})
    if (clip_skip := model.text.other_clip_skip) is not None:  # what it was tuned with is its own
        params = {**(config.text.get("params") or {}), "clip_skip": clip_skip}
        config = replace(config, text={**config.text, "params": params})
    sections = {"model": to_plain(config)}
    if model.inversion_defaults:
        sections["inversion"] = model.inversion_defaults
    save_checkpoint(model.parts, out / "model.safetensors", dtype=dtype)
    write_text(out / "config.yaml", dump_yaml(sections))
    return out


@torch.no_grad()
def average_models(models: Sequence[LatentDiffusion]) -> LatentDiffusion:
    """The first of ``models``, its weights now the mean of all of theirs.

    Sums are float64, so weights that agree stay as they are, to the bit.

    Raises:
        UserError: one has other parts, names or shapes than the first.
    """
    first, *others = models
    first.weights_change()
    for prefix, part in first.parts.items():
        means = {name: value.double() for name, value in part.state_dict().items()}
        for number, other in enumerate(others, start=2):
            state = other.parts[prefix].state_dict()
            both = means.keys() & state.keys()
            reshaped = {name for name in both if means[name].shape != state[name].shape}
            unlike = sorted(means.keys() ^ state.keys() | reshaped)
            if unlike:
                raise UserError(
                    f"model {number} is not of the first one's kind: {prefix}{unlike[0]} differs"
                    + (f", and {len(unlike) - 1} more" if unlike[1:] else "")
                )
            for name, value in state.items():
                means[name] += value.double()
        for name, value in part.state_dict().items():
            value.copy_(means[name] / len(models))
    return first
