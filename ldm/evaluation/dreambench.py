"""DreamBench (Ruiz et al. 2023): its folder, its prompts, and the figures of its protocol.

The data set is a public repository of 30 subjects, each a folder of four to six pictures, with the subjects'
classes and the prompts in one text file beside them. Any folder of that shape can be read.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.scorers.base import Scorer
from ldm.evaluation.scorers.identity import HELD_OUT, TRAINING, Score, require_same
from ldm.evaluation.scorers.protocols import dreambench_scores, picture_features
from ldm.io.atomic import file_sha256, write_json
from ldm.io.files import read_text
from ldm.io.pictures import list_pictures
from ldm.io.runs import now
from ldm.paths import expanded
from ldm.sampling.sample import Sampling

REPOSITORY = "https://github.com/google/dreambooth"
#: The commit that added the data set. Git names a commit by a hash over all of its files.
COMMIT = "e9b8c013ef2e30ab3d5d9018808513e9093e3bc4"
SAMPLES = 4  # of each prompt, in the paper
PROMPTS_FILE = "prompts_and_classes.txt"
RECORD = "dreambench.json"
#: Classes whose subjects are alive and get the prompts of outfits.
LIVE = ("cat", "dog")
_PROMPT = re.compile(r"""^['"](?P<text>[^'"]*\{0\}[^'"]*)['"]\s*\.format""")


@dataclass(frozen=True)
class Subject:
    """One subject.

    Attributes:
        name: of its folder.
        class_word: such as "stuffed animal".
        pictures: its files, sorted by name.
        templates: of its prompts, with ``{0}`` for a word and ``{1}`` for the class.
    """

    name: str
    class_word: str
    pictures: tuple[Path, ...]
    templates: tuple[str, ...]

    @property
    def live(self) -> bool:
        """Whether it gets the prompts of live subjects."""
        return self.class_word in LIVE

    def prompts(self, with_class: bool = False) -> tuple[str, ...]:
        """With ``{}`` for the word: "a {} in the jungle", or "a {} dog in the jungle" with its class."""
        return tuple(
            _spaced(t.replace("{0}", "{}").replace("{1}", self.class_word if with_class else ""))
            for t in self.templates
        )

    def texts(self) -> tuple[str, ...]:
        """What CLIP-T compares with, the class word alone: "a dog in the jungle"."""
        return tuple(_spaced(t.replace("{0}", "").replace("{1}", self.class_word)) for t in self.templates)

    def split(self, train_pictures: int | None) -> tuple[tuple[Path, ...], tuple[Path, ...], str]:
        """Pictures to learn from, references, and which they are: held out, or the training pictures.

        Raises:
            UserError: no picture would be left as a reference.
        """
        if train_pictures is None:
            return self.pictures, self.pictures, TRAINING
        if not 1 <= train_pictures < len(self.pictures):
            raise UserError(
                f"{self.name} has {len(self.pictures)} pictures: train on 1 to {len(self.pictures) - 1} of "
                f"them, not {train_pictures}"
            )
        return self.pictures[:train_pictures], self.pictures[train_pictures:], HELD_OUT


def _spaced(text: str) -> str:
    return " ".join(text.split())


# -------------------------------------------------------------------------------- reading
def read_dreambench(folder: Path | str) -> tuple[Subject, ...]:
    """The subjects of a folder of DreamBench's shape, sorted by name.

    Args:
        folder: holds ``prompts_and_classes.txt`` and a folder of pictures for each subject that it names.

    Raises:
        UserError: something is missing.
    """
    folder = expanded(folder)
    file = folder / PROMPTS_FILE
    if not file.is_file():
        raise UserError(
            f"{folder} is no DreamBench, it has no {PROMPTS_FILE}; fetch it with ldm data dreambench"
        )
    classes, objects, live = read_prompts(read_text(file, "list of prompts"))
    if not classes or not objects or not live:
        raise UserError(f"{file} names no classes, or no prompts of objects or of live subjects")
    found = []
    for name, class_word in sorted(classes.items()):
        pictures = tuple(list_pictures(folder / name))
        found.append(Subject(name, class_word, pictures, live if class_word in LIVE else objects))
    return tuple(found)


def read_prompts(text: str) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Of the data set's text file: subject -> class, templates of objects, templates of live subjects."""
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    section = ""
    for line in map(str.strip, text.splitlines()):
        lower = line.lower()
        if lower == "subject_name,class":
            section = "classes"
        elif lower in ("object prompts", "live subject prompts"):
            section = lower.partition(" ")[0]
        elif section == "classes" and "," in line:
            name, _, class_word = line.partition(",")
            classes[name.strip()] = class_word.strip()
        elif section in prompts and (match := _PROMPT.match(line)):
            prompts[section].append(match["text"])
    return classes, tuple(prompts["object"]), tuple(prompts["live"])


# ------------------------------------------------------------------------------- fetching
def fetch_dreambench(out: Path | str, repository: str = REPOSITORY, commit: str = COMMIT) -> Path:
    """Fetch the data set with git into ``out``, or check the one that is there.

    Git checks every file against the commit's hash. ``dreambench.json`` then keeps a sha256 of each, by which
    a second call checks the folder without a connection.

    Args:
        out: a folder that is not there yet, or that this function wrote.
        repository: address or folder of the repository or of a mirror.
        commit: 40 hex digits.

    Raises:
        UserError: git is missing or fails, files differ from what they were, or the commit holds no data set.
    """
    out = expanded(out)
    if (out / RECORD).is_file():
        check_dreambench(out)
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and holds something else; give another --out")
    if shutil.which("git") is None:
        raise UserError("git was not found; install it, it fetches the data set")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        clone = Path(temporary)
        _git(clone, "init", "--quiet")
        _git(clone, "fetch", "--quiet", "--depth", "1", "--no-tags", repository, commit)
        _git(clone, "checkout", "--quiet", "--detach", commit)
        _git(clone, "fsck", "--full", "--no-dangling")
        if _git(clone, "rev-parse", "HEAD") != commit or _git(clone, "status", "--porcelain"):
            raise UserError(f"{repository}: what git fetched is not the commit {commit}; try again")
        data = clone / "dataset"
        subjects = read_dreambench(data)
        record = {
            "repository": repository,
            "commit": commit,
            "fetched": now(),
            "subjects": len(subjects),
            "sha256": {path.relative_to(data).as_posix(): file_sha256(path) for path in _files(data)},
        }
        write_json(data / RECORD, record)
        if out.exists():
            out.rmdir()
        data.rename(out)
    return out


def check_dreambench(folder: Path) -> None:
    """Compare every file with the hash that was written when it was fetched.

    Raises:
        UserError: a file is missing or differs; the line names it.
    """
    try:
        known = json.loads(read_text(folder / RECORD, "record"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD} is broken; remove {folder} and fetch it again") from error
    for name, digest in known.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            raise UserError(f"{path} is missing or not what was fetched; remove {folder} and fetch it again")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _git(folder: Path, *words: str) -> str:
    """Output of one git command in a folder, with none of the user's own conversions of files."""
    plain = ["-c", "core.autocrlf=false", "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false"]
    done = subprocess.run(["git", "-C", str(folder), *plain, *words], capture_output=True, text=True)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-200:]
        raise UserError(f"git {words[0]} failed: {reason}")
    return done.stdout.strip()


# -------------------------------------------------------------------- drawing and scoring
def draw_subject(
    model: LatentDiffusion,
    sample: Callable[..., Tensor],
    subject: Subject,
    word: str,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    sampling: Sampling | None = None,
    with_class: bool = False,
    title: str = "",
) -> Tensor:
    """``samples`` pictures of each of a subject's prompts, (P x samples, 3, H, W), the prompts in order.

    Args:
        model, sample: a model that knows ``word``, and ``ldm.sample``.
        with_class: put the class after the word, as DreamBooth's own prompts do.
        title: of a progress bar; none if empty.
    """
    from ldm.evaluation.drawing import draw

    rows = [p.replace("{}", word) for p in subject.prompts(with_class) for _ in range(samples)]
    return draw(model, sample, rows, sampling or Sampling.of(model), seed, title)


def score_subject(
    subject: Subject,
    pictures: Tensor | Sequence[Path],
    scorers: Sequence[Scorer],
    *,
    train_pictures: int | None = None,
) -> list[Score]:
    """CLIP-I and CLIP-T, or DINO-I, of a subject by every scorer, with ceilings.

    Args:
        pictures: an equal number of each of the subject's prompts, in order; tensors or kept files.
        train_pictures: how many the word was learned from; the others are the references. ``None``: all,
            which are then the references too.
    """
    count, rest = divmod(len(pictures), len(subject.templates))
    if rest or not count:
        raise ValueError(f"{len(pictures)} pictures of {len(subject.templates)} prompts")
    texts = [text for text in subject.texts() for _ in range(count)]
    _, references, kind = subject.split(train_pictures)
    return [
        score
        for scorer in scorers
        for score in dreambench_scores(scorer, pictures, texts, references, kind=kind)
    ]


def retrieval(
    scorer: Scorer,
    pictures: Mapping[str, Tensor | Sequence[Path]],
    subjects: Sequence[Subject],
    train_pictures: int | None = None,
) -> dict[str, float]:
    """Gallery retrieval over all subjects (``GalleryRetrieval``): ``first``, ``mAP`` and their ceilings.

    Args:
        pictures: name of a subject -> its samples.
    """
    from ldm.evaluation.scorers.metrics import GalleryRetrieval

    metric = GalleryRetrieval(scorer)
    for number, subject in enumerate(subjects):
        real = picture_features(scorer, subject.split(train_pictures)[1])
        metric.update(real, [number] * len(real), real=True)
        rows = picture_features(scorer, pictures[subject.name])
        metric.update(rows, [number] * len(rows))
    return {name: float(value) for name, value in metric.compute().items()}


def over_subjects(scores: Mapping[str, Sequence[Score]]) -> list[dict[str, Any]]:
    """The mean of each figure over subjects, a row a scorer and metric.

    Args:
        scores: subject -> what :func:`score_subject` gave.

    Returns:
        Rows as ``Score.as_row`` gives them, with ``subjects``, and ``low`` and ``high``, the 95 % interval by
        bootstrap over subjects. ``n`` is the number of pictures, ``ceiling`` the mean over subjects.

    Raises:
        UserError: scores of one row were measured differently.
    """
    by_kind: dict[tuple[str, str], list[Score]] = {}
    for subject in sorted(scores):
        for score in scores[subject]:
            by_kind.setdefault((score.scorer, score.metric), []).append(score)
    rows = []
    for same in by_kind.values():
        require_same(same)
        figures = [score.figure for score in same]
        ceilings = [score.ceiling for score in same if score.ceiling is not None]
        low, high = metrics.bootstrap(figures)
        row = same[0].as_row() | {
            "figure": float(torch.tensor(figures, dtype=torch.float64).mean()),
            "ceiling": sum(ceilings) / len(ceilings) if ceilings else None,
            "n": sum(score.n for score in same),
        }
        rows.append(row | {"subjects": len(same), "low": low, "high": high})
    return rows
