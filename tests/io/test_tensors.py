"""Equal content gives equal bytes."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import ldm
from ldm.io.checkpoints import save_checkpoint
from ldm.io.claims import claimed
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.io.tensors import save_tensors

NOTES = {f'key {i} é\u0001"\\': f"value {i} \u2028" for i in range(20)}


def plain(path: Path) -> None:
    save_tensors({"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.float16)}, path, NOTES)


def word(path: Path) -> None:
    save_embeddings([Embedding(name, torch.ones(1, 8), NOTES) for name in ("<b>", "<a>")], path)


def model(path: Path) -> None:
    part = torch.nn.Linear(2, 2).requires_grad_(False)
    save_checkpoint({"model.diffusion_model.": part}, path, None, NOTES)


def test_a_killed_write_leaves_nothing_that_the_next_claim_does_not_find(tmp_path: Path) -> None:
    """safetensors makes a temporary file with a name of its own: killed there, it must not stay for ever."""
    left = """
import os, signal, sys
from pathlib import Path
import safetensors.torch, torch
import ldm.io.tensors
from ldm.io.embeddings import Embedding, save_embeddings

def killed(tensors, path, metadata=None):
    (Path(path).parent / ".tmpQWERTY").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

ldm.io.tensors.save_file = killed
save_embeddings(Embedding("<x>", torch.ones(1, 8)), Path(sys.argv[1]) / "word.safetensors")
"""
    folder = tmp_path / "words"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", left, folder], check=False)
    assert done.returncode == -signal.SIGKILL and any(folder.rglob(".tmp*"))
    with claimed(folder):
        assert not [path for path in folder.rglob("*") if path.name.startswith(".tmp")]


def test_only_one_place_writes_tensors_by_the_library() -> None:
    root = Path(ldm.__file__).parent
    writer = re.compile(r"\b(save|serialize)_file\b")
    using = [path for path in root.rglob("*.py") if writer.search(path.read_text("utf-8"))]
    assert [path.relative_to(root).as_posix() for path in using] == ["io/tensors.py"]


@pytest.mark.parametrize("write", [plain, word, model])
def test_files_of_the_same_content_have_the_same_bytes(tmp_path, write):
    contents = set()
    for number in range(8):
        torch.manual_seed(0)
        write(tmp_path / f"{number}.safetensors")
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1
    (content,) = contents
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_what_is_sorted_reads_back(tmp_path):
    plain(tmp_path / "a.safetensors")
    with safe_open(str(tmp_path / "a.safetensors"), framework="pt") as handle:
        assert handle.metadata() == NOTES
        assert handle.get_tensor("b").tolist() == [1, 1, 1]
