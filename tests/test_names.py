"""A name is one string everywhere, and one that no file can hold is refused before work."""

import logging
import unicodedata
from pathlib import Path

import pytest
import tiny
import torch

import ldm
from ldm.backbone.model import LatentDiffusion
from ldm.cli.main import main
from ldm.config import dump_yaml
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig, check
from ldm.io.embeddings import Embedding, check_names, load_embeddings, save_embeddings
from ldm.names import normal

ONE = "<café bar>"
SPELLINGS = [
    " <café bar>", "<café bar>\n", "<café  bar>", "<café\tbar>", "<café\u00a0bar>",
    unicodedata.normalize("NFD", ONE),  # as macOS types it
]  # fmt: skip
#: what a .safetensors file or its readers cannot hold
REFUSED = ["__metadata__", "clip_l", "clip_g", "emb_params", "emp_params", "text_encoders_0",
           "string_to_param", "a\x00b", "a\x1bb", "\ud800", "x" * 1001, " \u00a0 ", ""]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    described = tiny.config(tiny.write_vocabulary(folder / "vocab.txt"))
    tiny.write_model(folder / "tiny", tiny.model(described), described)
    tiny.write_pictures(folder / "pictures")
    return folder


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_name_to_the_parts(
    spelling: str, tiny_model: LatentDiffusion, tmp_path: Path
) -> None:
    assert normal(spelling) == ONE
    other = spelling.replace("bar", "baz")
    words = InversionConfig(Path(), spelling, more_words={other: None}).words
    assert words == {ONE: None, ONE.replace("bar", "baz"): None}
    word = Embedding(spelling, torch.ones(1, 32))
    assert load_embeddings(save_embeddings(word, tmp_path / "a.safetensors"))[0].placeholder == ONE
    token_id = tiny_model.add_placeholder(spelling, word.vectors)
    for other in SPELLINGS:
        assert token_id in tiny_model.text.tokenizer.words(f"a photo of {other} on grass")
        assert torch.equal(tiny_model.manager.vectors(other), word.vectors)
        with pytest.raises(UserError, match="exists"):
            tiny_model.manager.add(other, 9999, word.vectors)
    tiny_model.remove_placeholder(SPELLINGS[0])
    assert not tiny_model.manager.placeholders


@pytest.mark.slow
def test_a_word_is_learned_and_drawn_under_any_spelling(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelling = f" {unicodedata.normalize('NFD', ONE)}\t".replace(" bar", "\u00a0 bar")
    monkeypatch.chdir(tmp_path)
    entries = [{"name": name, "images": str(world / "pictures")} for name in (spelling, "<b>")]
    Path("list.yaml").write_text(dump_yaml({"defaults": {"model": str(world / "tiny")}, "concepts": entries}))
    options = ["--model", str(world / "tiny"), "--set", "trainer.max_steps=1", "show.prompts=[]"]
    assert main(["invert", "--concepts", "list.yaml", "--out", "list", *options]) == 0
    run = ["--images", str(world / "pictures"), "--name", spelling, "--out", "run"]
    assert main(["invert", *run, *options]) == 0
    for file in ("list/embeddings.safetensors", "run/embeddings.safetensors"):
        assert load_embeddings(file)[0].placeholder == ONE
    for prompt in (f"a photo of {spelling}", f"a photo of {ONE}"):
        words = ["--embedding", "run/embeddings.safetensors", "--prompt", prompt, "--n", "1"]
        assert main(["sample", "--model", str(world / "tiny"), *words, "--out", "drawn"]) == 0
    convert = ["run/embeddings.safetensors", "a.safetensors", "--word", spelling]
    assert main(["embeddings", "convert", *convert]) == 0
    merge = ["a.safetensors", "run/embeddings.safetensors", "--out", "b.safetensors"]
    assert main(["embeddings", "merge", *merge, "--rename", f"a.safetensors:{spelling.strip()}=<c>"]) == 0
    model = ldm.load(world / "tiny")
    settings = {"show": {"prompts": ()}, "stop": {"allow_untrained": True}, "progress": False}
    assert ldm.invert(model, world / "pictures", spelling, steps=1, **settings).placeholder == ONE


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_no_file_can_hold_is_refused_before_work(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError):
        check(InversionConfig(Path(), name))
    with pytest.raises(UserError):
        check(InversionConfig(Path(), "<a>", more_words={name: None}))
    monkeypatch.setattr(LatentDiffusion, "encode", lambda *_: pytest.fail("work had begun"))
    with pytest.raises(UserError):
        ldm.invert(ldm.load(world / "tiny"), world / "pictures", name, steps=1, progress=False)


def test_names_that_files_hold_are_taken() -> None:
    check_names(["<cat>", "*", "a b", "猫", "{}", "clip_l2", "x" * 1000, "metadata"])
    check_names(["<cat>", "sculpture"], ("safetensors", "pt"))
    with pytest.raises(UserError, match="a.b"):
        check_names(["a.b"], ("pt",))


@pytest.mark.slow
def test_a_name_that_the_templates_hold_is_said(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ldm"), "propagate", True)
    model = ldm.load(world / "tiny")
    for name, said in (("photo", True), ("a", True), ("pho", False), ("<photo>", False)):
        caplog.clear()
        settings = {
            "show": {"prompts": ()},
            "stop": {"allow_untrained": True},
            "templates": "plain",
        }
        ldm.invert(model, world / "pictures", name, steps=1, progress=False, **settings)
        assert ("word of the templates" in caplog.text) == said, name
