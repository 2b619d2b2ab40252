"""What several test files share: random weights that mean something, and a tiny whole model."""

import json
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import tiny
from torch import nn

from ldm.backbone.model import LatentDiffusion, ModelConfig


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """``randomise(module, seed=0)``: see ``tiny.randomised``."""
    return tiny.randomised


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece vocabulary of 60-odd tokens; any other lower-case word is spelled by letters."""
    return tiny.write_vocabulary(tmp_path_factory.mktemp("vocab") / "vocab.txt")


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open_clip's vocabulary as Hugging Face tokenizers read it: ``vocab.json`` and ``merges.txt``."""
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {names.get(token, token): i for token, i in own.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in own.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_vocab: Path) -> ModelConfig:
    """A whole model in miniature: pictures 16 x 16, latents (4, 4, 4), contexts (B, 12, 32)."""
    return tiny.config(tiny_vocab)


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> LatentDiffusion:
    """A fresh, frozen model of ``tiny_config`` with the same random weights each time (20 ms)."""
    return tiny.model(tiny_config)


@pytest.fixture(autouse=True)
def no_wandb_run_is_left_open() -> Iterator[None]:
    """A run that a test leaves open would be the next one's, whatever that sets up for itself."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed of names that are no UTF-8 could not be sent between processes: escape it."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections
    ]
    return report
