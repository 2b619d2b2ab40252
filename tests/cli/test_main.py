"""The command tree: help, version, exit status, and what is imported before the work begins."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ldm
from ldm import __version__
from ldm.cli import common
from ldm.cli.main import build_parser, guarded, main
from ldm.config import merge, nested
from ldm.errors import UserError
from ldm.io.atomic import HOST
from ldm.io.runs import slug

COMMANDS = [
    ["invert"], ["sample"], ["edit"], ["evaluate"], ["inspect"], ["embeddings"],
    ["embeddings", "show"], ["embeddings", "convert"], ["embeddings", "merge"], ["train"], ["train", "data"],
    ["train", "autoencoder"], ["train", "latents"], ["train", "diffusion"], ["train", "clip"],
    ["train", "export"],
]  # fmt: skip


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_every_help_ends_with_an_example(cli, words):
    result = cli(*words, "--help")
    assert result.code == 0
    assert f"ldm {' '.join(words)}" in result.out.rpartition("example:")[2]


@pytest.mark.parametrize("code", [
    "import ldm",
    "from ldm.cli.main import main; main(['--help'])",
    "from ldm.cli.main import main; main(['train', 'diffusion', '--help'])",
])  # fmt: skip
def test_nothing_heavy_is_imported_before_the_work_begins(code):
    heavy = ["torch", "numpy", "pytorch_lightning", "open_clip", "wandb", "matplotlib", "PIL"]
    script = f"""
import sys
try:
    {code}
except SystemExit:
    pass
found = [name for name in {heavy} if name in sys.modules]
sys.exit(f"imported: {{found}}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_python_m_ldm_is_the_command(tmp_path: Path) -> None:
    for words, status in ((["--version"], 0), (["inspect", "none.safetensors"], 2)):
        command = [sys.executable, "-m", "ldm", *words]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(ldm.__file__).parents[1])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert (done.stdout or done.stderr).startswith("ldm")


def test_the_version_is_the_packages_own(cli):
    assert cli("--version").out == f"ldm {__version__}\n"


@pytest.mark.parametrize("command", ["invert", "cluster", "evaluate"])
@pytest.mark.parametrize("words", [
    ["--set", "a=1", "b.c=2", "d=[3,4]"],
    ["--set", "a=1", "--set", "b.c=2", "--set=d=[3,4]"],
    ["--set", "a=1", "b.c=2", "--verbose", "--set", "d=[3,4]"],
], ids=["one --set", "one each", "mixed"])  # fmt: skip
def test_settings_are_given_by_one_option_or_by_one_each(command, words):
    for _ in range(2):  # the second parser starts from none again
        assert build_parser().parse_args([command, *words]).set == ["a=1", "b.c=2", "d=[3,4]"]


def test_a_setting_without_a_value_is_named(cli):
    result = cli("invert", "--set", "num_vectors=2", "seed")
    assert result.code == 2 and "'seed' is not KEY=VALUE" in result.err.splitlines()[-1]


@pytest.mark.parametrize("words", [[], ["learn"], ["sample", "--promt", "a"], ["inspect", "f", "a=b"]])
def test_an_unknown_command_or_option_exits_with_2(cli, words):
    result = cli(*words)
    assert result.code == 2 and "ldm" in result.err.splitlines()[-1]


def _args(**values: object) -> argparse.Namespace:
    return argparse.Namespace(verbose=False, **values)


def _raiser(error: BaseException):
    def run(_: argparse.Namespace) -> None:
        raise error

    return run


def test_a_user_error_is_one_line_and_status_2(capsys):
    assert guarded(_raiser(UserError("first\nsecond")), _args()) == 2
    assert capsys.readouterr().err == "ldm: error: first second\n"


def test_verbose_adds_the_traceback(capsys):
    args = argparse.Namespace(verbose=True)
    assert guarded(_raiser(UserError("wrong")), args) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_exits_with_130_and_says_how_to_go_on(capsys):
    def run(_: argparse.Namespace) -> None:
        common.resume_by(lambda: "continue with: ldm invert --resume --out runs/x")
        raise KeyboardInterrupt

    assert guarded(run, _args()) == 130
    assert "ldm invert --resume --out runs/x" in capsys.readouterr().err
    assert guarded(_raiser(KeyboardInterrupt()), _args()) == 130  # a later command has begun nothing yet
    assert "nothing was begun" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["build_parser", "_log_to_stderr", "expand"])
def test_an_interruption_before_the_work_is_one_line_too(capsys, monkeypatch, moment: str) -> None:
    def interrupted(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(f"ldm.cli.main.{moment}", interrupted)
    assert main(["presets"]) == 130
    err = capsys.readouterr().err
    assert "interrupted by SIGINT: nothing was begun" in err and "Traceback" not in err


def test_what_killed_processes_left_in_subfolders_goes_too(tmp_path: Path) -> None:
    """An experiment's pictures and cells lie two folders deep: what is half there must not stay for ever."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / "pictures" / "cell" / f".00.{HOST}-{process.pid:x}-0123abcd.tmp.png"
    left.parent.mkdir(parents=True)
    left.touch()
    with common.output(tmp_path, tmp_path):
        assert not left.exists()
    commands = Path(common.__file__).parent.glob("*.py")
    shallow = [path.name for path in commands if "deep=False" in path.read_text("utf-8")]
    assert shallow == ["drawing.py"]  # its pictures lie in the folder itself


def test_what_a_library_made_of_a_signal_is_an_interruption(capsys):
    def run(_: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("half imported") from None

    assert guarded(run, _args()) == 143
    assert "interrupted by SIGTERM" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(_raiser(ZeroDivisionError()), _args())


def test_every_option_of_a_subcommand_has_one_meaning():
    parser = build_parser()
    args = parser.parse_args(["-v", "sample", "--prompt", "a", "--embedding", "x", "y", "--embedding", "z"])
    assert args.verbose and [os.fspath(p) for p in args.embedding] == ["x", "y", "z"]
    assert parser.parse_args(["sample", "--prompt", "a", "-v"]).verbose
    assert not parser.parse_args(["sample", "--prompt", "a"]).verbose


def test_settings_merge_level_by_level():
    base = {"seed": 1, "trainer": {"max_steps": 5, "devices": 1}}
    given = nested({"trainer.max_steps": 9, "optim.lr": 0.1, "seed": None})
    assert merge(base, given) == {
        "seed": 1,
        "trainer": {"max_steps": 9, "devices": 1},
        "optim": {"lr": 0.1},
    }
    assert base["trainer"] == {"max_steps": 5, "devices": 1}
    assert merge(base, {"trainer": None, "seed": None}) == {**base, "seed": None}  # an empty section


def test_names_of_files_are_plain():
    assert slug("a photo of <cat-toy>, please/now") == "a-photo-of-cat-toy-please-now"
    assert slug("***") == "word"
