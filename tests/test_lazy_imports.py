"""Loggers, scorers and clusters cost no one time or memory who does not use them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
