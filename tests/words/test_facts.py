"""What is known of a learned word, and what it is near."""

import pytest
import torch

from ldm.io.embeddings import Embedding
from ldm.words.facts import facts, neighbours, usual_norm


def test_a_word_tells_its_size_norms_and_notes():
    notes = {"base_model": "ab", "image_hashes": "1,2", "init": ""}
    word = Embedding("<toy>", torch.eye(2, 4), notes)
    rows = dict(facts(word))
    assert rows["vectors"].startswith("2 of width 4") and rows["norms"] == "1.000, 1.000"
    assert (rows["base model"], rows["pictures"], rows["init"]) == ("ab", "2 (sha256 1,2)", "none")
    assert dict(facts(word, "ab"))["base model"] == "ab (this model)"
    assert dict(facts(word, "cd"))["base model"] == "ab (another model)"


def test_many_norms_are_told_by_their_range():
    word = Embedding("<toy>", torch.arange(1.0, 10.0)[:, None] * torch.eye(1, 4))
    assert dict(facts(word))["norms"] == "1.000 to 9.000, median 5.000"


@pytest.mark.parametrize(("shape", "keys"), [
    ((1,), [""]),
    ((2,), ["vector 1", "vector 2"]),
    ((2, 1), ["layer 1", "layer 2"]),
    ((2, 2), ["vector 1, layer 1", "vector 2, layer 1", "vector 1, layer 2", "vector 2, layer 2"]),
])  # fmt: skip
def test_each_vector_has_its_neighbours(tiny_model, shape, keys):
    table = tiny_model.text.token_table.detach()
    cat = table[tiny_model.text.tokenizer.words("cat")[0]]
    found = neighbours(Embedding("<toy>", cat.expand(*shape, -1).clone()), tiny_model.text, k=3)
    assert list(found) == keys
    for row in found.values():
        assert len(row) == 3 and row[0].word == "cat" and row[0].cosine == pytest.approx(1)


def test_the_usual_norm_is_the_median_of_the_vocabulary(tiny_model):
    norms = tiny_model.text.token_table.detach().norm(dim=1)
    assert usual_norm(tiny_model.text) == pytest.approx(float(norms.median()))
