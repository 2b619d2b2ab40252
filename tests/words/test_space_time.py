"""Space-time words (NeTI): features, anchors, length, cuts and their draw, files."""

import math
from pathlib import Path

import pytest
import torch
from learning import _module

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.step import Part, contexts
from ldm.io.embeddings import load_embedding, save_embeddings
from ldm.io.recipes import load_recipe
from ldm.models.attention import CrossAttention
from ldm.sampling import gallery, prompts
from ldm.sampling.prompts import teach
from ldm.sampling.sample import Sampling, sample
from ldm.words.files import embedding_of
from ldm.words.kind import Fit
from ldm.words.kinds import choose
from ldm.words.space_time import SpaceTime

FIT = Fit(width=4, layers=3, timesteps=500)
SMALL = {"kind": "space_time", "hidden": 6, "anchors": 5, "frequencies": 16}


def word(count: int = 1, seed: int = 0, fit: Fit = FIT, **settings: float) -> SpaceTime:
    made = choose({**SMALL, **settings}).make(fit, count)
    made.draw(torch.Generator().manual_seed(seed))
    made.fill(torch.arange(1.0, 1 + 4 * count).reshape(count, 4), {}, None)
    return made


def test_features_by_hand() -> None:
    made = word(frequencies=2)
    made.frequencies.copy_(torch.tensor([[0.01, 0.0], [0.002, 3.0]]))
    found = made.features(torch.tensor([0, 100]))  # in a schedule of 500: 0 and 200 thousandths
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]) / math.sqrt(2))
    phases = torch.tensor([200 * 0.01, 200 * 0.002 + 2 * 3.0])
    torch.testing.assert_close(found[1, 2], torch.cat([phases.sin(), phases.cos()]) / math.sqrt(2))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 3))


def test_the_first_layer_starts_at_the_anchors() -> None:
    made = word()
    first = made.mapper[0]
    assert first.weight.shape == (5 * 3, 2 * 16)
    at = made.features(torch.tensor([0, 100, 200, 300, 400]))  # five of 500
    assert first.weight.equal(at.reshape(15, 32))
    torch.testing.assert_close(first(at).reshape(15, 15).diagonal(), torch.ones(15))
    assert made.frequencies[:, 0].std() < 0.1 < made.frequencies[:, 1].std()
    whole = choose({"kind": "space_time", "bypass": True}).make(Fit(768, 16, 1000), 1)
    assert sum(p.numel() for p in whole.parameters()) == 563_616  # the paper: 0.56 million


def test_the_start_is_the_seeds() -> None:
    one, same, other = word(), word(), word(seed=1)
    pairs = [list(made.state_dict().values()) for made in (one, same, other)]
    assert all(map(torch.equal, pairs[0], pairs[1]))
    assert not one.table().equal(other.table())


def test_each_vector_keeps_the_length_of_its_start() -> None:
    made = word(count=2)
    said = made(torch.tensor([0, 7, 499]))
    assert said.shape == (3, 3, 2, 4)
    lengths = torch.tensor([30.0, 174.0]).sqrt()
    torch.testing.assert_close(said.norm(dim=-1), lengths.expand(3, 3, 2))
    assert made.table().equal(made(torch.tensor([250]))[0])
    assert not said[0].allclose(said[1]) and not said[0, 0].allclose(said[0, 1])  # it varies with both
    with pytest.raises(UserError, match="length 0"):
        made.fill(torch.zeros(2, 4), {}, None)


def test_a_cut_word_is_made_of_its_first_units() -> None:
    made = word()
    h = made.mapper(made.features(torch.tensor([9])))[0, 1]
    for kept in (0, 2, 6):
        o = made.out.weight[:, :kept] @ h[:kept] + made.out.bias
        found = made(torch.tensor([9]), torch.tensor([kept]))[0, 1, 0]
        torch.testing.assert_close(found, math.sqrt(30) * o / o.norm())
    assert made(torch.tensor([9]), torch.tensor([6])).equal(made(torch.tensor([9])))


def test_half_of_the_samples_are_cut_anywhere() -> None:
    kept = word(hidden=8).draw_kept(8000, torch.Generator().manual_seed(0))
    counts = kept.bincount(minlength=9) / 8000
    torch.testing.assert_close(counts, torch.tensor([0.5 / 8] * 8 + [0.5]), rtol=0, atol=0.02)
    assert word(dropout=0.0).draw_kept(8, torch.Generator()) is None


@pytest.fixture
def concept() -> Concept:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (Path("a.png"), Path("b.png")), ("1", "2"))


def test_a_step_draws_its_cuts_and_what_is_measured_is_whole(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    tiny_model.add_placeholder("<toy>", init="dog", word=SMALL)
    objective = _module(tiny_model, concept).objective
    draws = [objective.draw(number) for number in range(8)]
    assert all(objective.draw(number).kept.equal(draw.kept) for number, draw in enumerate(draws))
    assert len({tuple(draw.kept.tolist()) for draw in draws}) > 2
    assert all(draw.kept is None for draw in objective.fixed(4))
    a, b = draws[0].part(slice(1, 2)), draws[0]
    assert a.kept.equal(b.kept[1:])
    # two samples of one prompt and timestep that differ in their cuts alone are two prompts
    two = b._replace(t=b.t[:1].repeat(2), prompts=["a <toy>"] * 2, kept=torch.tensor([6, 0]))
    found = contexts(tiny_model, [Part(objective, two, 0)]).context.tokens
    whole = contexts(tiny_model, [Part(objective, two._replace(kept=None), 0)]).context.tokens
    assert not found[0].allclose(found[1]) and whole[0].equal(whole[1])
    torch.testing.assert_close(found[0], whole[0])


def test_the_bypass_reaches_values_and_not_keys(tiny_model: LatentDiffusion) -> None:
    settings = {**SMALL, "bypass": True, "bypass_size": 0.3}
    tiny_model.add_placeholder("<toy>", init="dog", word=settings, num_vectors=2)
    tiny_model.add_placeholder("<plain>", init="cat")
    t = torch.tensor([40, 900])
    with torch.no_grad():
        told = tiny_model.condition(["a <toy> and <plain>", "a cat"]).at(t)
        v_star, aside = tiny_model.manager.word("<toy>")(t)
        ids, text = tiny_model.text.tokenize(["a <toy> and <plain>"]), tiny_model.text
        placed = tiny_model.manager(ids, text.embed(ids), None, t[:1])
        assert placed.embeds[0, :, 2:4].equal(v_star[0]) and placed.aside[0, :, 2:4].equal(aside[0])
        assert not placed.aside[:, :, [0, 1, *range(4, 12)]].any()
        torch.testing.assert_close(aside.norm(dim=-1), torch.full(aside.shape[:-1], 0.3))
        for layer, (keys, values) in enumerate(told.layers):
            h = text.transformer.attn_layers(placed.embeds[:, layer] + text.transformer.pos_emb.emb.weight)
            torch.testing.assert_close(keys[:1], text.transformer.norm(h))
            h[:, 2:4] += h[:, 2:4].norm(dim=-1, keepdim=True) * aside[:1, layer]
            torch.testing.assert_close(values[:1], text.transformer.norm(h))
            assert keys[1].equal(values[1])  # no word is there
    images = sample(tiny_model, ["a <toy> and <plain>", "a cat"], steps=4, seed=0, scale=3.0)
    torch.testing.assert_close(
        sample(tiny_model, ["a <toy> and <plain>"], steps=4, seed=0, scale=3.0), images[:1]
    )


def test_attention_by_hand_with_values_of_another_context() -> None:
    attention, x, keys, values = CrossAttention(2, 2, 1, 2), *(torch.randn(1, 3, 2) for _ in range(3))
    scores = attention.to_q(x)[0] @ attention.to_k(keys)[0].T / math.sqrt(2)
    expected = attention.to_out(scores.softmax(dim=-1) @ attention.to_v(values)[0])
    torch.testing.assert_close(attention(x, (keys, values))[0], expected)


def test_a_batch_of_words_with_and_without_the_bypass_is_what_each_is_alone(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    parts = []
    for word in ("plain", {**SMALL, "bypass": True}):
        own = tiny_model.with_own_words()
        own.add_placeholder("<toy>", init="dog", word=word)
        objective = _module(own, concept).objective
        parts.append(Part(objective, objective.draw(0), 0))
    alone = [contexts(tiny_model, [part]).context for part in parts]
    both = contexts(tiny_model, parts).context
    assert alone[0].values is None
    torch.testing.assert_close(both.tokens[2:], alone[1].tokens)
    torch.testing.assert_close(both.values[2:], alone[1].values)
    torch.testing.assert_close(both.values[:2], alone[0].tokens.expand_as(both.values[:2]))
    both.values.sum().backward()
    word = parts[1].objective.model.manager.word("<toy>")
    assert word.out.weight.grad[32:].abs().sum() > 0  # of b


@pytest.mark.parametrize("bypass", [False, True])
def test_its_file_restores_it(tiny_model: LatentDiffusion, tmp_path: Path, bypass: bool) -> None:
    settings = {**SMALL, "bypass": bypass}
    tiny_model.add_placeholder("<toy>", init="dog", word=settings, num_vectors=2)
    images = sample(tiny_model, ["a <toy>"], steps=4, seed=0)
    saved = embedding_of(tiny_model.manager, "<toy>", {})
    read = load_embedding(save_embeddings(saved, tmp_path / "toy.safetensors"))
    n = tiny_model.unet.num_transformers
    assert (read.kind, read.vectors.shape, read.layers) == ("space_time", (n, 2, 32), None)
    assert read.set_names[-1] == f"layer {n}"
    with pytest.raises(UserError, match="kind space_time, which other tools do not know"):
        save_embeddings(saved, tmp_path / "toy.pt")
    tiny_model.remove_placeholder("<toy>")
    teach(tiny_model, [read], force=True)
    assert sample(tiny_model, ["a <toy>"], steps=4, seed=0).equal(images)
    for parts, message in (
        ({**read.parts, "out.bias": torch.zeros(3)}, r"out\.bias is \(3,\)"),
        ({"norm": read.parts["norm"]}, "is missing"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_model.add_placeholder("<other>", read.vectors, word=settings, parts=parts)


def test_a_word_is_cut_at_sampling(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<toy>", init="dog", word={**SMALL, "bypass": True})
    whole, same, cut = (
        sample(tiny_model, ["a <toy>", "a cat"], steps=2, scale=2.0, seed=0, truncate=n) for n in (None, 6, 2)
    )
    assert whole.equal(same) and not whole[0].allclose(cut[0]) and whole[1].equal(cut[1])
    t = torch.tensor([500])
    with torch.no_grad():
        told = tiny_model.condition("a <toy>", truncate=2).at(t)
        ids, text = tiny_model.text.tokenize(["a <toy>"]), tiny_model.text
        placed = tiny_model.manager(ids, text.embed(ids), None, t, torch.tensor([2]))
        keys, values = text.keys_and_values(placed.embeds, placed.ids, placed.aside)
    assert told.tokens.equal(keys) and told.values.equal(values)
    for n in (-1, 7):
        with pytest.raises(UserError, match=f"truncate is {n}, but <toy> has 6 units: give 0 to 6"):
            tiny_model.condition("a <toy>", truncate=n)
    with pytest.raises(UserError, match=r"give it to model\.condition"):
        sample(tiny_model, cond=tiny_model.condition("a <toy>"), truncate=2)


def test_a_pictures_recipe_says_how_its_word_was_cut(tiny_model: LatentDiffusion, tmp_path: Path) -> None:
    tiny_model.add_placeholder("<toy>", init="dog", word=SMALL)
    tiny_model.add_placeholder("<plain>", init="cat")
    for name in ("<toy>", "<plain>"):
        save_embeddings(embedding_of(tiny_model.manager, name, {}), tmp_path / f"{name[1:-1]}.safetensors")
        tiny_model.remove_placeholder(name)
    learned = prompts.load([tmp_path / "toy.safetensors", tmp_path / "plain.safetensors"])
    teach(tiny_model, learned, force=True)
    quick = {"learned": learned, "sampling": Sampling(steps=2, scale=1.0), "n": 1}
    with pytest.raises(UserError, match="no prompt uses a word that can be cut"):
        gallery.plan(tiny_model, ["a <plain>"], tmp_path, truncate=2, **quick)
    (one,) = gallery.plan(tiny_model, ["a <toy>"], tmp_path, truncate=2, **quick)
    assert gallery.draw_into(tiny_model, [one]) == 0
    recipe = load_recipe(one.path)
    assert recipe.truncate == 2 and recipe.same_picture(one.recipe)
    tiny_model.remove_placeholder("<toy>")
    teach(tiny_model, recipe.embeddings, force=True)  # the recipe's own copy of the network
    again = gallery.draw_again(tiny_model, recipe, tmp_path / "again.png")
    assert again.read_bytes() == one.path.read_bytes()
