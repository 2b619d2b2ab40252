"""The precision "auto": bfloat16 where the device computes in it, float32 elsewhere."""

from __future__ import annotations

import logging

import pytest
import torch

from ldm import device
from ldm.device import cpu_has_bfloat16, device_of, working_precision
from ldm.errors import UserError
from ldm.training.fit import TrainerConfig


def with_cpu(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": False, "avx512_bf16": False, "avx2": True}, "32-true"),
        ({"neon": True}, "32-true"),
    ],
)
def test_auto_is_what_the_cpu_can(
    capabilities: dict[str, bool], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cpu(monkeypatch, **capabilities)
    assert cpu_has_bfloat16() is (chosen == "bf16-mixed")
    for accelerator in ("auto", "cpu"):
        assert TrainerConfig(precision="auto", accelerator=accelerator).compute_precision == chosen


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert working_precision("auto", "cpu") == "32-true"


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_what_the_gpu_can_whatever_the_cpu(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpu(monkeypatch, amx_bf16=not native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert working_precision("auto", "gpu") == ("bf16-mixed" if native else "32-true")
    assert working_precision("auto", "cpu") == ("32-true" if native else "bf16-mixed")


def test_what_is_asked_for_by_name_stays_and_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_cpu(monkeypatch, avx2=True)
    device._warn_of_emulation.cache_clear()
    with caplog.at_level(logging.WARNING, "ldm.device"):
        assert [working_precision("bf16-mixed", "cpu") for _ in range(3)] == ["bf16-mixed"] * 3
        assert working_precision("32-true", "cpu") == "32-true"
        assert working_precision("16-mixed", "mps") == "16-mixed"
    assert len(caplog.records) == 1 and "precision=auto" in caplog.text
    device._warn_of_emulation.cache_clear()


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == "cpu"
    with pytest.raises(UserError, match="no gpu"):
        device_of("gpu")
