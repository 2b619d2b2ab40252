"""Learned words in prompts: read, taught to a model, put where ``{}`` stands."""

import pytest
import torch

from ldm.errors import UserError
from ldm.io.atomic import file_sha256
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.sampling import prompts

pytestmark = pytest.mark.slow


def word(name: str, sha256: str = "ab", **notes: str) -> Embedding:
    return Embedding(name, torch.ones(1, 32), {"file": f"{name}.pt", "sha256": sha256, **notes})


def test_words_know_the_file_that_they_came_from(tmp_path):
    path = save_embeddings(Embedding("<toy>", torch.ones(1, 32), {"step": "5"}), tmp_path / "a.safetensors")
    (found,) = prompts.load([path])
    assert found.placeholder == "<toy>" and found.metadata["step"] == "5"
    assert (found.metadata["file"], found.metadata["sha256"]) == ("a.safetensors", file_sha256(path))


def test_a_model_is_taught_each_name_once(tiny_model):
    prompts.teach(tiny_model, [word("<toy>"), word("<box>")])
    assert set(tiny_model.manager.placeholders) == {"<toy>", "<box>"}
    with pytest.raises(UserError, match="two embeddings are called '<toy>'"):
        prompts.teach(tiny_model, [word("<toy>")])


def test_a_word_fits_by_width_and_by_the_model_that_it_was_learned_on(tiny_model, caplog):
    prompts.check_fits(tiny_model, word("<a>"), force=False)  # says nothing of a model
    prompts.check_fits(tiny_model, word("<a>", base_model=tiny_model.fingerprint()), force=False)
    other = word("<a>", base_model="0" * 64)
    with pytest.raises(UserError, match="another model"):
        prompts.check_fits(tiny_model, other, force=False)
    prompts.check_fits(tiny_model, other, force=True)
    assert "another base model" in caplog.text
    with pytest.raises(UserError, match="width 768"):
        prompts.check_fits(tiny_model, Embedding("<a>", torch.ones(1, 768)), force=True)


def test_braces_stand_for_the_one_word():
    assert prompts.put("a {} on a {}", [word("<toy>")]) == "a <toy> on a <toy>"
    assert prompts.put("a cat", []) == "a cat"
    with pytest.raises(UserError, match="one of <a>, <b>"):
        prompts.put("a {}", [word("<a>"), word("<b>")])


def test_words_that_no_text_uses_are_refused_or_said(tiny_model, caplog):
    words = [word("<toy>"), word("<box>", "cd")]
    prompts.teach(tiny_model, words)
    assert prompts.used_in(tiny_model, "a <box>", words) == words[1:]
    prompts.check_used(tiny_model, ["a cat", "a <box>"], words)
    assert "no prompt uses <toy>, the word of <toy>.pt" in caplog.text
    with pytest.raises(UserError, match="no prompt uses the learned word"):
        prompts.check_used(tiny_model, ["a cat"], words)
