"""Lightning says nothing of its own, whoever calls it, and is left as it was."""

import logging
import warnings
from pathlib import Path

import pytest
import torch

import ldm
from ldm.backbone.model import LatentDiffusion
from ldm.training.quiet import quiet

pytestmark = pytest.mark.slow

QUICK = {
    "steps": 1, "stop": {"allow_untrained": True}, "templates": "plain", "batch_size": 1,
    "show": {"samples_per_prompt": 0},
    "accelerator": "cpu",
}  # fmt: skip


def test_an_inversion_in_python_prints_nothing(
    tiny_model: LatentDiffusion, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ldm.invert(tiny_model, pictures, "<toy>", "cat", progress=False, **QUICK)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert not [w for w in said if "lightning" in w.filename]


def test_levels_and_filters_are_put_back_and_detail_shows_all() -> None:
    log, own = logging.getLogger("pytorch_lightning"), logging.getLogger("ldm")
    level, filters, before = log.level, list(warnings.filters), own.level
    with quiet():
        assert log.level == logging.ERROR
    assert log.level == level and warnings.filters == filters
    try:
        own.setLevel(logging.INFO)  # as -v does
        with quiet():
            assert log.level == level
    finally:
        own.setLevel(before)


def test_a_failure_puts_them_back_too() -> None:
    level = logging.getLogger("pytorch_lightning").level
    with pytest.raises(ValueError), quiet():
        raise ValueError
    assert logging.getLogger("pytorch_lightning").level == level


def test_no_part_of_the_program_silences_on_its_own() -> None:
    """One place: a filter or a level that another module sets would hold for one way in alone."""
    root = Path(ldm.__file__).parent
    found = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "filterwarnings" in path.read_text() and path.name != "quiet.py"
    ]
    assert found == []
