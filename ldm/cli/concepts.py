"""``ldm invert --concepts`` and ``ldm cluster``: options of a list of concepts, and what became of each.

Reading and learning a list is in :mod:`ldm.inversion.many.concept_list`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldm.cli import common
from ldm.errors import UserError
from ldm.io.runs import LIST_NAME, slug, stamp
from ldm.text.english import counted

if TYPE_CHECKING:
    from ldm.inversion.many.concept_list import Learn
    from ldm.inversion.many.jobs import Result

#: options of ``ldm invert`` and ``ldm cluster`` that say by whom a list is learned, and their defaults
HANDING_OUT: dict[str, str | int | float | None] = {
    "pack": "auto", "address": "local", "task_size": 64, "cpus_per_task": 1, "gpus_per_task": None,
    "retries": 2,
}  # fmt: skip
#: more rows than a screen has are read from the summary file
MOST_ROWS = 40


def learn(
    path: Path,
    out: Path | None,
    *,
    command: Callable[[Path], list[str | Path]],
    learn: Learn | None = None,
    options: Mapping[str, Any],
    model: str | None,
    part: slice = slice(None),
    resume: bool,
) -> None:
    """Learn a list, and say what became of each concept.

    Args:
        path: the list.
        out: the folder of its runs, or ``None`` for a new one.
        command: the words of the command that goes on in a folder.
        learn, resume: as of ``ldm.inversion.many.concept_list.learn_list``.
        options, model, part: as of ``read_jobs`` there.

    Raises:
        UserError: at the end, if any failed.
    """
    from ldm.inversion.many.concept_list import learn_list, read_jobs
    from ldm.inversion.many.jobs import SUMMARY

    if resume and out is None:
        raise UserError("--resume needs --out: give the folder of the runs to continue")
    entries = read_jobs(path, options, model, part)
    with common.output(out, Path("runs", f"{stamp()}_{slug(path.stem)}")) as folder:
        again = common.command(command(folder))
        common.resume_once(folder / LIST_NAME, again)
        results = learn_list(entries, folder, learn, resume=resume)
        failed = [result for result in results if result.status == "failed"]
        common.heading(f"learned {len(results) - len(failed)} of {counted(len(results), 'concept')}")
        common.say(*_table(results), f"  summary     {folder / SUMMARY}")
        if len(failed) < len(results):
            common.say(
                f"  reports     {folder / '*' / 'report.html'}",
                f"  embeddings  {folder / 'embeddings.safetensors'}",
            )
        if failed:
            first = failed[0]
            raise UserError(
                f"{len(failed)} of {len(results)} concepts failed, the first being {first.word} "
                f"({first.error}); put it right, then: {again}"
            )


def resuming(subcommand: str, **handed_out: str | int | float | None) -> Callable[[Path], list[str | Path]]:
    """The words of the command that goes on in a folder, which keeps the list, but not by whom it is learned.

    Args:
        handed_out: values of the options in :data:`HANDING_OUT`; the usual ones are left out.
    """
    words: list[str | Path] = []
    for option, usual in HANDING_OUT.items():
        value = handed_out.get(option, usual)
        if value != usual:
            words += [f"--{option.replace('_', '-')}", str(value)]
    return lambda folder: ["ldm", subcommand, "--resume", "--out", folder, *words]


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


def kept_list(given: Path | None, out: Path | None, resume: bool) -> Path | None:
    """The list to learn: that of ``--concepts``, or with ``--resume`` the one that ``--out`` kept."""
    if given is None and resume and out and (out / LIST_NAME).is_file():
        return out / LIST_NAME
    return given


def pack_size(text: str) -> int | Literal["auto"]:
    """Of ``--pack``: a number, or "auto"."""
    if text != "auto" and int(text) < 1:
        raise ValueError
    return "auto" if text == "auto" else int(text)


def part(text: str) -> slice:
    """Of ``--part I/N``: every N-th concept from number I (counted from 0) on."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return slice(int(number), None, int(of))
