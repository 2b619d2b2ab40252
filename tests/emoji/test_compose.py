"""The shipped model's pictures: composed emoji and their captions."""

from itertools import combinations

import pytest
import torch

from ldm.emoji.captions import (
    STYLE_WORDS,
    STYLES,
)
from ldm.emoji.compose import JITTER, Composer, concept_pictures, over, portraits, render, warp
from ldm.emoji.scenes import SCENES, scene_bank
from ldm.emoji.sprites import Concept, EmojiSprites
from ldm.errors import UserError
from ldm.evaluation.colours import COLOUR_NAMES, COLOURS

pytestmark = pytest.mark.slow


def _sprites(count: int = 8) -> EmojiSprites:
    """Opaque half-size squares of different colours, without any files."""
    pixels = torch.zeros(count, 3, 64, 64, 4, dtype=torch.uint8)
    pixels[:, :, 8:56, 8:56, 3] = 255
    pixels[:, :, 8:56, 8:56, 0] = torch.arange(count, dtype=torch.uint8)[:, None, None, None] * 20
    names = ["cat", "red apple", "scissors", "egg", "unicorn", "cactus", "lion", "umbrella"][:count]
    rows = [Concept(f"1f{i:03x}", n, ("kitten",), "objects", "tool") for i, n in enumerate(names)]
    return EmojiSprites(tuple(rows), pixels, frozenset(names))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_has_the_promised_shapes_and_range():
    batch = Composer(_sprites()).batch(40, _generator())
    assert batch.images.shape == (40, 3, 64, 64) and batch.images.dtype == torch.float32
    assert batch.images.min() >= -1 and batch.images.max() <= 1
    assert len(batch.captions) == len(batch.background) == 40
    assert batch.concepts.shape == batch.styles.shape == (40,)
    assert Composer(_sprites(), image_size=96).batch(2, _generator()).images.shape[-1] == 96


def test_the_generator_alone_decides():
    composer = Composer(_sprites())
    before = torch.random.get_rng_state()
    first, again = composer.batch(16, _generator(7)), composer.batch(16, _generator(7))
    other = composer.batch(16, _generator(8))
    assert torch.equal(first.images, again.images) and first.captions == again.captions
    assert first.captions != other.captions
    assert torch.equal(before, torch.random.get_rng_state())


def test_solid_backgrounds_are_nearest_to_the_named_colour():
    batch = Composer(_sprites()).batch(600, _generator(1))
    table = torch.tensor([COLOURS[name] for name in COLOUR_NAMES]).float() / 127.5 - 1
    border = torch.cat([batch.images[:, :, 0], batch.images[:, :, -1]], 2).median(2).values
    nearest = torch.cdist(border, table).argmin(1).tolist()
    named = [i for i, name in enumerate(batch.background) if name]
    assert 0.6 * 600 < len(named) < 0.8 * 600
    assert all(COLOUR_NAMES[nearest[i]] == batch.background[i] for i in named)
    said = sum(batch.background[i] in batch.captions[i].split() for i in named)
    assert 0.78 * len(named) < said < 0.92 * len(named)


def test_colours_stay_apart_under_jitter():
    table = [torch.tensor(rgb).float() for rgb in COLOURS.values()]
    reach = JITTER * 3**0.5
    assert min(torch.dist(a, b).item() for a, b in combinations(table, 2)) > 2 * reach + 20


def test_captions_name_the_style_that_was_drawn_and_no_other():
    batch = Composer(_sprites()).batch(400, _generator(2))
    spoken = 0
    for caption, style in zip(batch.captions, batch.styles.tolist(), strict=True):
        for name, words in STYLE_WORDS.items():
            if any(f" {w} " in f" {caption.replace(',', '')} " for w in words):
                assert name == STYLES[style], caption
                spoken += 1
    assert 0.5 * 400 < spoken < 0.7 * 400


def test_captions_name_the_concept_mostly_by_its_label_and_never_by_another():
    composer = Composer(_sprites())
    batch = composer.batch(400, _generator(3))
    labels = [c.label for c in composer.sprites.concepts]
    own = 0
    for caption, concept in zip(batch.captions, batch.concepts.tolist(), strict=True):
        own += labels[concept] in caption
        others = [label for label in labels if f" {label} " in f" {caption.replace(',', '')} "]
        assert others in ([], [labels[concept]]), caption
    assert own > 0.85 * 400


def test_synonyms_are_specific_and_never_a_reserved_name():
    sprites = _sprites(2)
    assert Composer(sprites).captioner.synonyms == [["kitten"], ["kitten"]]
    reserved = EmojiSprites(sprites.concepts, sprites.sprites, frozenset({"kitten"}))
    assert Composer(reserved).captioner.synonyms == [[], []]
    assert Composer(_sprites(5)).captioner.synonyms == [[]] * 5  # on more than three concepts


def test_warp_puts_the_sprite_where_it_was_asked():
    sprite = torch.full((1, 64, 64, 4), 255, dtype=torch.uint8)
    half = torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([[0.5, -0.5]])
    alpha = warp(sprite, *half, 64)[0, 3]
    expected = torch.zeros(64, 64)
    expected[:32, 32:] = 1  # a half-size square in the right upper quarter
    assert torch.allclose(alpha, expected, atol=1e-4)


def test_warp_turns_counter_clockwise():
    sprite = torch.zeros(1, 64, 64, 4, dtype=torch.uint8)
    sprite[:, 28:36, 48:64] = 255  # a mark at the right edge
    turned = torch.tensor([1.0]), torch.tensor([90.0]), torch.zeros(1, 2)
    alpha = warp(sprite, *turned, 64)[0, 3]
    assert alpha[:16, 28:36].mean() > 0.9 and alpha[32:].sum() < 1e-3


def test_over_mixes_premultiplied_colours():
    rgba = torch.tensor([0.5, 0.0, 0.0, 0.5]).view(1, 4, 1, 1)  # half-transparent red
    mixed = over(rgba, torch.ones(1, 3, 1, 1))[0, :, 0, 0]
    assert torch.allclose(mixed, torch.tensor([1.0, 0.0, 0.0]))


def test_example_pictures_of_a_concept_differ_in_background():
    pictures = concept_pictures(_sprites(), "cat", n=5, seed=4)
    assert pictures.shape == (5, 3, 64, 64)
    corners = {tuple(round(v, 2) for v in p[:, 0, 0].tolist()) for p in pictures}
    assert len(corners) == 5
    assert torch.equal(pictures, concept_pictures(_sprites(), "cat", n=5, seed=4))
    assert not torch.equal(pictures, concept_pictures(_sprites(), "cat", n=5, seed=5))
    with pytest.raises(UserError):
        concept_pictures(_sprites(), "cat", n=0)


def test_render_takes_colours_codes_and_scenes_and_names_the_unknown():
    sprites = _sprites()
    red = render(sprites, "cat", background="#ff0000", scale=0.5)
    assert red[:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert not torch.equal(render(sprites, "cat", background="beach"), red)
    for wrong in ({"background": "mauve"}, {"background": "#zzzzzz"}, {"style": "apple"}):
        with pytest.raises(UserError):
            render(sprites, "cat", **wrong)
    with pytest.raises(UserError, match="hex code"):
        render(sprites, "yeti")


def test_scenes_are_fixed_and_told_apart():
    bank = scene_bank(64)
    assert bank.shape == (len(SCENES), 64, 3, 64, 64)
    scene_bank.cache_clear()
    assert torch.equal(bank, scene_bank(64))
    means = bank.float().mean(1).flatten(1)
    assert min(torch.dist(a, b).item() for a, b in combinations(means, 2)) > 1000


def test_portraits_show_a_sprite_alone_on_black_and_on_white():
    sprites = _sprites(3)
    pairs = portraits(sprites.sprites[:, 1], 64)
    assert pairs.shape == (3, 2, 3, 64, 64)
    black, white = pairs.unbind(1)
    assert (black[:, :, 0, 0] == -1).all() and (white[:, :, 0, 0] == 1).all()  # a corner
    torch.testing.assert_close(black[:, :, 32, 32], white[:, :, 32, 32])  # the square hides what is behind
    red = (black[:, 0, 32, 32] + 1) * 127.5
    torch.testing.assert_close(red, torch.tensor([0.0, 20.0, 40.0]), rtol=0, atol=1e-3)
