"""More vectors than a prompt holds: refused, or one line that says what is cut off, wherever it is."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

import ldm
from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.cli.main import main
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.config import InversionConfig
from ldm.inversion.sections import StopConfig
from ldm.inversion.task import prepare
from ldm.io.embeddings import Embedding, save_embeddings

ROOM = 10  # of the tiny model: 12 positions, two of which are its frame


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("ldm"), "propagate", True)

    def read() -> list[str]:
        found = [r.getMessage() for r in caplog.records if "cut off" in r.getMessage()]
        caplog.clear()
        return found

    return read


def pictures(folder: Path) -> Path:
    folder.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "0.png")
    return folder


QUICK = {
    "show": {"prompts": ()},
    "stop": {"allow_untrained": True},
    "progress": False,
    "steps": 1,
    "templates": "plain",
}


def test_a_word_that_no_prompt_holds_is_refused(tiny_model: LatentDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"11 vectors, and a prompt of this model holds {ROOM}"):
        ldm.invert(tiny_model, pictures(tmp_path / "p"), "<a>", num_vectors=11, **QUICK)
    with pytest.raises(UserError, match="100 vectors"):
        tiny_model.add_placeholder("<a>", torch.ones(100, 32))
    assert not tiny_model.manager.placeholders and not tiny_model.text.tokenizer.placeholders


@pytest.mark.slow
def test_training_says_in_one_line_what_is_cut(
    tiny_model: LatentDiffusion, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    photos = pictures(tmp_path / "p")
    ldm.invert(tiny_model, photos, "<a>", num_vectors=6, **QUICK)  # "a photo of a" and 6 just fit
    assert warnings() == []
    ldm.invert(tiny_model, photos, "<b>", num_vectors=8, **QUICK)
    (line,) = warnings()
    assert "2 of the 8 vectors of <b>" in line and "takes 12 positions" in line
    several = {**QUICK, "templates": ("a photo of a {}", "the {}", "a red cat and a {}")}
    ldm.invert(tiny_model, photos, "<c>", num_vectors=8, **several)
    (line,) = warnings()  # one line, whatever the number of templates
    assert "2 of 3 prompts" in line


def test_a_word_that_another_pushes_out_of_a_caption_is_named(
    tiny_model: LatentDiffusion, warnings: Callable[[], list[str]]
) -> None:
    config = InversionConfig(
        Path(), "<a>", more_words={"<b>": None}, num_vectors=7, stop=StopConfig(allow_untrained=True)
    )
    concept = Concept(torch.zeros(1, 3, 16, 16), (), ())
    prepare(tiny_model, concept, config, captions=[("a photo <b> and <a>", "<a>")])
    (line,) = warnings()
    assert "<a> cut off" in line and "vectors of <b>" not in line
    with pytest.raises(UserError, match="is cut off"):  # no learned word is seen at all
        prepare(tiny_model, concept, config, captions=[("a cat and a dog on the beach in a <a>",)])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a photo of <a>", None),
        ("a photo of <a> on grass", "'on' is|'on g"),
        ("a cat and a dog on the beach in a red house", None),  # no learned word: the tokenizer says it
        ("a cat and a dog on the beach in a <a>", "<a> cut off"),
        ("a cat and a <a>", "1 of the 7 vectors of <a>"),
    ],
)
def test_drawing_says_what_is_cut(
    tiny_model: LatentDiffusion, prompt: str, said: str | None, warnings: Callable[[], list[str]]
) -> None:
    tiny_model.add_placeholder("<a>", torch.ones(7, 32))
    for _ in range(2):
        ldm.sample(tiny_model, [prompt] * 2, steps=1, scale=2.0, seed=0)
        found = warnings()
        assert len(found) == (said is not None and _ == 0), found
        if found:
            assert any(part in found[0] for part in str(said).split("|"))


@pytest.mark.slow
def test_the_command_line_says_it_too(
    tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = {"base_model": tiny_model.fingerprint()}
    file = save_embeddings(Embedding("<a>", torch.ones(9, 32), notes), tmp_path / "a.safetensors")
    tiny.write_model(tmp_path / "tiny", tiny_model, tiny_config)
    words = ["sample", "--model", tmp_path / "tiny", "--embedding", file, "--n", 1, "--steps", 1]
    words += ["--out", tmp_path / "out", "--prompt", "a photo of {} on a beach"]
    assert main([str(word) for word in words]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "cut off" in line]
    assert len(lines) == 1 and "2 of the 9 vectors of <a> and 'on a beach' cut off" in lines[0]
