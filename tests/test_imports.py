"""The arrows between rooms point one way, and what should start at once does.

Every import statement of ``ldm/`` is read, also those inside functions: laziness is about time, not
about who may know whom.
"""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room -> rooms that it may import; top-level modules are rooms of their own
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "interrupt": set(),
    "names": set(),
    "paths": set(),
    "seeding": set(),
    "device": {"errors"},
    "ranges": {"errors"},
    "yaml_text": {"errors"},
    "config": {"errors", "paths", "ranges", "yaml_text"},
    "shorthand": {"errors", "config"},
    "models": set(),
    "diffusion": {"errors", "seeding"},
    "io": {"errors", "names", "paths", "seeding"},
    "report": {"errors", "io", "paths", "yaml_text"},
    "text": {"errors", "io", "device", "names", "paths", "ranges"},
    "official": {"errors", "config", "shorthand"},
    "words": {"errors", "config", "device", "io", "names", "official", "ranges", "text"},
}
ALLOWED["backbone"] = set(ALLOWED) - {"report"}
ALLOWED["sampling"] = {*ALLOWED["backbone"], "backbone"}
ALLOWED["evaluation"] = {*ALLOWED["sampling"], "sampling", "report"}
ALLOWED["training"] = {*ALLOWED["sampling"], "sampling"}
ALLOWED["inversion"] = {*ALLOWED["training"], "training", "report", "evaluation"}
ALLOWED["pretraining"] = {*ALLOWED["inversion"], "inversion"}
ALLOWED["api"] = {*ALLOWED["inversion"], "inversion", "evaluation"}
ALLOWED["emoji"] = {*ALLOWED["pretraining"], "pretraining", "evaluation", "api"}
ALLOWED["experiments"] = {*ALLOWED["emoji"], "emoji"}
ALLOWED["cli"] = {*ALLOWED, "ldm"}
ALLOWED["ldm"] = set(ALLOWED) - {"cli"}  # ldm/__init__.py, the public names
ALLOWED["__main__"] = {"cli"}  # python -m ldm

LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
LIGHTNING_ROOMS = {"training", "inversion", "pretraining", "emoji"}
# what few need: imported inside the function that uses it
LAZY = {
    "wandb",
    "tensorboard",
    "mlflow",
    "trackio",
    "open_clip",
    "timm",
    "diffusers",
    "ray",
    "resvg_py",
    "pillow_heif",
    "pyarrow",
}
# Lightning imports the last four itself
SLOW = {*LAZY, "huggingface_hub", "torchvision", "matplotlib", "transformers"}
AT_ONCE = {"ldm/__init__.py", "ldm/errors.py", "ldm/_version.py", "ldm/config.py"}
HEAVY = {*SLOW, *LIGHTNING, "torch", "numpy", "PIL"}


def imports(source: str, package: str, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a source file of ``package`` imports, ``from a import b`` as ``a.b``."""
    tree = ast.parse(source)
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: 1 - node.level or None] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    """``ldm/io/runs.py`` is in io, ``ldm/backbone/model.py`` in model, ``ldm/__init__.py`` in ldm."""
    parts = path.with_suffix("").parts
    return "ldm" if parts[1] == "__init__" else parts[1]


def wrong_arrows(path: Path, source: str) -> list[str]:
    """Imports of one file (its path from the root) that its room may not have."""
    room, package = room_of(path), ".".join(path.parts[:-1])
    wrong = []
    for name in imports(source, package):
        first, _, rest = name.partition(".")
        if first == "ldm":
            other = rest.partition(".")[0]
            other = other if other in ALLOWED else "ldm"  # a name of ldm/__init__.py
            if other != room and other not in ALLOWED.get(room, set()):
                wrong.append(f"{path} ({room}) imports {name} ({other})")
        if first in LIGHTNING and room not in LIGHTNING_ROOMS:
            wrong.append(f"{path} imports {name}: what is drawn, judged or frozen knows no Lightning")
        if room == "models" and first not in {"ldm", "torch", "einops", *sys.stdlib_module_names}:
            wrong.append(f"{path} imports {name}: models are pure torch")
    slow = AT_ONCE | ({path.as_posix()} if room == "cli" else set())
    for name in imports(source, package, top_only=True):
        first = name.partition(".")[0]
        if first in (HEAVY if path.as_posix() in slow else SLOW):
            wrong.append(f"{path} imports {name} at its top: import it where it is used")
    return wrong


def files() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / "ldm").rglob("*.py"))


def test_every_room_is_on_the_map() -> None:
    assert {room_of(path) for path in files()} <= set(ALLOWED)
    assert {"models", "text", "inversion", "diffusion", "training", "cli"} <= {
        room_of(path) for path in files()
    }


def test_no_import_points_back() -> None:
    wrong = [w for path in files() for w in wrong_arrows(path, (ROOT / path).read_text())]
    assert not wrong, "\n".join(wrong)


def test_the_map_itself_has_no_cycle() -> None:
    above = {room: allowed - {room} for room, allowed in ALLOWED.items()}
    placed: set[str] = set()
    while above:
        ready = [room for room, allowed in above.items() if allowed <= placed]
        assert ready, f"a cycle among {sorted(above)}"
        placed.update(ready)
        for room in ready:
            del above[room]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ldm/models/unet.py", "from ldm.diffusion.schedule import Schedule"),
        ("ldm/models/unet.py", "import pytorch_lightning as pl"),
        ("ldm/models/unet.py", "import numpy as np"),
        ("ldm/io/runs.py", "from ldm.backbone.model import LatentDiffusion"),
        ("ldm/io/runs.py", "from ldm import model"),
        ("ldm/io/runs.py", "from .. import model"),
        ("ldm/io/runs.py", "from ..model import LatentDiffusion"),
        ("ldm/io/runs.py", "from ldm import load"),
        ("ldm/config.py", "import ldm.io.runs"),
        ("ldm/diffusion/samplers/ddim.py", "from ldm.models.unet import UNetModel"),
        ("ldm/diffusion/samplers/ddim.py", "from ...models import unet"),
        ("ldm/text/bert.py", "def f():\n    from ldm.words.manager import EmbeddingManager"),
        ("ldm/words/manager.py", "from ldm.backbone.model import LatentDiffusion"),
        ("ldm/report/html.py", "from ldm.inversion.run import InversionConfig"),
        ("ldm/report/html.py", "from pytorch_lightning import Trainer"),
        ("ldm/inversion/run.py", "from ldm.cli import common"),
        ("ldm/training/fit.py", "import wandb"),
        ("ldm/cli/train.py", "import torch"),
        ("ldm/__init__.py", "from ldm.cli.main import main"),
    ],
)
def test_an_arrow_that_points_back_is_caught(path: str, source: str) -> None:
    assert wrong_arrows(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ldm/models/unet.py", "import math\nimport torch\nfrom ldm.models.layers import GEGLU"),
        ("ldm/models/unet.py", "from .layers import GEGLU"),
        ("ldm/diffusion/samplers/ddim.py", "from ..schedule import Schedule"),
        ("ldm/training/fit.py", "def f():\n    import wandb"),
        ("ldm/inversion/run.py", "from ldm.report import html"),
        ("ldm/cli/train.py", "def run():\n    import torch\n    from ldm.training import pretrain"),
        ("ldm/__init__.py", "from ldm.errors import UserError"),
    ],
)
def test_arrows_that_point_down_are_let_through(path: str, source: str) -> None:
    assert wrong_arrows(Path(path), source) == []


# ------------------------------------------------------------------ a command line is read
def written_into_args(source: str) -> list[str]:
    """What a file of the command line writes into the parsed options, as if they were a letter box."""
    found = []
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            targets = [ast.Attribute(node.args[0], "...")]
        for target in targets:
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "args":
                    found.append(ast.unparse(one))
    return found


@pytest.mark.parametrize(
    "source", ["args.n = 1", "args.a, args.n = 1, 2", "setattr(args, 'n', 1)", "args.n += 1"]
)
def test_an_option_that_is_written_is_caught(source: str) -> None:
    assert written_into_args(source)
    assert not written_into_args("n = args.n\nother.n = 1")


def test_parsed_options_are_only_read() -> None:
    """Values go by name; how an interrupted command goes on is said by ``ldm.cli.common.resume_by``."""
    parsing = {"main.py", "official.py"}  # there the options come to be
    wrong = [
        f"{path} writes {name}"
        for path in files()
        if room_of(path) == "cli" and path.name not in parsing
        for name in written_into_args((ROOT / path).read_text())
    ]
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------ starting at once
def quickest(*command: str) -> tuple[float, str]:
    """Seconds of the quickest of up to three runs (others share this machine), and its output."""
    best, out = float("inf"), ""
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
        )
        best, out = min(best, time.monotonic() - start), done.stdout
        if best < 1.0:
            break
    return best, out


def test_import_ldm_loads_nothing_heavy_and_takes_less_than_a_second() -> None:
    code = "import sys, ldm; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    seconds, out = quickest("-c", code)
    assert not HEAVY & set(out.split())
    assert seconds < 1.0


def test_ldm_help_takes_less_than_a_second() -> None:
    seconds, out = quickest("-m", "ldm.cli.main", "--help")
    assert "invert" in out and "sample" in out
    assert seconds < 1.0


def test_public_names_are_importable() -> None:
    import ldm

    assert all(getattr(ldm, name) is not None for name in ldm.__all__)
    assert set(ldm.__all__) <= set(dir(ldm))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ldm.no_such_name


@pytest.mark.slow
def test_what_few_need_is_imported_where_it_is_used() -> None:
    code = """
import importlib, pkgutil, sys, ldm
for module in pkgutil.walk_packages(ldm.__path__, "ldm."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not LAZY & set(done.stdout.split())
