"""Words per stage, and words mixed from the layers of two."""

import pytest
import torch

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.io.embeddings import Embedding, load_embedding, save_embeddings
from ldm.sampling.prompts import teach
from ldm.sampling.sample import sample
from ldm.words.files import embedding_of
from ldm.words.kind import Fit
from ldm.words.kinds import choose
from ldm.words.per_layer import mix


@pytest.mark.parametrize("stages", [1, 3, 10])
def test_each_stage_has_its_own_vectors(stages: int) -> None:
    word = choose({"kind": "per_stage", "stages": stages}).make(Fit(4, 2, 1000), 2)
    word.fill(torch.randn(stages, 2, 4), {}, None)
    t = torch.arange(1000)
    found = word(t)
    assert found.shape == (1000, 1, 2, 4)
    for i in (0, 99, 100, 333, 334, 999):
        assert found[i, 0].equal(word.table()[i * stages // 1000])
        assert word(torch.tensor([word.moment(i)])).equal(found[i : i + 1])
    assert len({word.moment(i) for i in range(1000)}) == stages


def test_sampling_encodes_each_stage_once(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.add_placeholder("<toy>", init="dog", word="per_stage")
    rows: list[int] = []
    encode = tiny_model.text.encode
    monkeypatch.setattr(tiny_model.text, "encode", lambda e, ids: rows.append(len(e)) or encode(e, ids))
    sample(tiny_model, ["a <toy>", "a cat", "a <toy>"], steps=20, scale=3.0, seed=0, batch_size=2)
    assert sum(rows) == 10 + 1 + 1  # its stages, the cat, the empty prompt


def test_equal_vectors_in_each_stage_are_a_plain_word(tiny_model: LatentDiffusion, tmp_path) -> None:
    tiny_model.add_placeholder("<plain>", init="dog")
    tiny_model.add_placeholder("<toy>", init="dog", word={"kind": "per_stage", "stages": 4})
    images = [sample(tiny_model, [f"a {name}"], steps=4, seed=0) for name in ("<plain>", "<toy>")]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)
    word = tiny_model.manager.word("<toy>")
    word.v_star.data[3] *= -1
    changed = sample(tiny_model, ["a <toy>"], steps=4, seed=0)
    assert not torch.allclose(changed, images[1], atol=1e-3)
    path = save_embeddings(embedding_of(tiny_model.manager, "<toy>", {}), tmp_path / "toy.safetensors")
    read = load_embedding(path)
    assert (read.kind, read.sets, read.layers) == ("per_stage", 4, None) and "per_stage" in read.size
    tiny_model.remove_placeholder("<toy>")
    teach(tiny_model, [read], force=True)
    assert sample(tiny_model, ["a <toy>"], steps=4, seed=0).equal(changed)


def test_layers_of_two_words_are_mixed() -> None:
    a, b = (Embedding(name, torch.randn(4, 2, 8), {"base_model": "x"}) for name in ("<a>", "<b>"))
    both = mix(a, b, [1, 3], "<c>")
    assert both.vectors[[0, 2]].equal(a.vectors[[0, 2]]) and both.vectors[[1, 3]].equal(b.vectors[[1, 3]])
    assert both.placeholder == "<c>" and both.layers == 4 and "layers 1, 3 of <b>" in both.metadata["mixed"]
    plain = Embedding("<p>", torch.randn(2, 8))
    assert mix(a, plain, [0]).vectors[0].equal(plain.vectors)
    for other, layers, message in (
        (b, [4], "no layer 4"),
        (Embedding("<d>", torch.randn(3, 2, 8)), [0], "at least one has layers"),
        (Embedding("<d>", torch.randn(4, 2, 8), {"base_model": "y"}), [0], "one model"),
        (Embedding("<d>", torch.randn(4, 2, 8), {"kind": "per_stage"}), [0], "at least one has layers"),
    ):
        with pytest.raises(UserError, match=message):
            mix(a, other, layers)
    with pytest.raises(UserError, match="at least one has layers"):
        mix(plain, plain, [0])
