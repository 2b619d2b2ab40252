"""Things that do not exist: what the changes keep, and that they are changes."""

import pytest
import torch

from ldm.emoji.compose import Composer
from ldm.emoji.fantasies import _bend, _place, _rotate_hue, imagine
from ldm.emoji.sprites import Concept, EmojiSprites

pytestmark = pytest.mark.slow


def _sprites(n: int = 6) -> EmojiSprites:
    pixels = torch.zeros(n, 3, 64, 64, 4, dtype=torch.uint8)
    for i in range(n):
        pixels[i, :, 8 : 30 + 4 * i, 10:50] = torch.tensor([200 - 20 * i, 30 * i, 90, 255])
    concepts = tuple(Concept(str(i), f"thing {i}", (), "objects", "tool") for i in range(n))
    return EmojiSprites(concepts, pixels, frozenset(c.label for c in concepts))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_fantasies_are_new_premultiplied_sprites_and_the_same_thing_in_three_styles() -> None:
    sprites = _sprites()
    made = imagine(sprites, 300, "<this>", _generator())
    assert made.sprites.shape == (300, 3, 64, 64, 4) and len(made) == 300
    assert (made.sprites[..., :3] <= made.sprites[..., 3:]).all()
    # the styles of these models are equal, so every change must have been the same in all three
    assert torch.equal(made.sprites[:, 0], made.sprites[:, 2])
    known = {tuple(s.flatten().tolist()) for s in sprites.sprites[:, 0]}
    new = [tuple(s.flatten().tolist()) not in known for s in made.sprites[:, 0]]
    assert sum(new) > 280
    assert torch.equal(made.sprites, imagine(sprites, 300, "<this>", _generator()).sprites)
    assert not torch.equal(made.sprites[:10], imagine(sprites, 10, "<this>", _generator(1)).sprites)


def test_no_fantasy_has_a_name_and_the_share_of_hidden_names_is_as_asked() -> None:
    composer = Composer(imagine(_sprites(), 20, "<this>", _generator()))
    assert all("<this>" in c for c in composer.batch(200, _generator()).captions)
    hidden = Composer(_sprites(), unnamed=0.4).batch(1000, _generator()).captions
    assert 340 < sum("<this>" in c for c in hidden) < 460
    assert not any("<this>" in c for c in Composer(_sprites()).batch(100, _generator()).captions)


def test_hue_keeps_gray_and_brightness_and_a_third_of_a_turn_moves_the_channels() -> None:
    colours = torch.tensor([[0.3, 0.3, 0.3, 0.5], [0.4, 0.1, 0.1, 1.0]])[:, :, None, None]
    for turn in (0.0, 0.2, 1 / 3):
        turned = _rotate_hue(colours, torch.tensor([turn, turn]))
        torch.testing.assert_close(turned[0], colours[0])
        torch.testing.assert_close(turned[1, :3].sum(), colours[1, :3].sum())
        assert turned[1, 3] == 1
    torch.testing.assert_close(turned[1, :3].flatten().sort()[0], colours[1, :3].flatten().sort()[0])
    assert turned[1, 0] < turned[1, :3].max()


def test_placing_narrows_mirrors_and_turns() -> None:
    sprite = torch.zeros(1, 4, 64, 64)
    sprite[:, :, 20:30, 4:60] = 1
    zero, one, no = torch.zeros(1), torch.ones(1), torch.tensor([False])
    torch.testing.assert_close(_place(sprite, one, zero, no), sprite)
    torch.testing.assert_close(_place(sprite, one, zero, ~no), sprite.flip(-1))
    half_turn = _place(sprite, one, torch.tensor([torch.pi]), no)
    torch.testing.assert_close(half_turn, sprite.flip((-1, -2)), atol=1e-3, rtol=0)
    narrow = _place(sprite, one / 2, zero, no)
    assert abs(narrow[0, 3].sum() / sprite[0, 3].sum() - 0.5) < 0.02


def test_bending_moves_smoothly_and_alike_in_the_three_styles() -> None:
    sprite = torch.zeros(1, 4, 64, 64)
    sprite[:, :, 20:30, 4:60] = 1
    still = torch.zeros(1, 2, 4, 4)
    torch.testing.assert_close(_bend(sprite, still), sprite, atol=1e-4, rtol=0)
    aside = still.clone()
    aside[:, 0] = 2 * 8 / 64  # what lies eight pixels to the right, everywhere
    torch.testing.assert_close(_bend(sprite, aside)[..., :50], sprite[..., 8:58], atol=1e-3, rtol=0)
    bent = imagine(_sprites(), 60, "<this>", _generator(), warp=0.05).sprites
    straight = imagine(_sprites(), 60, "<this>", _generator()).sprites
    assert torch.equal(bent[:, 0], bent[:, 2]) and (bent[..., :3] <= bent[..., 3:]).all()
    moved = (bent.float() - straight.float()).abs().flatten(1).mean(1)
    assert (moved > 0).all() and moved.max() < 64  # of 255: other outlines, the same things
