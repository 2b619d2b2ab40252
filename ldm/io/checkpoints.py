"""Base models on disk: reading, strict loading, saving, fingerprints.

Layout of the public latent-diffusion checkpoints: ``model.diffusion_model.`` is the UNet,
``first_stage_model.`` the autoencoder, ``cond_stage_model.`` the text conditioner. Loading is
strict about these weights and indifferent to what a training run leaves beside them (schedule
buffers, EMA copies, optimiser state): a wrong checkpoint fails here and not as a loss of 1.0.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.atomic import atomic_write
from ldm.io.containers import checked_head, is_safetensors, is_weights, is_zip
from ldm.io.files import native, opened, read_head
from ldm.io.tensors import save_tensors
from ldm.paths import expanded

log = logging.getLogger(__name__)

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXT = "cond_stage_model."
PREFIXES = (UNET, AUTOENCODER, TEXT)
FORMAT_VERSION = "1"

#: Entries that a checkpoint may have or lack. Everything else is a weight.
_NOT_WEIGHTS = re.compile(
    r"^(model_ema|embedding_manager|loss|optimizer_states|lr_schedulers|callbacks)\."
    r"|^first_stage_model\.loss\."
    r"|(^|\.)(position_ids|attn_mask)$"
    r"|^cond_stage_model\.(transformer\.)?(logit_scale|(text|visual)_projection(\.weight)?)$"
    r"|^[a-z0-9_]+$"  # no dot: a buffer of the wrapper itself (betas, alphas_cumprod, logvar, ...)
)
_BARE_TOWER = re.compile(r"^cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)")
#: Classes that training frameworks pickle beside the weights. Each is replaced by an inert
#: stand-in, so that such a file opens without running anything of what it names.
_BYSTANDERS = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "numpy.",
    "typing.",
    "collections.",
    "argparse.Namespace",
    "pathlib.",
    "torch.nn.modules.container.ParameterDict",
)
_PLAIN = {f"builtins.{n}" for n in ("bool", "dict", "float", "int", "list", "set", "str", "tuple")}


class _Inert:
    """Stands in for a pickled object that is not a tensor; accepts anything and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# ------------------------------------------------------------------------------ reading
def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a ``.ckpt`` / ``.pt`` / ``.bin`` (zip or old pickle) or ``.safetensors`` file.

    The kind is told by content, not by suffix. Weights under ``"state_dict"`` or at the top level
    are both accepted. Tensors lie on the CPU, mapped from the file where the format allows.
    Nothing pickled is ever run. :class:`UserError` names a missing, corrupt or foreign file.
    """
    path = expanded(path)
    head = checked_head(path, "checkpoint")
    try:
        if is_safetensors(head):
            with native(path) as name:
                found = dict(load_file(name))
        else:
            found = _read_pickle(path, zipped=is_zip(head))
    except UserError:
        raise
    except Exception as error:  # readers raise nearly anything on broken bytes
        raise UserError(
            f"cannot read the checkpoint {path}: it is corrupt, cut short or of another format; "
            f"fetch it again ({_first_line(error)})"
        ) from error
    inner = found.get("state_dict", found)
    tensors = (
        {k: v for k, v in inner.items() if isinstance(v, Tensor) and isinstance(k, str)}
        if isinstance(inner, Mapping)
        else {}
    )
    if "string_to_param" in found:
        raise UserError(f"{path} is a learned embedding, not a model: give it as an embedding")
    if not tensors:
        raise UserError(f"{path} holds no weights: give a checkpoint with a state_dict")
    return tensors


def is_weight_file(path: Path) -> bool:
    """Whether a path is a file that begins as checkpoints do: safetensors, a zip, or an old pickle."""
    if not path.is_file() or path.suffix.lower() in (".yaml", ".yml"):
        return False
    return is_weights(read_head(path))


def public_names(state: Mapping[str, Tensor], source: str = "the checkpoint") -> dict[str, Tensor]:
    """``state`` under the names of the public layout: recent trainers leave CLIP's ``text_model.`` out.

    Raises:
        UserError: it has averages (EMA) of a UNet and no UNet: their names lack the dots.
    """
    names = {name: _BARE_TOWER.sub(f"{TEXT}transformer.text_model.", name) for name in state}
    if any(name.startswith("model_ema.") for name in names) and not any(n.startswith(UNET) for n in names):
        raise UserError(f"{source} holds only averages (EMA) of a training, whose names do not say which "
                        "weights of the UNet they are: give the checkpoint that has both")  # fmt: skip
    return {names[name]: tensor for name, tensor in state.items()}


def prefer_ema(state: Mapping[str, Tensor], source: str = "the checkpoint") -> dict[str, Tensor]:
    """``state`` with the UNet's exponential moving averages in the place of its last weights.

    They are what a training is sampled with. The public wrapper stores them as ``model_ema.`` and the
    name without its dots. Only a complete set counts: an average of the same shape for every weight
    of the UNet; with less, the last weights stay, with a warning.
    """
    names = [name for name in state if name.startswith(UNET)]
    ema = {name: state.get("model_ema." + name.removeprefix("model.").replace(".", "")) for name in names}
    there = [name for name, average in ema.items() if average is not None]
    whole = {n: t for n, t in ema.items() if t is not None and t.shape == state[n].shape}
    if there and len(whole) < len(names):
        log.warning(
            "%s holds averages (EMA) of %d of the UNet's %d weights: not used", source, len(whole), len(names)
        )
        return dict(state)
    return {**state, **whole}


def in_precision(
    read: Callable[[], Mapping[str, Tensor]], dtype: torch.dtype | None, runs: int = 8
) -> dict[str, Tensor]:
    """The weights that ``read`` returns, floating ones as ``dtype`` (None: as most of the UNet is).

    Those that have it already stay mapped from their file. The others are converted in ``runs``
    runs, each of which reads anew: pages that were read stay in memory as long as their mapping
    lives, so one mapping would cost the whole file on top of the result.
    """
    state = {name: tensor for name, tensor in read().items() if is_weight(name)}
    if dtype is None:
        kinds = [t.dtype for n, t in state.items() if n.startswith(UNET) and t.is_floating_point()]
        dtype = max(set(kinds), key=kinds.count, default=torch.float32)
    other = [n for n, t in state.items() if t.is_floating_point() and t.dtype != dtype]
    state = {name: tensor for name, tensor in state.items() if name not in set(other)}
    size = -(-len(other) // runs) or 1
    for start in range(0, len(other), size):
        mapped = read()
        state |= {name: mapped[name].to(dtype) for name in other[start : start + size]}
        del mapped
    return state


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; empty for other formats. Errors as reading."""
    path = expanded(path)
    if not is_safetensors(checked_head(path)):
        return {}
    try:
        with native(path) as name, safe_open(name, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: it is corrupt or cut short; fetch it again") from error


def read_torch(path: Path) -> Any:
    """What this program wrote by ``torch.save``, in a file of any name; no code is run and nothing printed.

    If the file is damaged, nearly any error.
    """
    with opened(path, "checkpoint") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about broken files; those are errors
        return torch.load(stream, map_location="cpu", weights_only=True)


def _read_pickle(path: Path, zipped: bool) -> dict[str, Any]:
    """``torch.load(weights_only=True)``, mapped where possible; bystanders become inert."""
    # torch takes a file for safetensors by its ending, and several web sites give every model that one
    misnamed = path.suffix == ".safetensors"
    with (
        torch.serialization.safe_globals(_stand_ins(path) if zipped else []),
        native(path, rename=misnamed) as name,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about broken files; those are errors
        found = torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}: give one with a state_dict")
    return found


def _stand_ins(path: Path) -> list[Any]:
    """An inert class for every global of ``path`` that torch does not know and that is harmless.

    Anything else that the file names (``os.system``, say) stays forbidden and the load fails.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [
        (type("Inert", (_Inert,), {}), name)
        for name in names
        if name.startswith(_BYSTANDERS) or name in _PLAIN
    ]


def _first_line(error: BaseException) -> str:
    """What an error says, short: torch's messages run over many lines."""
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
    if forbidden:
        return f"it wants to run {forbidden.group(1)}, which is refused"
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return (reason.splitlines() or [type(error).__name__])[0].strip()[:160]


# ------------------------------------------------------------------------------ loading
def is_weight(name: str, ignore: Iterable[str] = ()) -> bool:
    """Whether a checkpoint entry is a weight that strict loading must account for."""
    return not _NOT_WEIGHTS.search(name) and not any(fnmatch(name, p) for p in ignore)


def load_model_weights(
    parts: Mapping[str, nn.Module],
    state_dict: Mapping[str, Tensor],
    *,
    source: str = "the checkpoint",
    ignore: Iterable[str] = (),
    strict: bool = True,
) -> None:
    """Copies ``state_dict`` into ``parts`` (prefix -> module), all of it or nothing.

    Strict about every weight below the given prefixes and about names outside the public layout;
    the other public prefixes are skipped, so a part can be loaded alone. ``ignore`` lists
    wildcard patterns of full names that may be missing or left over. Values are cast to the
    module's dtype and device; a module on the meta device takes the checkpoint's own tensors.
    Without ``strict``, missing weights stay as they are and unexpected ones are left out, with a warning.

    Raises :class:`UserError` with a readable difference; then no module has been touched.
    """
    ignore = tuple(ignore)
    skipped = tuple(p for p in PREFIXES if p not in parts)
    wanted = {
        prefix + name: tensor
        for prefix, module in parts.items()
        for name, tensor in module.state_dict(keep_vars=True).items()
    }
    given = {
        name: tensor
        for name, tensor in state_dict.items()
        if name in wanted or (is_weight(name, ignore) and not name.startswith(skipped))
    }
    missing = sorted(n for n in wanted if n not in given and is_weight(n, ignore))
    unexpected = sorted(n for n in given if n not in wanted)
    mismatched = [
        f"{n} {tuple(given[n].shape)} instead of {tuple(wanted[n].shape)}"
        for n in sorted(given)
        if n in wanted and given[n].shape != wanted[n].shape
    ]
    if missing or unexpected or mismatched:
        difference = _difference(source, len(wanted), missing, unexpected, mismatched)
        if strict or mismatched:
            raise UserError(
                f"{difference}; this checkpoint is of another model: give the config that belongs to it"
            )
        log.warning("%s; it is used all the same (strict=false)", difference)
    for prefix, module in parts.items():
        own = {n[len(prefix) :]: t for n, t in given.items() if n.startswith(prefix)}
        meta = any(t.is_meta for t in module.state_dict(keep_vars=True).values())
        module.load_state_dict(own, strict=False, assign=meta)


def _difference(
    source: str, total: int, missing: list[str], unexpected: list[str], mismatched: list[str]
) -> str:
    """The one line that says how a checkpoint differs from the model: counts, then names."""
    clauses = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            clauses.append(f"{len(names)} {what} ({shown})")
    return f"{source} does not fit this model of {total} weights: {'; '.join(clauses)}"


# ------------------------------------------------------------------------------- saving
def collect(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of ``parts`` under their public names, sorted, detached, where they are."""
    return dict(
        sorted(
            (prefix + name, tensor.detach())
            for prefix, module in parts.items()
            for name, tensor in module.state_dict().items()
            if is_weight(prefix + name)
        )
    )


def save_checkpoint(
    parts: Mapping[str, nn.Module],
    path: Path | str,
    dtype: torch.dtype | None = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes ``parts`` (prefix -> module) as ``.safetensors`` in the public layout, atomically.

    Floating weights are stored as ``dtype`` (None: as they are); ``metadata`` is kept beside
    ``format_version`` and ``fingerprint``. :class:`UserError` if a value does not fit ``dtype``
    or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in collect(parts).items():
        stored = tensor.to("cpu", dtype if tensor.is_floating_point() else None, copy=True)
        if tensor.is_floating_point() and not stored.isfinite().all():
            raise UserError(
                f"cannot save {name} as {stored.dtype}: it holds values that are not "
                "finite there; save in float32, or look for a diverged training"
            )
        tensors[name] = stored.contiguous()
    notes = {"format_version": FORMAT_VERSION, "fingerprint": _digest(tensors, exact=False)}
    with atomic_write(path) as temporary:
        save_tensors(tensors, temporary, {**notes, **(metadata or {})})
    return Path(path)


# -------------------------------------------------------------------------- fingerprint
def fingerprint(parts: Mapping[str, nn.Module], *, exact: bool = False) -> str:
    """sha256 hex of the weights of ``parts``: sorted names, shapes and values.

    By default values are hashed as float16, the precision that models ship in: one model has one
    fingerprint, be it held in float32 or float16, saved and loaded again, on any device. (A
    bfloat16 copy has lost bits and differs: take the fingerprint before such a cast.) With
    ``exact`` the dtypes and the raw bytes as held are hashed: equal means bit-identical, which is
    what a proof that nothing frozen moved asks for. One pass at sha256 speed, about 1 GB/s.
    """
    return _digest(collect(parts), exact=exact)


def _digest(tensors: Mapping[str, Tensor], *, exact: bool) -> str:
    digest = hashlib.sha256(b"exact" if exact else b"float16")
    for name in sorted(tensors):
        tensor = tensors[name]
        if not exact and tensor.is_floating_point():
            tensor = tensor.to(torch.float16)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
