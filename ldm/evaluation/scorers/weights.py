"""Where a scorer's weights are on this machine; nothing is fetched unless it is allowed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.atomic import atomic_write
from ldm.paths import expanded

#: Publishers write a sha256, or its beginning, as a folder of the address or at the end of the file's name.
_HASH_IN_URL = re.compile(r"[/-]([0-9a-f]{8,64})[/.]")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def scorers_folder() -> Path:
    """The folder that published weights are looked for in: ``ldm/scorers`` in the user's cache folder."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ldm" / "scorers"


@dataclass(frozen=True)
class Published:
    """Weights that somebody published under a name.

    Attributes:
        scorer: the name that the user gave.
        stem: path of the file under :func:`scorers_folder`, without its suffix.
        repository: of the Hugging Face hub, ``owner/name``; empty if there is none.
        files: names of the file in it, the preferred one first.
        url: of the file itself; empty if there is none.
    """

    scorer: str
    stem: str
    repository: str = ""
    files: tuple[str, ...] = ()
    url: str = ""

    @classmethod
    def of(cls, scorer: str, stem: str, source: Mapping[str, Any]) -> Published:
        """From an entry of open_clip's or timm's table of published weights."""
        hub = str(source.get("hf_hub") or source.get("hf_hub_id") or "")
        owner, _, rest = hub.partition("/")
        name, _, file = rest.partition("/")
        timm = "hf_hub_id" in source
        usual = "model.safetensors" if timm else "open_clip_model.safetensors"
        other = "pytorch_model.bin" if timm else "open_clip_pytorch_model.bin"
        files = (file,) if file else (usual, other)
        repository = f"{owner}/{name}" if name else ""
        return cls(scorer, stem, repository, files if repository else (), str(source.get("url") or ""))

    @property
    def origin(self) -> str:
        """Where the file is published."""
        if self.repository:
            return f"https://huggingface.co/{self.repository}/resolve/main/{self.files[0]}"
        return self.url


def find(published: Published, *, allow_download: bool = False) -> Path:
    """The file, of this machine or, if that is allowed, fetched.

    It is looked for in :func:`scorers_folder` and in the Hugging Face hub's own cache.

    Raises:
        UserError: it is not here and may not be fetched, or cannot be.
    """
    place = scorers_folder() / published.stem
    for suffix in SUFFIXES:
        if (path := place.with_name(place.name + suffix)).is_file():
            return path
    if cached := _in_hub_cache(published):
        return cached
    suffix = Path(published.files[0] if published.files else published.url).suffix or SUFFIXES[0]
    target = place.with_name(place.name + suffix)
    if not published.origin:
        raise UserError(f"{published.scorer}: nobody published these weights; put yours at {target}")
    if not allow_download:
        raise UserError(
            f"{published.scorer}: its weights are not here; give --allow-download, or put the file "
            f"{published.origin} at {target}"
        )
    try:
        return _fetch(published, target)
    except UserError:
        raise
    except Exception as error:  # a network fails in any way
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{published.scorer}: cannot fetch {published.origin} ({reason}); put the file at {target}"
        ) from error


def _in_hub_cache(published: Published) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in published.files:
        found = try_to_load_from_cache(published.repository, file)
        if isinstance(found, str):
            return Path(found)
    return None


def _fetch(published: Published, target: Path) -> Path:
    if published.repository:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        for file in published.files:
            try:
                return Path(hf_hub_download(published.repository, file))
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):  # no connection
                    raise
        raise UserError(f"{published.scorer}: {published.repository} holds none of {published.files}")
    from torch.hub import download_url_to_file

    hashed = _HASH_IN_URL.search(published.url)
    with atomic_write(target) as path:
        download_url_to_file(published.url, str(path), hashed[1] if hashed else None, progress=False)
    return target
