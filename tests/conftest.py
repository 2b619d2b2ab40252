"""What several test files share: random weights that mean something, and a tiny whole model."""

import gc
import json
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from ldm.backbone.model import LatentDiffusion, ModelConfig

ROOT = Path(__file__).parent
#: the files that take more than half a minute of a core, the longest first
LONGEST = (
    "test_notebooks.py",
    "inversion/many/test_ray.py",
    "experiments/test_run.py",
    "torture/test_kills.py",
    "test_wheel.py",
)
#: A CLIP in miniature, as open_clip writes it down.
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


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


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open_clip knows ``tiny-ours`` from then on; the file of its random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny-ours.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-ours.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-ours")
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.fixture(scope="session")
def tiny_timm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of random weights for timm's ``test_vit``."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    return file


@pytest.fixture(scope="session")
def tiny_scorers(tiny_clip: Path, tiny_timm: Path) -> tuple[str, str]:
    """Names of two scorers of random weights, a CLIP and a DINO."""
    return f"clip:tiny-ours/{tiny_clip}", f"dino:test_vit/{tiny_timm}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them when the others have finished."""
    rank = {ROOT / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """All libraries are loaded and will stay: the garbage collector need not go through them each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what is never collected is reported as a leak by some libraries


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed of names that are no UTF-8 could not be sent between processes: escape it."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections
    ]
    return report
