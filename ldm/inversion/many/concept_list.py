"""A list of concepts in YAML: its jobs, the copy that its folder keeps, and learning all of it.

From Python::

    entries = read_jobs(Path("concepts.yaml"))
    results = learn_list(entries, Path("runs/all"))

A wrong entry takes no other down: it is left out, and its result says why.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldm.backbone import loading
from ldm.config import dump_yaml, load_yaml, to_plain, unknown_key
from ldm.errors import UserError
from ldm.inversion.config import settle
from ldm.inversion.many.jobs import Job, Result, check_together, write_summary
from ldm.inversion.resume import OF_INVERSIONS, changes
from ldm.io.atomic import write_text
from ldm.io.runs import CONFIG_NAME, LIST_NAME, holds_something, slug
from ldm.io.secrets import redacted_values, refuse_hidden
from ldm.shorthand import spelled

log = logging.getLogger(__name__)

#: Keys of a list.
SECTIONS = ("defaults", "concepts")
#: The part of a list that is all of it.
ALL = slice(None)

#: Learns jobs in runs of their own below a folder.
Learn = Callable[[Sequence[Job], Path], list[Result]]


class Refused(NamedTuple):
    """An entry of a list that cannot be learned.

    Attributes:
        name: of its run folder, were it learned.
        word: its placeholder, if it has one.
        error: one line that says what is wrong.
        entry: the entry as it was given.
    """

    name: str
    word: str
    error: str
    entry: Any


# ------------------------------------------------------------------------------ reading
def read_jobs(
    path: Path, options: Mapping[str, Any] | None = None, model: str | None = None, part: slice = ALL
) -> list[Job | Refused]:
    """The jobs of a list ``{defaults: {key: value}, concepts: [{name, images, key: value}, ...]}``.

    Keys are those of ``InversionConfig``, where ``name`` is the placeholder. An entry's settings win over
    ``defaults``, these over the model's own, and ``options`` over all. A run folder has the name's
    letters and digits. A wrong entry is refused and takes no other down.

    Args:
        path: the YAML file; it may be the copy that :func:`learn_list` left in its folder.
        options: nested mapping of settings, as from the command line.
        model: wins over the list's; the shipped "emoji" if neither gives one.
        part: of the entries.

    Returns:
        One a concept of the part, in the list's order.

    Raises:
        UserError: it is no list, the part is empty, every entry is wrong (names the first one), or a
            setting of a copy was a secret, which the copy does not hold.
    """
    entries = _entries(path, options or {}, model, part)
    for one in entries if path.name == LIST_NAME else ():
        if isinstance(one, Job):
            refuse_hidden(to_plain(one.config), f"of {one.config.placeholder}: ")
    if not entries:
        raise UserError(f"{path} has fewer concepts than --part makes parts")
    return entries


def _entries(path: Path, options: Mapping[str, Any], model: str | None, part: slice) -> list[Job | Refused]:
    sections = load_yaml([path])
    for key in sections:
        if key not in SECTIONS:
            raise unknown_key(str(key), SECTIONS, f"{path}: ")
    defaults, entries = sections.get("defaults") or {}, sections.get("concepts") or []
    if not isinstance(defaults, Mapping) or not isinstance(entries, list) or not entries:
        raise UserError(f"{path} needs a list 'concepts:' of {{name, images, init}}; it may have 'defaults:'")
    model = model or defaults.get("model", "emoji")
    common_layers = (loading.inversion_defaults(model), spelled(defaults), {"model": model})
    read: list[Job | Refused] = []
    folders = Counter[str]()
    for number, entry in list(enumerate(entries, start=1))[part]:
        read.append(_read_entry(entry, number, common_layers, options, folders))
    refused = [one for one in read if isinstance(one, Refused)]
    if refused and len(refused) == len(read):
        raise UserError(f"{path}: {refused[0].error}")
    for one in refused:
        log.warning("%s: %s: left out", path, one.error)
    return read


def _read_entry(
    entry: Any,
    number: int,
    below: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    folders: Counter[str],
) -> Job | Refused:
    where = f"concept {number}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        wrong = f"{where} is {entry!r}; give a mapping with name, images and init"
        return Refused(f"concept-{number}", where, wrong[:500], entry)
    word = entry["name"]
    folder = slug(word)
    folders[folder] += 1
    folder = folder if folders[folder] == 1 else f"{folder}-{folders[folder]}"
    try:
        return Job(folder, settle(*below, entry, options))
    except UserError as error:
        return Refused(folder, word, f"{where} ({word}): {error}", entry)


# ------------------------------------------------------------------------------ learning
def learn_list(
    entries: Sequence[Job | Refused], out: Path, learn: Learn | None = None, *, resume: bool = False
) -> list[Result]:
    """Learn all of a list, each concept in a run folder of its own below ``out``.

    The folder keeps the list as ``concepts.yaml``, from which :func:`read_jobs` reads the same jobs, and
    gets a summary ``concepts.json`` and ``embeddings.safetensors`` with every word that was learned.

    Args:
        entries: from :func:`read_jobs`.
        out: an empty or new folder, or with ``resume`` one in which this list was begun.
        learn: who learns the jobs; by default :func:`learn_here`.
        resume: go on with the runs in ``out``; those that are finished are kept.

    Returns:
        One an entry, in their order; those that failed say why.

    Raises:
        UserError: ``out`` holds something else, jobs that cannot be learned together, or a list that lacks
            a concept which was begun in ``out`` or learns it by other settings.
    """
    if not resume and holds_something(out):
        raise UserError(f"the folder {out} is not empty: choose another one, or go on in it by --resume")
    jobs = [one for one in entries if isinstance(one, Job)]
    check_together(jobs)
    listed, kept = _as_list(entries), out / LIST_NAME
    if resume and kept.is_file() and kept.read_text(encoding="utf-8") != listed:
        _refuse_another_list(kept, jobs)
    write_text(kept, listed)
    learn = learn or partial(learn_here, resume=resume)
    learned = {result.name: result for result in learn(jobs, out)}
    results = [
        learned[one.name] if isinstance(one, Job)
        else Result(one.name, one.word, "failed", out / one.name, error=one.error)
        for one in entries
    ]  # fmt: skip
    write_summary(results, out)
    return results


def learn_here(
    jobs: Sequence[Job], out: Path, *, pack: int | Literal["auto"] = "auto", resume: bool = False
) -> list[Result]:
    """Learn jobs of one model in packs, in this process.

    Args:
        pack: how many at a time; "auto": as many as there is memory for.
        resume: go on with the runs in ``out``.
    """
    from ldm.inversion.many.pack import learn_many

    shared = jobs[0].config
    model = loading.load(shared.model, shared.checkpoint, strict=shared.strict)
    return learn_many(model, jobs, out, pack=pack, resume=resume)


def _refuse_another_list(kept: Path, jobs: Sequence[Job]) -> None:
    """Refuse a list that lacks a concept of ``kept`` which was begun, or learns it by other settings.

    Raises:
        UserError: names the concept.
    """
    now, out = {job.name: job.config for job in jobs}, kept.parent
    for job in _entries(kept, {}, None, ALL):
        if isinstance(job, Refused) or not (out / job.name / CONFIG_NAME).is_file():
            continue
        word = job.config.placeholder
        if job.name not in now:
            raise UserError(f"{out} holds {word} too, which this list lacks: give the whole list, or no list")
        differ = changes(job.config, now[job.name], OF_INVERSIONS)
        if differ:
            raise UserError(
                f"{word} was begun in {out} with other settings: {', '.join(differ)}; leave them "
                "as they are, or choose another folder"
            )


def _as_list(read: Sequence[Job | Refused]) -> str:
    """What :func:`read_jobs` reads these from again, whatever the options and the model's own settings.

    An entry that was refused stays as it was given.
    """
    entries = []
    for one in read:
        entry = redacted_values(one.entry if isinstance(one, Refused) else to_plain(one.config))
        entries.append(entry if isinstance(one, Refused) else {"name": entry.pop("placeholder"), **entry})
    return dump_yaml({"concepts": entries})
