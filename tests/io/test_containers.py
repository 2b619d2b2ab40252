"""Weight files that claim too much, or are something else: one line, at once, in every reader."""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ldm
from ldm.backbone.loading import find
from ldm.errors import UserError
from ldm.io import containers
from ldm.io.checkpoints import read_metadata, read_state_dict
from ldm.io.embeddings import read_file

pytestmark = pytest.mark.slow

READERS: dict[str, Callable[[Path], Any]] = {
    "embedding": read_file,
    "checkpoint": read_state_dict,
    "model": find,
    "load": ldm.load,
}


def many_keys(path: Path, names: int) -> None:
    places = ([4 * i, 4 * i + 4] for i in range(names))
    entries = {f"k{at[0]}": {"dtype": "F32", "shape": [1], "data_offsets": at} for at in places}
    header = json.dumps(entries, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * names))


def large_program(path: Path, zipped: bool) -> None:
    torch.save({"a": torch.ones(1), **{f"k{i}": i for i in range(9000)}}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip


def many_parts(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(2500):
            archive.writestr(f"x/{i}", b"")


class Buffer:
    """Pickled as a call of bytearray: torch lets that in."""

    def __reduce__(self) -> tuple:
        return bytearray, (10**11,)


def buffers(path: Path, zipped: bool) -> None:
    torch.save({"<a>": torch.ones(1, 2), "x": Buffer()}, path, _use_new_zipfile_serialization=zipped)


CLAIMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "header": (lambda p: p.write_bytes(struct.pack("<Q", 2**40) + b"{" + bytes(99)), "header has 10995"),
    "keys": (lambda p: many_keys(p, 2500), "it has 2500 tensors, and at most 2000 are read"),
    "parts": (many_parts, "it has 2500 tensors"),
    "program": (lambda p: large_program(p, True), "program has"),
    "old program": (lambda p: large_program(p, False), "program has"),
    "buffer": (lambda p: buffers(p, True), "makes buffers"),
    "old buffer": (lambda p: buffers(p, False), "makes buffers"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_file_that_claims_too_much_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str, reader: str
) -> None:
    monkeypatch.setattr(containers, "MAX_TENSORS", 2000)
    monkeypatch.setattr(containers, "MAX_TABLE", 2**20 if claim in ("keys", "parts") else 100_000)
    make, says = CLAIMS[claim]
    path, start = tmp_path / "x.ckpt", time.process_time()
    make(path)
    if claim == "old buffer" and reader in ("model", "load"):
        assert path.read_bytes()[:1] == b"\x80"
    with pytest.raises(UserError, match=says) as caught:
        READERS[reader](path)
    assert "x.ckpt" in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - start < 3


def test_the_metadata_of_a_header_that_is_too_long_is_refused(tmp_path: Path) -> None:
    CLAIMS["header"][0](tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors: its header"):
        read_metadata(tmp_path / "x.safetensors")


def test_a_directory_that_hides_in_a_zip64_record_is_found(tmp_path: Path) -> None:
    many_parts(tmp_path / "x.ckpt")
    data = bytearray((tmp_path / "x.ckpt").read_bytes())
    end = data.rfind(b"PK\5\6")
    struct.pack_into("<I", data, end + 12, 2**32 - 1)
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 2**30, 0)
    record += b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    (tmp_path / "x.ckpt").write_bytes(data[:end] + record + data[end:])
    with pytest.raises(UserError, match="directory has 1073741824 bytes"):
        read_state_dict(tmp_path / "x.ckpt")


# ------------------------------------------------------------------------------ what it is
def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "JPEG")
    return stream.getvalue()


OTHERS = {
    "empty": (b"", "is empty"),
    "page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not the file itself"),
    "page with a mark": (b"\xef\xbb\xbf\n <HTML>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer.*git lfs pull"),
    "answer": (b'{"error":"Repository not found"}', "an error message of a server"),
    "archive": (b"\x1f\x8b\x08\x00" + bytes(60), "a packed archive: unpack it"),
    "gguf": (b"GGUF" + bytes(60), "a GGUF file"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".bin", ".pt"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_download_left_is_named_as_what_it_is(
    tmp_path: Path, kind: str, suffix: str, reader: str
) -> None:
    data, says = OTHERS[kind]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        READERS[reader](path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_and_a_folder_are_named_and_nothing_waits(tmp_path: Path, reader: str) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").mkdir()
    for name, says in (("x.safetensors", "a pipe or a device"), ("y.safetensors", "folder|exist")):
        with pytest.raises(UserError, match=says) as caught:
            READERS[reader](tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_rubbish_called_a_checkpoint_is_no_config(tmp_path: Path, reader: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(UserError, match="x.safetensors") as caught:
        READERS[reader](tmp_path / "x.safetensors")
    assert "config" not in str(caught.value) and "YAML" not in str(caught.value)


# ------------------------------------------------------------------------------ misnamed
NAMES = [b"caf\xe9.safetensors", b"caf\xe9.ckpt", b"\x94L.bin", b"x.safetensors", b"x.ckpt"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", [b"plain", b"gr\xfc\xdfe"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_a_file_is_read_whatever_its_name_and_ending(
    tmp_path: Path, kind: str, folder: bytes, name: bytes
) -> None:
    plain, path = tmp_path / "plain.file", tmp_path / os.fsdecode(folder) / os.fsdecode(name)
    path.parent.mkdir()
    vectors = torch.randn(2, 4)
    if kind == "safetensors":
        save_file({"<a>": vectors}, plain)
    else:
        torch.save({"<a>": vectors}, plain, _use_new_zipfile_serialization=kind == "zip")
    plain.rename(path)
    assert torch.equal(read_state_dict(path)["<a>"], vectors)
    (word,) = read_file(path).words
    assert torch.equal(word.vectors, vectors)
    assert read_metadata(path) == {}


def test_a_word_that_is_called_as_its_file_is_has_a_name_of_letters(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    save_file({"emb_params": torch.ones(2, 4)}, tmp_path / "plain.file")
    (tmp_path / "plain.file").rename(path)
    assert read_file(path).words[0].placeholder == "café"


def test_a_pickle_of_something_else_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    for read in READERS.values():
        with pytest.raises(UserError, match="x.ckpt"):
            read(tmp_path / "x.ckpt")
