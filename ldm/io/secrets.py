"""Keys, tokens and passwords are kept out of what is shared: manifests, configs, reports and pictures.

What counts as one: a value whose name says so (``api_key=...``, ``--token ...``, ``password: ...``), a text
of the form that a service gives its tokens, what stands before the host or in the query of an address, and
every value of this process's environment that is called so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ldm.errors import UserError

HIDDEN = "REDACTED"

#: the end of the name of a secret; "token" alone or of a service, for a placeholder_token is none
_NAME = (
    r"(?:api[-_]?key|access[-_]?key(?:[-_]?id)?|private[-_]?key|secret(?:[-_]?key)?|pass(?:word|wd|phrase)|credentials?"
    r"|signature|authorization|(?<![a-z_])token"
    r"|(?:access|auth|api|bearer|refresh|security|session|private|hf|hub|huggingface|wandb|github|gitlab|civitai)"
    r"[-_]?token)"
)
_IS_NAME = re.compile(rf"(?:^|.*[^a-z]){_NAME}|{_NAME}", re.IGNORECASE | re.DOTALL)
#: a name, what follows it, and its value up to where a shell, YAML or an address ends it
_NAMED = re.compile(rf"((?:(?<![a-z])|(?<=_)){_NAME}[\"']?\s*[=:]\s*[\"']?)([^\s\"'&,;}}\]]+)", re.IGNORECASE)
#: tokens by their form: Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, Google, W&B, JWT
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|wandb_v\d_\w{16,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
_ADDRESS = re.compile(r"(?<=://)[^/\s@\"']+@")
_QUERY = re.compile(
    r"([?&](?:[\w.-]*(?:token|key|secret|sig|signature|credential|auth|password))=)[^&\s\"']+", re.I
)
#: what a secret's value never is, in YAML and elsewhere
_PLAIN = {"null", "none", "~", "true", "false", HIDDEN.lower()}
#: how variables with a secret are called
_CALLED = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS")
#: shorter values of the environment occur by chance
_LONG = 12


def redacted(text: str) -> str:
    """``text`` with every secret in it replaced by ``REDACTED``."""
    return _redacted(text, _of_environment())


def _redacted(text: str, known: Sequence[str]) -> str:
    for value in known:
        text = text.replace(value, HIDDEN)
    if len(text) > _LONG:
        text = _FORMS.sub(HIDDEN, text)
    if "://" in text:
        text = _ADDRESS.sub(f"{HIDDEN}@", text)
    if "=" in text or ":" in text:
        text = _QUERY.sub(rf"\1{HIDDEN}", text)
        text = _NAMED.sub(lambda m: m[0] if m[2].lower() in _PLAIN else m[1] + HIDDEN, text)
    return text


@lru_cache(maxsize=1024)
def _is_name(name: str) -> bool:
    """Whether an option or a key is called as secrets are."""
    return _IS_NAME.fullmatch(name.lstrip("-")) is not None


def redacted_words(words: Sequence[str]) -> list[str]:
    """A command's words; an option's name may be a word before its value."""
    told: list[str] = []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        before = words[i - 1] if i else ""
        if equals and value and _is_name(name):
            told.append(f"{name}={HIDDEN}")
        elif before.startswith("-") and "=" not in before and _is_name(before):
            told.append(HIDDEN)
        else:
            told.append(redacted(word))
    return told


def redacted_values(value: Any) -> Any:
    """A config or a part of one: of mappings, lists and plain values."""
    return _redacted_values(value, "", _of_environment())


def _redacted_values(value: Any, name: str, known: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        told: dict[Any, Any] = {}
        for key, inner in value.items():
            own = _redacted(key, known) if isinstance(key, str) else key
            # two files that differ in nothing else are still two
            told[own if own not in told else f"{own}-{len(told)}"] = _redacted_values(inner, str(key), known)
        return told
    if isinstance(value, (list, tuple)):
        return [_redacted_values(item, name, known) for item in value]
    if isinstance(value, str):
        secret = value and value.lower() not in _PLAIN and _is_name(name)
        return HIDDEN if secret else _redacted(value, known)
    return value


def refuse_hidden(values: Mapping[str, Any], where: str = "") -> None:
    """A config that was kept without its secrets cannot be used as it is.

    Raises:
        UserError: names the first setting that lacks one.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            refuse_hidden(value, f"{where}{key}.")
        elif HIDDEN in str(value):
            raise UserError(
                f"config {where}{key} was kept without the secret in it; give it again, as when the run began"
            )


def _of_environment() -> list[str]:
    """Values of variables that are called as secrets are, the longest first."""
    called = [value for name, value in os.environ.items() if name.upper().endswith(_CALLED)]
    found = {value for value in called if len(value) >= _LONG and not re.search(r"[\s/\\]", value)}
    return sorted(found, key=len, reverse=True)
