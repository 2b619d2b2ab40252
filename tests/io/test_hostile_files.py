"""Files that are broken or meant to harm: one line of error, nothing run, nothing huge, no hang."""

import base64
import io
import json
import os
import pickle
import random
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import official_files as official
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch.nn import Parameter, ParameterDict

from ldm.config import dump_yaml, load_yaml
from ldm.errors import UserError
from ldm.io.checkpoints import read_state_dict
from ldm.io.embedding_formats import FORMATS, picture
from ldm.io.embeddings import Embedding, EmbeddingFile, read_file, save_embeddings
from ldm.official import config as legacy

pytestmark = pytest.mark.slow

WORD = Embedding("<cat>", torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), {"step": "5"})
WEIGHTS = {"model.a.weight": torch.randn(3, 4), "model.b.weight": torch.randn(2).half()}


def refused(path: Path, read=read_file) -> str:
    """The one line that reading ``path`` ends in."""
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- pickled code
class Bomb:
    def __init__(self, flag: Path, how=os.mkdir) -> None:
        self.flag, self.how = flag, how

    def __reduce__(self):
        return self.how, (str(self.flag),)


def places_for(bomb: object) -> dict[str, object]:
    """Where in a file code can hide."""
    params = ParameterDict({"*": Parameter(torch.ones(1, 2))})
    params.__dict__["bomb"] = bomb
    return {
        "value": {"<a>": torch.ones(1, 2), "x": bomb},
        "key": {"<a>": torch.ones(1, 2), bomb: 1},
        "name": {"string_to_param": {"*": torch.ones(1, 2)}, "name": bomb},
        "module": {"string_to_token": {"*": torch.tensor(1)}, "string_to_param": params},
        "state_dict": {"state_dict": {"a.b": torch.ones(1), "a.c": bomb}},
        "itself": bomb,
    }


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".png", ".safetensors"])
@pytest.mark.parametrize("place", ["value", "key", "name", "module", "state_dict", "itself"])
def test_pickled_code_never_runs_whatever_the_suffix(tmp_path, place, suffix):
    flag, path = tmp_path / "ran", tmp_path / f"x{suffix}"
    for zipped in (True, False):
        for how in (os.mkdir, os.system, exec):
            content = places_for(Bomb(flag, how))[place]
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            refused(path)
            refused(path, read_state_dict)
        path.write_bytes(pickle.dumps(content, protocol=2))
        refused(path)
    assert not flag.exists()


def test_code_in_a_picture_is_only_text(tmp_path):
    flag = tmp_path / "ran"
    for text in (base64.b64encode(pickle.dumps(Bomb(flag))), f"__import__('os').mkdir('{flag}')"):
        save_png(tmp_path / "x.png", text)
        refused(tmp_path / "x.png")
    assert not flag.exists()


# ------------------------------------------------------------------------ huge claims
def save_png(path: Path, text: str | bytes, zipped: bool = False) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text(picture.CHUNK, text.decode() if isinstance(text, bytes) else text, zip=zipped)
    Image.new("L", (4, 4), 9).save(path, pnginfo=info)
    return path


def rebuilt(storage_values: int, shape: tuple, stride: tuple, path: Path) -> Path:
    """A pickled tensor that claims ``shape`` and ``stride`` of a storage of so many values."""
    tensor = torch.zeros(storage_values)

    class Claim:
        def __reduce__(self):
            storage = tensor.storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, shape, stride, False, OrderedDict())

    torch.save({"<a>": Claim()}, path)
    return path


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(("shape", "stride"), [((2**30, 4), (4, 1)), ((2**20, 2**20), (0, 0)),
                                               ((2**62, 2**62), (1, 1)), ((-1, 4), (4, 1))])  # fmt: skip
def test_a_pickled_shape_beyond_its_storage_is_refused(tmp_path, shape, stride):
    refused(rebuilt(8, shape, stride, tmp_path / "x.pt"))


def test_a_zip_that_grows_is_refused_before_it_is_read(tmp_path):
    torch.save({"<a>": torch.zeros(1, 8)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as plain:
        parts = {part.filename: plain.read(part) for part in plain.infolist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, data in parts.items():
            bomb.writestr(name, data + b"\0" * 10**7 * name.endswith("data.pkl"))
    assert (tmp_path / "x.pt").stat().st_size < 10**5
    assert "compressed archive" in refused(tmp_path / "x.pt")
    assert "compressed archive" in refused(tmp_path / "x.pt", read_state_dict)


@pytest.mark.parametrize("header", [
    b"[" * 100_000, b'{"a":' * 50_000,
    b'{"a":{"dtype":"F32","shape":[4294967296,65536],"data_offsets":[0,8]}}',
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}}',
])  # fmt: skip
@pytest.mark.parametrize("length", [None, 2**40, 2**64 - 1])
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, length):
    header = b"{" + header[1:]
    size = len(header) if length is None else length
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", size) + header + b"\0" * 8)
    refused(tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", read_state_dict)


@pytest.mark.parametrize("notes", ["[" * 100_000, '{"a":' * 50_000, "[1]", '{"a": 3}', "", "{"])
def test_notes_that_are_no_notes_are_refused(tmp_path, notes):
    save_file(
        {"a": torch.ones(1, 2)},
        tmp_path / "x.safetensors",
        {"format": "textual-inversion", "format_version": "1", "embeddings": notes},
    )
    assert "notes" in refused(tmp_path / "x.safetensors")


def params_json(vectors: object) -> bytes:
    return json.dumps({"string_to_param": {"*": {"TORCHTENSOR": vectors}}}).encode()


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"3", b"[" * 100_000, b'{"a":' * 50_000, b'{"string_to_param": 3}',
    b'{"string_to_param": {"*": {"TORCHTENSOR": ' + b"[" * 90_000, params_json([[1, 2], [3]]),
    params_json("abc"), params_json([[float("nan")]]), params_json([["a"]]), params_json([]),
    b'{"string_to_param": {"*": {"TORCHTENSOR": [[1' + b"0" * 5000 + b"]]}}}",
    b'{"string_to_param": {"*": {"TORCHTENSOR": [[1.5]]}}, "name": "\\ud800"}',
    b'{"string_to_param": {"*": {"TORCHTENSOR": [[1.5]]}}, "name": "\\u001b[2J"}',
], ids=range(16))  # fmt: skip
def test_json_in_a_picture_that_is_no_embedding_is_refused(tmp_path, text):
    refused(save_png(tmp_path / "x.png", base64.b64encode(text)))
    refused(save_png(tmp_path / "x.png", text.decode()))


def test_a_compressed_text_chunk_that_grows_is_refused(tmp_path):
    path = save_png(tmp_path / "x.png", "A" * 10**7, zipped=True)
    assert path.stat().st_size < 10**5
    refused(path)


def test_too_much_text_in_a_picture_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "MAX_JSON", 1000)
    assert "too much data" in refused(save_png(tmp_path / "x.png", base64.b64encode(b" " * 1001)))


def test_pixels_that_inflate_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "MAX_JSON", 1000)
    data = zlib.compress(b" " * 10**6, 9)
    data = np.frombuffer(data + b"\0" * (-len(data) % 48), np.uint8)
    blocks = [((data >> shift & 15) ^ picture._noise(len(data))).reshape(16, -1, 3) for shift in (0, 4)]
    black, middle = np.zeros((16, 1, 3), np.uint8), np.full((16, 2, 3), 77, np.uint8)
    pixels = np.concatenate([blocks[0] | 16, black, middle, black, blocks[1] | 16], axis=1)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert "too much data" in refused(tmp_path / "x.png")


def test_a_picture_of_a_billion_pixels_is_refused_by_its_header(tmp_path):
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    for side in (5000, 40_000):
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "x.png").write_bytes(data)
        refused(tmp_path / "x.png")


def test_a_file_as_large_as_a_model_is_refused_unread(tmp_path):
    with open(tmp_path / "x.bin", "wb") as handle:
        handle.truncate(2**30)  # sparse: takes no room
    assert "too large" in refused(tmp_path / "x.bin")


def test_a_small_pickle_that_stands_for_an_endless_value_is_read_in_no_time(tmp_path):
    nested: list = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    vectors = {"string_to_param": {"*": torch.ones(1, 2)}, "string_to_token": {"*": nested}}
    torch.save({**vectors, "name": nested, "step": 10**600}, tmp_path / "x.pt")
    (found,) = read_file(tmp_path / "x.pt").words
    assert found.placeholder == "*" and found.metadata == {}


@pytest.mark.parametrize("vectors", [
    torch.ones(2, 3).to_sparse(), torch.ones(2, 3, device="meta"), torch.ones(2, 3) * 1j,
    torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, 4),
    torch.tensor(7, device="meta"),
], ids=["sparse", "meta", "complex", "bool", "cube", "meta number"])  # fmt: skip
def test_tensors_that_are_no_dense_numbers_are_refused(tmp_path, vectors):
    torch.save({"string_to_param": {"*": vectors}}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt")
    content = {"string_to_param": {"*": torch.ones(1, 2)}, "string_to_token": {"*": vectors}}
    torch.save(content, tmp_path / "y.pt")
    assert read_file(tmp_path / "y.pt").words[0].metadata == {}


def test_notes_that_no_file_can_hold_are_read_and_written_again(tmp_path):
    content = {"string_to_param": {"*": torch.ones(1, 2)}, "name": "a", "sd_checkpoint_name": "x\ud800"}
    torch.save(content, tmp_path / "x.pt")
    (found,) = read_file(tmp_path / "x.pt").words
    save_embeddings(found, tmp_path / "y.safetensors")
    assert read_file(tmp_path / "y.safetensors").words[0].metadata["base_model_name"] == "x?"


# -------------------------------------------------------------------------- fuzzing
def small_files(folder: Path) -> dict[Path, object]:
    """A file of every format, and what reads it."""
    pair = Embedding("<cat>", WORD.vectors[:, :3], {}, WORD.vectors)
    found: dict[Path, object] = {}
    for known in FORMATS:
        if known.name != "sdxl-diffusers":
            word = pair if known.encoders == 2 else WORD
            path = save_embeddings(word, folder / f"{known.name}{known.suffix}", format=known.name)
            found[path] = read_file
    torch.save({"<a>": WORD.vectors}, folder / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, folder / "model.ckpt")
    torch.save({"state_dict": WEIGHTS}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, folder / "model.safetensors")
    found[folder / "old.bin"] = read_file
    return found | {folder / n: read_state_dict for n in ("model.ckpt", "old.ckpt", "model.safetensors")}


def damaged(data: bytes, draw: random.Random) -> bytes:
    """``data`` cut short, with bits flipped or with bytes replaced, often near its head."""
    how = draw.randrange(3)
    if how == 0:
        return data[: draw.randrange(len(data))]
    broken = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(min(len(data), draw.choice((64, 400, len(data)))))
        broken[at] = broken[at] ^ 1 << draw.randrange(8) if how == 1 else draw.randrange(256)
    return bytes(broken)


def test_a_thousand_damaged_files_are_one_line_errors_or_load(tmp_path, recwarn):
    """Any other exception fails here by itself; a file that is damaged in a value alone may load."""
    draw, start, loaded = random.Random(0), time.process_time(), 0
    files = [(path.read_bytes(), path, read) for path, read in small_files(tmp_path).items()]
    for case in range(1001):
        data, path, read = files[case % len(files)]
        path.write_bytes(damaged(data, draw))
        try:
            found = read(path)
            loaded += 1
            if isinstance(found, EmbeddingFile):  # what can be read can be written again
                save_embeddings(found.words[0], tmp_path / "again.safetensors")
        except UserError as error:
            assert "\n" not in str(error)
    assert 20 < loaded < 500
    assert time.process_time() - start < 15
    assert not recwarn.list  # a warning would be a second line on the terminal


def test_damaged_yaml_files_are_one_line_errors_or_load(tmp_path):
    draw, start, loaded, path = random.Random(0), time.process_time(), 0, tmp_path / "x.yaml"
    files = [official.ldm_inversion(), official.sd1_inversion(unfrozen=True), official.sd2_inference(v=True)]
    texts = [dump_yaml(values).encode() for values in files]
    for case in range(300):
        path.write_bytes(damaged(texts[case % len(texts)], draw))
        try:
            legacy.settings(load_yaml([path]))
            loaded += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert 10 < loaded < 200
    assert time.process_time() - start < 15


def test_a_yaml_file_as_large_as_a_model_is_refused_unread(tmp_path):
    with open(tmp_path / "x.yaml", "wb") as handle:
        handle.truncate(2**30)  # sparse: takes no room
    with pytest.raises(UserError, match="a file of settings has at most"):
        load_yaml([tmp_path / "x.yaml"])


@pytest.mark.parametrize("text", [
    "a: " + "[" * 100_000, "{a: " * 100_000, "\n".join(" " * i + "a:" for i in range(3000)),
    "- " * 100_000, "a: &a [*a]", "a: ${b}\nb: ${a}", "a: " + "9" * 10_000, "a: !!int x",
    "a: !!float x", "a: !!timestamp 5", "a: \0", "a: !!binary x$",
    "a: &a [" + "x," * 10 + "]\n" + "\n".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
], ids=range(13))  # fmt: skip
def test_yaml_that_means_harm_is_refused_in_no_time(tmp_path, text):
    start = time.process_time()
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_yaml([tmp_path / "x.yaml"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.process_time() - start < 1
