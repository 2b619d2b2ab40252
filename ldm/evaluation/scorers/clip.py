"""``clip:MODEL/WEIGHTS``: any model of open_clip, with a published tag or a file of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.scorers.base import NetworkScorer, quiet
from ldm.evaluation.scorers.weights import Published, find
from ldm.paths import expanded

QUICK = "-quickgelu"


class ClipScorer(NetworkScorer):
    """CLIP-like models of open_clip, which read pictures and texts.

    Args:
        tokenizer: texts -> ids (N, L); other arguments as :class:`NetworkScorer`.
    """

    reads_text = True

    def __init__(self, name: str, network: Any, transform: Any, tokenizer: Any, **identity: str) -> None:
        super().__init__(name, network, network.encode_image, transform, **identity)  # type: ignore[arg-type]
        self.tokenizer = tokenizer

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D), each of length 1."""
        network: Any = self.network
        parts = []
        for start in range(0, len(texts), self.batch_size):
            ids = self.tokenizer(list(texts[start : start + self.batch_size])).to(self.device)
            parts.append(F.normalize(network.encode_text(ids).float(), dim=-1))
        if not parts:
            raise ValueError("no texts")
        return torch.cat(parts)


def load_clip_scorer(name: str, rest: str, *, allow_download: bool = False) -> ClipScorer:
    """The scorer ``clip:<rest>``.

    Weights that were trained with the quick GELU get it whatever form of the model's name is given:
    ``ViT-B-32/openai`` and ``ViT-B-32-quickgelu/openai`` are the same scorer.

    Args:
        name: the whole name.
        rest: ``MODEL/TAG`` or ``MODEL/FILE``; a tag that open_clip knows wins over a file of that name.

    Raises:
        UserError: an unknown model or tag, weights that are not here or do not fit.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model, _, weights = rest.partition("/")
    if not model or not weights:
        raise UserError(f"{name}: give clip:MODEL/TAG or clip:MODEL/FILE, such as clip:ViT-B-32/openai")
    config = open_clip.get_model_config(model)
    if config is None:
        raise UserError(f"{name}: open_clip has no model {model}; see open_clip.list_models()")
    quick = bool(config.get("quick_gelu"))
    source = _source(open_clip, model, weights)
    if source:
        if quick and not source.get("quick_gelu"):
            raise UserError(
                f"{name}: {weights} has no quick GELU; use clip:{model.removesuffix(QUICK)}/{weights}"
            )
        quick = bool(source.get("quick_gelu"))
        stem = f"clip/{model.removesuffix(QUICK)}/{weights}"
        path = find(Published.of(name, stem, source), allow_download=allow_download)
    else:
        path = expanded(weights)
        if not path.is_file():
            raise UserError(
                f"{name}: open_clip has no weights {weights} of {model}, and there is no such file"
            )
    texts = config["text_cfg"]
    hub = str(texts.get("hf_tokenizer_name") or texts.get("hf_model_name") or "")
    network, tokenizer = _build(open_clip, name, model, quick, path, hub, allow_download)
    how = {**open_clip.get_model_preprocess_cfg(network), **_kept(open_clip, source)}
    transform = image_transform_v2(PreprocessCfg(**how), is_train=False)
    gelu = ", quick GELU" if quick else ""
    return ClipScorer(
        name,
        network,
        transform,
        tokenizer,
        architecture=f"open_clip {model.removesuffix(QUICK)}{gelu}",
        preprocessing=described(how),
        text=f"{type(tokenizer).__name__}, {tokenizer.context_length} tokens",
    )


def described(how: dict[str, Any]) -> str:
    """A preprocessing config in words."""
    parts = [f"{key} {_plain(value)}" for key, value in sorted(how.items())]
    return "8 bits; " + "; ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _source(open_clip: Any, model: str, tag: str) -> dict[str, Any]:
    """open_clip's entry of a published tag, under either form of the model's name; empty if unknown."""
    own = open_clip.get_pretrained_cfg(model, tag)
    return dict(own or open_clip.get_pretrained_cfg(model.removesuffix(QUICK), tag) or {})


def _kept(open_clip: Any, source: dict[str, Any]) -> dict[str, Any]:
    """What published weights say of their preprocessing."""
    return {key: source[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in source}


def _build(
    open_clip: Any, name: str, model: str, quick: bool, path: Path, hub: str, allow_download: bool
) -> tuple[nn.Module, Any]:
    """Network with the file's weights, and tokenizer; some text towers take parts from the hub."""
    try:
        with _offline(not allow_download), quiet():
            network = open_clip.create_model(model, force_quick_gelu=quick, pretrained_text=False)
            tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        wanted = f"the hub's files of {hub}, which are not here; give --allow-download" if hub else reason
        raise UserError(f"{name}: open_clip cannot build {model}: it needs {wanted}") from error
    try:
        open_clip.load_checkpoint(network, str(path))
    except Exception as error:  # anything, of broken or foreign bytes
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{name}: {path} does not fit {model}: {reason}") from error
    return network, tokenizer


class _offline:
    """No network for the hub's library while something is built, if that is wished."""

    def __init__(self, wished: bool) -> None:
        self.wished = wished

    def __enter__(self) -> None:
        from huggingface_hub import constants

        self.before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or self.wished

    def __exit__(self, *_: object) -> None:
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = self.before
