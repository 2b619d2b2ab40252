"""Nothing is half-written, whatever fails; a run's folder and its manifest."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.io import atomic, runs
from ldm.io.atomic import atomic_write, file_sha256, write_bytes, write_json, write_text
from ldm.io.runs import create_run

WRITERS = {
    "text": lambda path: path.write_text("x" * 9999),
    "torch": lambda path: torch.save({"a": torch.zeros(9999)}, path),
    "safetensors": lambda path: save_file({"a": torch.zeros(9999)}, str(path)),
    "picture": lambda path: Image.effect_noise((99, 99), 90).save(path),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "x.png").write_text("old")
    return tmp_path / "x.png"


def only_old(out: Path) -> bool:
    return [p.name for p in out.parent.iterdir()] == ["x.png"] and out.read_text() == "old"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_replaces_the_old_file_whole_and_makes_parents(out, tmp_path, writer):
    (tmp_path / "plain").touch()
    for path in (out, tmp_path / "new" / "deep" / "x.png"):
        with atomic_write(path) as temporary:
            WRITERS[writer](temporary)
            assert temporary.parent == path.parent and temporary.suffix == path.suffix
            assert path != out or path.read_text() == "old"
        assert path.stat().st_mode == out.parent.joinpath("plain").stat().st_mode
        assert path.stat().st_size > 5000 and len(list(path.parent.glob(".*"))) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the full device")
@pytest.mark.parametrize("writer", ["text", "torch", "picture"])  # safetensors leaves the link
def test_a_full_disk_is_a_user_error_and_leaves_only_the_old_file(out, monkeypatch, writer):
    def on_full_disk(path: Path) -> Path:
        link = path.with_name(".tmp" + path.suffix)
        link.symlink_to("/dev/full")
        return link

    monkeypatch.setattr(atomic, "_temporary", on_full_disk)
    with pytest.raises(UserError, match=f"cannot write {out}: .*free some space") as caught:
        with atomic_write(out) as temporary:
            WRITERS[writer](temporary)
    assert only_old(out) and "\n" not in str(caught.value)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_cut_off_in_the_middle_leaves_only_the_old_file(out, writer):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {out}"):
            with atomic_write(out) as temporary:
                WRITERS[writer](temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert only_old(out)


def test_a_disk_that_fills_at_the_flush_leaves_only_the_old_file(out, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_text(out, "new")
    assert only_old(out)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("mine"), UserError("mine")])
def test_any_other_failure_passes_and_leaves_only_the_old_file(out, error):
    with pytest.raises(error if isinstance(error, type) else type(error)):
        with atomic_write(out) as temporary:
            temporary.write_text("half")
            raise error
    assert only_old(out)


def test_another_files_error_inside_the_body_is_not_called_a_failed_write(out):
    with pytest.raises(PermissionError):
        with atomic_write(out):
            raise PermissionError(errno.EACCES, "no", "/some/other/file")
    assert only_old(out)


@pytest.mark.parametrize("target", ["file/x.json", "folder", "a" * 300])
def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path, target):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / target, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_without_overwriting_a_file_that_came_meanwhile_stays(tmp_path):
    with pytest.raises(UserError, match="exists"), atomic_write(tmp_path / "a", overwrite=False) as temporary:
        temporary.write_text("mine")
        (tmp_path / "a").write_text("another's")
    with atomic_write(tmp_path / "b", overwrite=False) as temporary:
        temporary.write_text("mine")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "another's", "b": "mine"}


# ------------------------------------------------------------------------------ folders
def test_a_new_or_empty_folder_is_taken_and_stays_empty(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a/deep", "b"):
        assert list(create_run(tmp_path / name).path.iterdir()) == []


def test_a_folder_in_use_is_refused_unless_resumed(tmp_path):
    run = create_run(tmp_path / "run")
    run.write_manifest(seed=1, image_hashes={}, base_model="f" * 64)
    with pytest.raises(UserError, match="not empty"):
        create_run(tmp_path / "run")
    assert create_run(tmp_path / "run", resume=True) == run


@pytest.mark.parametrize("left", [[], [".ldm-lock"], ["config.yaml"], ["config.yaml", "manifest.json"]])
def test_resuming_goes_on_from_whatever_a_killed_run_left(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("{}")
    assert create_run(tmp_path, resume=True).path == tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == left


def test_resuming_in_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(UserError, match="no run"):
        create_run(tmp_path, resume=True)


def test_a_file_in_the_way_and_a_full_disk_are_said_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for target in ("file", "file/run"):
        with pytest.raises(UserError, match="is a file|a file, not a folder"):
            create_run(tmp_path / target)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        create_run(tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


def test_the_manifest_holds_provenance_and_survives_a_resume(tmp_path):
    run = create_run(tmp_path / "run")
    run.write_manifest(
        seed=7,
        image_hashes={"a.png": "00"},
        base_model="ff",
        command=["/some/where/ldm", "invert", "--name", "<cat toy>"],
        extra={"steps": 5},
    )
    first = run.read_manifest()
    assert first["seed"] == 7 and first["base_model"] == "ff" and first["steps"] == 5
    assert first["image_hashes"] == {"a.png": "00"}
    assert first["commands"] == ["ldm invert --name '<cat toy>'"]
    assert {"python", "torch", "pytorch-lightning", "ldm"} <= first["versions"].keys()
    run.update_manifest(finished=runs.now())
    run.write_manifest(seed=7, image_hashes={"a.png": "00"}, base_model="ff", command=["ldm"])
    second = run.read_manifest()
    assert second["started"] == first["started"] and len(second["commands"]) == 2
    assert "finished" not in second and second["steps"] == 5


@pytest.mark.parametrize("content", ["", "[1]", "{half"])
def test_a_broken_manifest_is_a_user_error(tmp_path, content):
    run = create_run(tmp_path)
    run.manifest_path.write_text(content)
    with pytest.raises(UserError, match="manifest"):
        run.read_manifest()


def test_files_of_a_run_get_their_folder(tmp_path):
    target = create_run(tmp_path).file("images", "0100", "a.png")
    assert target == tmp_path / "images" / "0100" / "a.png" and target.parent.is_dir()


def test_the_image_hash_is_that_of_the_bytes(tmp_path):
    path = write_bytes(tmp_path / "a", b"abc")
    assert file_sha256(path).startswith("ba7816bf8f01cfea")
    with pytest.raises(UserError, match="nowhere"):
        file_sha256(tmp_path / "nowhere")


def test_json_is_written_readable(tmp_path):
    assert json.loads(write_json(tmp_path / "a.json", {"é": [1]}).read_text("utf-8")) == {"é": [1]}


def test_the_room_of_files_does_not_need_torch():
    import subprocess
    import sys

    code = "import sys, ldm.io.runs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
