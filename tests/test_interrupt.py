"""Signals: whatever is being done is saved first, and the exit status says what happened."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from ldm import interrupt
from ldm.backbone.model import LatentDiffusion
from ldm.cli import official
from ldm.cli.main import main
from ldm.config import dump_yaml, to_plain
from ldm.io.embeddings import load_embeddings
from ldm.pretraining.autoencoder import AutoencoderTraining

pytestmark = pytest.mark.slow

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75, "SIGUSR2": 75}
STEPS, AT = 6, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, pictures with captions, a word, a list, a stage."""
    folder = tmp_path_factory.mktemp("world")
    described = tiny.config(tiny.write_vocabulary(folder / "vocab.txt"))
    model = tiny.model(described)
    tiny.write_model(folder / "tiny", model, described)
    tiny.write_pictures(folder / "pictures")
    tiny.write_word(folder / "toy.safetensors", model)
    concepts = [{"name": f"<{n}>", "images": str(folder / "pictures"), "seed": i} for i, n in enumerate("ab")]
    defaults = {"model": str(folder / "tiny"), "trainer": TRAINER}
    (folder / "list.yaml").write_text(dump_yaml({"defaults": defaults, "concepts": concepts}))
    (folder / "captioned").mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "captioned" / "0.png")
    (folder / "captioned" / "0.txt").write_text("a red toy")
    data = {"root": str(folder / "captioned"), "image_size": 16}
    stage = {
        "autoencoder": to_plain(described)["autoencoder"],
        "data": {"target": "ldm.pretraining.sources.FolderPictures", "params": data},
        "trainer": {**TRAINER, "image_every": 0},
        "logging": {"loggers": ["csv"]},
        "batch_size": 1,
    }
    (folder / "stage.yaml").write_text(dump_yaml(stage))
    return folder


TRAINER = {"max_steps": STEPS, "accelerator": "cpu", "checkpoint_every": 100, "image_every": 4}


@dataclass(frozen=True)
class Case:
    """A command, the function in which the signal comes, and how the step that it has come to is read."""

    words: Callable[[Path], list[Any]]
    within: tuple[type, str]
    learned: Callable[[Path], dict[str, torch.Tensor]]
    step: Callable[[Path], list[int]]
    batches: int = 1


def _checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)


def _words(run: Path) -> dict[str, torch.Tensor]:
    return {word.placeholder: word.vectors for word in load_embeddings(run / "embeddings.safetensors")}


def _invert(world: Path) -> list[Any]:
    options = ["--images", world / "pictures", "--name", "<toy>", "--model", world / "tiny"]
    return ["invert", *options, "--set", *(f"trainer.{key}={value}" for key, value in TRAINER.items())]


LOSS = (LatentDiffusion, "loss_terms")
CASES = {
    "invert": Case(_invert, LOSS, _words, lambda run: [_checkpoint(run)["global_step"]]),
    "accumulated": Case(
        lambda world: [*_invert(world), "trainer.accumulate=2"],
        LOSS, _words, lambda run: [_checkpoint(run)["global_step"]], batches=2,
    ),
    "list": Case(
        lambda world: ["invert", "--concepts", world / "list.yaml", "--pack", 2],
        LOSS, _words,
        lambda run: [_checkpoint(path.parent)["global_step"] for path in run.glob("*/checkpoints")],
    ),
    "stage": Case(
        lambda world: ["train", "autoencoder", "--base", world / "stage.yaml"],
        (AutoencoderTraining, "training_step"),
        lambda run: _checkpoint(run)["state_dict"],
        lambda run: [_checkpoint(run)["global_step"]],
    ),
}  # fmt: skip


def sends(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, number: int, at: int) -> list[int]:
    """A signal in the ``at``-th call of a function that works for the training, twice; returns the count."""
    original, calls = getattr(owner, name), [0]

    def sending(self: Any, *args: Any, **options: Any) -> Any:
        calls[0] += torch.is_grad_enabled()  # not those that only measure
        if calls[0] == at and torch.is_grad_enabled():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as `timeout` sends it: to the process, and to its group
        return original(self, *args, **options)

    monkeypatch.setattr(owner, name, sending)
    return calls


@pytest.fixture(scope="module")
def expected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a command learns that nothing disturbs."""
    made: dict[str, Any] = {}

    def learned(name: str) -> Any:
        if name not in made:
            out = tmp_path_factory.mktemp(name) / "run"
            assert main([str(w) for w in [*CASES[name].words(world), "--out", out]]) == 0
            made[name] = CASES[name].learned(out)
        return made[name]

    return learned


@pytest.mark.parametrize(
    ("name", "which"),
    [*(("invert", which) for which in STATUS), ("accumulated", "SIGTERM"), ("list", "SIGINT"),
     ("stage", "SIGUSR1")],
)  # fmt: skip
def test_a_signal_saves_at_once_says_how_to_go_on_and_loses_nothing(
    name: str, which: str, world: Path, expected: Callable[[str], Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    case, out = CASES[name], tmp_path / "run"
    words = [str(word) for word in [*case.words(world), "--out", out]]
    whole = expected(name)
    with monkeypatch.context() as patch:
        sends(patch, *case.within, getattr(signal, which), at=case.batches * (AT - 1) + 1)
        capfd.readouterr()
        assert main(words) == STATUS[which]
    said = capfd.readouterr().err
    assert f"interrupted by {which}: continue with: ldm" in said and "Traceback" not in said
    assert set(case.step(out)) == {AT}  # the step that it came in is finished
    assert not list(out.rglob("hpc_ckpt*"))
    with monkeypatch.context() as patch:
        calls = sends(patch, *case.within, 0, at=-1)
        again = said.partition("continue with: ldm ")[2].splitlines()[0].split()
        assert main(again) == 0
    assert calls[0] == case.batches * (STEPS - AT)
    learned = case.learned(out)
    assert learned.keys() == whole.keys()
    for key in whole:
        assert torch.equal(learned[key], whole[key]), key


def test_main_py_obeys_signals_alike(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(dump_yaml({"model": str(world / "tiny"), "trainer": TRAINER}))
    sends(monkeypatch, *LOSS, signal.SIGTERM, at=AT)
    words = ["--base", "own.yaml", "-t", "--data_root", world / "pictures", "--placeholder_string", "<x>"]
    assert official.main([str(word) for word in words]) == 143
    assert "continue with: python main.py -t -r" in capfd.readouterr().err


def test_pictures_on_the_way_are_not_waited_for(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def decode(self: LatentDiffusion, z: torch.Tensor) -> torch.Tensor:
        decoded.append(len(z))
        if len(decoded) == 2:  # the first are those of step 0
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.zeros(len(z), 3, 16, 16)

    monkeypatch.setattr(LatentDiffusion, "decode", decode)
    for number, words in enumerate((_invert(world), CASES["list"].words(world))):
        decoded.clear()
        out = tmp_path / str(number)
        assert main([str(word) for word in [*words, "--out", out]]) == 143
        assert len(decoded) == 2 and not list(out.rglob("samples_000004.png"))
        newest = [p for p in out.rglob("*") if p.name == "last.ckpt"]
        assert newest and all(torch.load(p, weights_only=False).get("global_step", 4) == 4 for p in newest)


def test_sampling_keeps_the_pictures_that_are_drawn(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "--model", world / "tiny", "--prompt", "a cat", "--n", 3, "--batch-size", 1]
    words = [str(word) for word in [*words, "--out", tmp_path / "out"]]
    decode, calls = LatentDiffusion.decode, []

    def sending(self: LatentDiffusion, z: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return decode(self, z)

    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusion, "decode", sending)
        assert main(words) == 143
    assert "goes on" in capfd.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert main(words) == 0 and "1 were there" in capfd.readouterr().out


def test_training_from_python_raises_a_keyboard_interrupt_and_leaves_the_handlers(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ldm

    before = signal.getsignal(signal.SIGTERM)
    model = ldm.load(world / "tiny")
    sends(monkeypatch, *LOSS, signal.SIGTERM, at=AT)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        ldm.invert(model, world / "pictures", "<x>", steps=STEPS, progress=False)
    assert signal.getsignal(signal.SIGTERM) is before and interrupt.noted() is None


def test_only_an_impatient_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ldm.interrupt.time.monotonic", lambda: now[0])
    with pytest.raises(interrupt.Interrupted) as raised, interrupt.saved_first():
        for number, seconds in ((signal.SIGINT, 0.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 5.0)):
            now[0] = seconds
            os.kill(os.getpid(), number)
        assert interrupt.noted() == signal.SIGINT
        now[0] = 2.0
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")
    assert raised.value.impatient and raised.value.status == 130


def test_a_signal_that_got_lost_is_found_at_the_next_check() -> None:
    class Dropped:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with interrupt.listening():
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            Dropped()
        finally:
            sys.unraisablehook = hook
        with pytest.raises(interrupt.Interrupted, match="SIGTERM"):
            interrupt.check()


def test_what_is_ignored_or_handled_by_others_stays_so() -> None:
    def mine(*_: Any) -> None: ...

    before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGUSR1)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        signal.signal(signal.SIGUSR1, mine)
        with interrupt.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_closed_terminal_ends_no_save() -> None:
    """SIGHUP, and the next line of a progress bar would be an error."""
    script = (
        "import os, signal, sys, time\n"
        "from ldm import interrupt\n"
        "with interrupt.listening():\n"
        "    with interrupt.saved_first():\n"
        "        print('ready', flush=True)\n"
        "        while interrupt.noted() is None: time.sleep(.01)\n"
        "        print('a bar', flush=True), print('a bar', file=sys.stderr, flush=True)\n"
        "        open(sys.argv[1], 'w').write('saved')\n"
    )
    import pty
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "saved")
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", script, str(saved)])
        assert b"ready" in os.read(terminal, 100)
        os.close(terminal)  # the system sends SIGHUP
        os.waitpid(pid, 0)
        assert saved.read_text() == "saved"


def test_the_table_of_statuses_is_the_documented_one() -> None:
    assert {name: interrupt.Interrupted(getattr(signal, name)).status for name in STATUS} == STATUS
    docs = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    for name, status in STATUS.items():
        assert name in docs and str(status) in docs
