"""Keys, tokens and passwords are kept out of what is meant to be shared: manifests, configs, reports, pictures.

What counts as one: a value whose name says so (``api_key=...``, ``--token ...``, ``password: ...``), a text of
the form that a service gives its tokens, what stands before the host or in the query of an address, and every
value of this process's environment that is called so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
_QUERY = re.compile(r"([?&](?:[\w.-]*(?:token|key|secret|sig|signature|credential|auth|password))=)[^&\s\"']+", re.I)
#: what a secret's value never is, in YAML and elsewhere
_PLAIN = {"null", "none", "~", "true", "false", HIDDEN.lower()}
#: shorter values of the environment occur by chance
_LONG = 12


def redacted(text: str) -> str:
    """``text`` with every secret in it replaced by ``REDACTED``."""
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    text = _FORMS.sub(HIDDEN, text)
    text = _ADDRESS.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _NAMED.sub(lambda m: m[0] if m[2].lower() in _PLAIN else m[1] + HIDDEN, text)


def redacted_words(words: Sequence[str]) -> list[str]:
    """A command's words; an option's name may be a word before its value."""
    told: list[str] = []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        before = words[i - 1] if i else ""
        if equals and value and _IS_NAME.fullmatch(name.lstrip("-")):
            told.append(f"{name}={HIDDEN}")
        elif before.startswith("-") and "=" not in before and _IS_NAME.fullmatch(before.lstrip("-")):
            told.append(HIDDEN)
        else:
            told.append(redacted(word))
    return told


def redacted_values(value: Any, name: str = "") -> Any:
    """A config or a part of one: of mappings, lists and plain values."""
    if isinstance(value, Mapping):
        return {redacted(k) if isinstance(k, str) else k: redacted_values(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_values(item, name) for item in value]
    if isinstance(value, str):
        secret = value and value.lower() not in _PLAIN and _IS_NAME.fullmatch(name)
        return HIDDEN if secret else redacted(value)
    return value


def hidden_keys(value: Any, key: str = "") -> list[str]:
    """Dotted names of what :func:`redacted_values` has taken from a config, which it lacks since."""
    if isinstance(value, Mapping):
        return [found for k, v in value.items() for found in hidden_keys(v, f"{key}.{k}" if key else str(k))]
    if isinstance(value, (list, tuple)):
        return [found for item in value for found in hidden_keys(item, key)]
    return [key] if isinstance(value, str) and HIDDEN in value else []


def _of_environment() -> list[str]:
    """Values of variables that are called as secrets are, the longest first."""
    called = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
    found = {
        value
        for name, value in os.environ.items()
        if called.fullmatch(name) and len(value) >= _LONG and not re.search(r"[\s/\\]", value)
    }
    return sorted(found, key=len, reverse=True)
