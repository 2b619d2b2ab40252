"""The contract of a kind of word: a toy kind of one file and one line goes wherever a word can go."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import BASE, learn_word
from toy_kind import TwoHalves

from ldm.backbone.model import LatentDiffusion
from ldm.diffusion.condition import Context
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.config import check, settle
from ldm.io.embeddings import load_embedding, save_embeddings
from ldm.sampling.prompts import teach
from ldm.sampling.sample import sample
from ldm.words import kind
from ldm.words.files import embedding_of
from ldm.words.kind import register
from ldm.words.kinds import choose


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(TwoHalves)
    yield
    del kind.KINDS["two_halves"]


@pytest.fixture
def toy(tiny_model: LatentDiffusion) -> LatentDiffusion:
    tiny_model.add_placeholder("<toy>", init="dog", num_vectors=2, word={"kind": "two_halves", "size": 2.0})
    rng = torch.Generator().manual_seed(3)
    late = tiny_model.manager.word("<toy>").late
    late.data.copy_(torch.randn(late.shape, generator=rng))
    return tiny_model


def test_settings_name_kinds_and_their_settings() -> None:
    assert choose("two_halves").plain() == {"kind": "two_halves", "size": 1.0}
    own = {"images": "x", "placeholder": "<toy>"}
    assert settle(own).word == {"kind": "plain", "keep_norm": "free"}
    assert settle(own, {"word": "two_halves"}, {"word.size": 3}).word == {"kind": "two_halves", "size": 3.0}
    assert settle(own, {"per_layer": True, "shared_steps": 5}).word == {
        "kind": "per_layer",
        "shared_steps": 5,
    }
    assert settle(own, {"per_layer": True}, {"per_layer": False}).word["kind"] == "plain"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("thing", "no kind of word 'thing'; choose one of"),
        ({"kind": "two_halves", "sizes": 1}, "'word.sizes'; did you mean 'size'"),
        ({"kind": "two_halves", "size": "x"}, "word.size"),
        ({"size": 1}, "unknown config key 'word.size'"),
    ],
)
def test_wrong_kinds_and_settings_are_refused_in_one_line(word: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settle({"images": "x", "placeholder": "<toy>"}, {"word": word})
    assert "\n" not in str(caught.value)


def test_formats_of_other_tools_are_refused_before_the_work() -> None:
    with pytest.raises(UserError, match=r"\.pt has no place for a word of kind two_halves"):
        check(replace(BASE, word="two_halves", formats=("pt",)))


def test_a_second_kind_of_one_name_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        register(type("Other", (TwoHalves,), {}))


def test_prompts_are_encoded_once_for_each_moment_that_differs(
    toy: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    encode = toy.text.encode
    monkeypatch.setattr(toy.text, "encode", lambda e, ids: rows.append(len(e)) or encode(e, ids))
    prompts, n = ["a <toy>", "a cat", "a <toy>"], toy.unet.num_transformers
    with torch.no_grad():
        told = toy.condition(prompts)
        early, late = (told.at(torch.full((3,), t)) for t in (100, 900))
        assert sum(rows) == 2 * n + 1 * n + 0  # the toy at two moments; the cat once
        again = [told.at(torch.full((3,), t)) for t in (0, 499, 500, 999)]
    assert len(rows) == 2
    assert all(one.tokens.equal(early.tokens) for one in again[:2])
    assert all(one.tokens.equal(late.tokens) for one in again[2:])
    assert early.tokens[0].equal(early.tokens[2]) and not early.tokens[0].equal(late.tokens[0])
    assert early.tokens[0, 0].equal(late.tokens[0, 0])  # of the first layer


def test_each_row_is_encoded_for_its_own_timestep_with_its_gradient(toy: LatentDiffusion) -> None:
    told = toy.condition(["a <toy>", "a <toy>"]).at(torch.tensor([100, 900]))
    word = toy.manager.word("<toy>")
    for row, reached in ((0, False), (1, True)):
        (gradient,) = torch.autograd.grad(told.tokens[row].sin().sum(), word.late, retain_graph=True)
        assert bool(gradient.abs().sum() > 0) == reached
    assert isinstance(told, Context) and told.tokens.shape[1] == toy.unet.num_transformers


def test_its_file_restores_it_and_no_other_tool_is_given_one(toy: LatentDiffusion, tmp_path: Path) -> None:
    images = sample(toy, ["a <toy>"], steps=4, seed=0)
    word = embedding_of(toy.manager, "<toy>", {"init": "dog"})
    path = save_embeddings(word, tmp_path / "toy.safetensors")
    for suffix in (".pt", ".bin", ".png"):
        with pytest.raises(UserError, match="two_halves, which other tools do not know"):
            save_embeddings(word, tmp_path / f"toy{suffix}")
    read = load_embedding(path)
    assert (read.kind, read.K, list(read.parts)) == ("two_halves", 2, ["late"])
    toy.remove_placeholder("<toy>")
    teach(toy, [read], force=True)
    assert toy.manager.choice("<toy>").plain() == {"kind": "two_halves", "size": 2.0}
    torch.testing.assert_close(sample(toy, ["a <toy>"], steps=4, seed=0), images, rtol=0, atol=0)
    del kind.KINDS["two_halves"]
    toy.remove_placeholder("<toy>")
    with pytest.raises(UserError, match="of kind 'two_halves', which this version does not know"):
        teach(toy, [read], force=True)
    register(TwoHalves)


def test_a_state_dict_restores_it(toy: LatentDiffusion) -> None:
    twin = toy.with_own_words()
    twin.remove_placeholder("<toy>")
    twin.manager.load_state_dict(toy.manager.state_dict())
    own, restored = toy.manager.word("<toy>"), twin.manager.word("<toy>")
    assert isinstance(restored, TwoHalves) and restored.settings == own.settings
    assert all(torch.equal(*pair) for pair in zip(own.parameters(), restored.parameters(), strict=True))


@pytest.mark.slow
def test_it_is_learned_by_its_own_rule(tiny_model: LatentDiffusion, tmp_path: Path) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    concept = Concept(images, (Path("a"), Path("b"), Path("c")), ("1", "2", "3"))
    vectors = learn_word(tiny_model, concept, word="two_halves", trainer=replace(BASE.trainer, max_steps=4))
    word = tiny_model.manager.word("<toy>")
    assert not vectors.equal(word.start) and word.late.abs().max() > 0


class NearItsStart(TwoHalves):
    """A kind that measures its table from ``start``, which does not stand yet when the table is copied."""

    kind = "near_its_start"

    def table(self) -> torch.Tensor:
        return self.start + 0.5 * (self.base - self.start)


def test_a_table_that_reads_its_own_start_is_refused(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kind.KINDS, "near_its_start", NearItsStart)
    with pytest.raises(ValueError, match=r"'near_its_start' reads self\.start"):
        tiny_model.add_placeholder("<near>", init="dog", word="near_its_start")


def test_the_kind_of_the_documentation_stays_in_its_ball(
    tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "kinds-of-word.md").read_text("utf-8")
    code = page.split("```python\n# ldm/words/ball.py\n")[1].split("```")[0]
    module = types.ModuleType("ball")
    monkeypatch.setitem(sys.modules, "ball", module)  # where its dataclass looks for its types
    try:
        exec(compile(code, "ball.py", "exec"), module.__dict__)
        tiny_model.add_placeholder("<ball>", init="dog", word={"kind": "ball", "radius": 0.5})
        word = tiny_model.manager.word("<ball>")
        start = word.table().detach().clone()
        assert torch.equal(start, tiny_model.manager.init_vectors("<ball>"))
        word.v_star.data += 100.0
        moved = (word.table() - start).norm(dim=-1)
        torch.testing.assert_close(moved, 0.5 * start.norm(dim=-1))
        saved = embedding_of(tiny_model.manager, "<ball>", {})
        assert torch.equal(saved.vectors, word.table())
    finally:
        kind.KINDS.pop("ball", None)
