"""CLIP's vocabulary as the files that Hugging Face tokenizers read, made from open_clip's."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vocab.json`` and ``merges.txt``."""
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {names.get(token, token): i for token, i in own.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in own.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder
