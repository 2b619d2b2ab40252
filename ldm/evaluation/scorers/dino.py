"""``dino:NAME`` and ``dino:NAME/FILE``: any picture network of timm, by its pooled features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.evaluation.scorers.base import NetworkScorer, quiet
from ldm.evaluation.scorers.clip import described
from ldm.evaluation.scorers.weights import Published, find
from ldm.paths import expanded


def load_dino_scorer(name: str, rest: str, *, allow_download: bool = False) -> NetworkScorer:
    """The scorer ``dino:<rest>``: features are what timm's network gives without its classifier.

    For the DINO models that is the class token after the last normalisation.

    Args:
        name: the whole name.
        rest: timm's name with its tag (``vit_small_patch16_224.dino``), and ``/FILE`` for one's own
            weights.

    Raises:
        UserError: an unknown model or tag, weights that are not here or do not fit.
    """
    import timm
    from timm.data import create_transform, resolve_model_data_config
    from timm.models import get_pretrained_cfg

    model, _, file = rest.partition("/")
    if not model or not timm.is_model(model):
        raise UserError(f"{name}: timm has no model {model or 'without a name'}; see timm.list_models()")
    try:
        known = get_pretrained_cfg(model)
    except RuntimeError:
        known = None
    if known is None:
        raise UserError(f"{name}: timm has no weights {model}; see timm.list_pretrained()")
    whole = f"{known.architecture}.{known.tag}" if known.tag else str(known.architecture)
    if file:
        path = expanded(file)
        if not path.is_file():
            raise UserError(f"{name}: there is no file {path}")
    else:
        path = find(Published.of(name, f"dino/{whole}", known.to_dict()), allow_download=allow_download)
    network = _build(timm, name, model, path)
    how = resolve_model_data_config(network)
    transform: Any = create_transform(**how, is_training=False)
    return NetworkScorer(
        name,
        network,
        network,
        transform,
        architecture=f"timm {known.architecture}, {network.num_features} features",
        preprocessing=described(how),
    )


def _build(timm: Any, name: str, model: str, path: Path) -> Any:
    """The network without a classifier, every weight of it from the file."""
    failures: list[Exception] = []
    # a published file has its classifier, a file of features alone has none: each is read in full
    for headless in (False, True):
        overlay: dict[str, Any] = {"file": str(path)} | ({"num_classes": 0} if headless else {})
        options = {"num_classes": 0} if headless else {}
        try:
            with quiet():
                network: Any = timm.create_model(
                    model, pretrained=True, pretrained_cfg_overlay=overlay, **options
                )
        except Exception as error:  # anything, of broken or foreign bytes
            failures.append(error)
            continue
        network.reset_classifier(0)
        return network
    reason = " ".join(str(failures[0]).split())[:160]
    raise UserError(f"{name}: {path} does not fit {model}: {reason}") from failures[0]
