"""``ldm invert --concepts``: a list of concepts in YAML, learned many at a time."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ldm.cli import common
from ldm.errors import UserError
from ldm.io.runs import CONFIG_NAME, LIST_NAME, slug, stamp
from ldm.io.secrets import refuse_hidden

if TYPE_CHECKING:
    from ldm.inversion.many.jobs import Job, Result

log = logging.getLogger(__name__)

SECTIONS = ("defaults", "concepts")
ALL = slice(None)
#: options of ``ldm invert`` and ``ldm cluster`` for that, and their defaults
HANDING_OUT: dict[str, Any] = {
    "pack": "auto", "address": "local", "task_size": 64, "cpus_per_task": 1, "gpus_per_task": None,
    "retries": 2,
}  # fmt: skip
#: more rows than a screen has are read from the summary file
MOST_ROWS = 40


class Refused(NamedTuple):
    """An entry of a list that cannot be learned: what is wrong, and its settings as they were given."""

    name: str
    word: str
    error: str
    entry: Any


def read_jobs(
    path: Path, options: Mapping[str, Any], model: str | None = None, part: slice = ALL
) -> list[Job | Refused]:
    """The jobs of a list ``{defaults: {key: value}, concepts: [{name, images, key: value}, ...]}``.

    Keys are those of ``InversionConfig``, where ``name`` is the placeholder. An entry's settings win over
    ``defaults``, these over the model's own, and ``options`` over all. A run folder has the name's
    letters and digits. A wrong entry is refused and takes no other down.

    Args:
        options: nested mapping of settings, as from the command line.
        model: wins over the list's; the shipped "emoji" if neither gives one.
        part: of the entries.

    Raises:
        UserError: it is no list, or every entry is wrong; names the first one.
    """
    from ldm.backbone.loading import inversion_defaults
    from ldm.config import load_yaml, unknown_key
    from ldm.shorthand import spelled

    sections = load_yaml([path])
    for key in sections:
        if key not in SECTIONS:
            raise unknown_key(str(key), SECTIONS, f"{path}: ")
    defaults, entries = sections.get("defaults") or {}, sections.get("concepts") or []
    if not isinstance(defaults, Mapping) or not isinstance(entries, list) or not entries:
        raise UserError(f"{path} needs a list 'concepts:' of {{name, images, init}}; it may have 'defaults:'")
    model = model or defaults.get("model", "emoji")
    common_layers = (inversion_defaults(model), spelled(defaults), {"model": model})
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
    from ldm.inversion.config import settle
    from ldm.inversion.many.jobs import Job

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


def run(args: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """``ldm invert --concepts``: learn all in this process."""

    def learn(jobs: Sequence[Job], out: Path) -> list[Result]:
        from ldm.backbone import loading
        from ldm.inversion.many.pack import learn_many
        from ldm.official.quirks import switches

        shared = jobs[0].config
        strict = not switches(shared.compat).loose_weights
        model = loading.load(shared.model, shared.checkpoint, strict=strict)
        return learn_many(model, jobs, out, pack=args.pack, resume=args.resume)

    for option in ("images", "name", "init"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} belongs to a single concept: write it into {args.concepts}")
    learn_list(args, options, "invert", learn)


def learn_list(
    args: argparse.Namespace,
    options: Mapping[str, Any],
    command: str,
    learn: Callable[[Sequence[Job], Path], list[Result]],
) -> None:
    """Learn the list of a subcommand by ``learn(jobs, out)``, say what became of each.

    Raises:
        UserError: at the end, if any failed.
    """
    from ldm.config import to_plain

    if args.resume and args.out is None:
        raise UserError("--resume needs --out: give the folder of the runs to continue")
    read = read_jobs(args.concepts, options, args.model, args.part)
    for one in read if args.concepts.name == LIST_NAME else ():
        if not isinstance(one, Refused):
            refuse_hidden(to_plain(one.config), f"of {one.config.placeholder}: ")
    if not read:
        raise UserError(f"{args.concepts} has fewer concepts than --part makes parts")
    usual = Path("runs", f"{stamp()}_{slug(args.concepts.stem)}")
    with common.output(args.out, usual) as out:
        _learn_in(out, read, args, command, learn)


def _learn_in(
    out: Path,
    read: Sequence[Job | Refused],
    args: argparse.Namespace,
    command: str,
    learn: Callable[[Sequence[Job], Path], list[Result]],
) -> None:
    from ldm.inversion.many.jobs import SUMMARY, Job, Result, check_together, write_summary
    from ldm.io.atomic import write_text
    from ldm.io.runs import holds_something

    if not args.resume and holds_something(out):
        raise UserError(f"the folder {out} is not empty: choose another one, or go on in it by --resume")
    again = common.command(["ldm", command, "--resume", "--out", out, *_handed_out(args)])
    common.resume_by(lambda: f"continue with: {again}")
    jobs = [one for one in read if isinstance(one, Job)]
    check_together(jobs)
    listed, kept = _as_list(read), out / LIST_NAME
    if args.resume and kept.is_file() and kept.read_text(encoding="utf-8") != listed:
        _refuse_another_list(kept, jobs)
    write_text(kept, listed)
    learned = {result.name: result for result in learn(jobs, out)}
    results = [
        learned[one.name] if isinstance(one, Job)
        else Result(one.name, one.word, "failed", out / one.name, error=one.error)
        for one in read
    ]  # fmt: skip
    write_summary(results, out)
    failed = [result for result in results if result.status == "failed"]
    common.heading(f"learned {len(results) - len(failed)} of {len(results)} concepts")
    common.say(*_table(results), f"  summary     {out / SUMMARY}")
    if len(failed) < len(results):
        common.say(f"  embeddings  {out / 'embeddings.safetensors'}")
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(results)} concepts failed, the first being {first.word} "
            f"({first.error}); put it right, then: {again}"
        )


def _refuse_another_list(kept: Path, jobs: Sequence[Job]) -> None:
    """Refuse a list that lacks a concept of ``kept`` which was begun, or learns it by other settings.

    Raises:
        UserError: names the concept.
    """
    from ldm.inversion.resume import OF_INVERSIONS, changes

    now, out = {job.name: job.config for job in jobs}, kept.parent
    for job in read_jobs(kept, {}):
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


def _handed_out(args: argparse.Namespace) -> list[str]:
    """The options that say by whom a list is learned, which the list that is kept does not."""
    words = []
    for option, usual in HANDING_OUT.items():
        value = getattr(args, option, usual)
        if value != usual:
            words += [f"--{option.replace('_', '-')}", str(value)]
    return words


def _as_list(read: Sequence[Job | Refused]) -> str:
    """What :func:`read_jobs` reads these from again, whatever the options and the model's own settings.

    An entry that was refused stays as it was given.
    """
    from ldm.config import dump_yaml, to_plain
    from ldm.io.secrets import redacted_values

    entries = []
    for one in read:
        entry = redacted_values(one.entry if isinstance(one, Refused) else to_plain(one.config))
        entries.append(entry if isinstance(one, Refused) else {"name": entry.pop("placeholder"), **entry})
    return dump_yaml({"concepts": entries})


def _table(results: Sequence[Result]) -> list[str]:
    if len(results) > MOST_ROWS:
        return []
    width = max(len(result.name) for result in results)
    rows = []
    for result in results:
        loss = "" if result.loss is None else f"loss {result.loss:.4f}"
        figures = f"{result.steps} steps in {result.seconds:.0f} s, {loss}"
        told = result.error if result.status == "failed" else figures
        rows.append(f"  {result.name:{width}}  {result.status:7}  {told}")
    return rows


def kept_list(args: argparse.Namespace) -> Path | None:
    """The list to learn: that of ``--concepts``, or with ``--resume`` the one that ``--out`` kept."""
    if args.concepts is None and args.resume and args.out and (args.out / LIST_NAME).is_file():
        return args.out / LIST_NAME
    return args.concepts


def pack_size(text: str) -> int | str:
    """Of ``--pack``: a number, or "auto"."""
    if text != "auto" and int(text) < 1:
        raise ValueError
    return text if text == "auto" else int(text)


def part(text: str) -> slice:
    """Of ``--part I/N``: every N-th concept from number I (counted from 0) on."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return slice(int(number), None, int(of))
