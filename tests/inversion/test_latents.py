"""Latents are encoded once and drawn exactly; batches are a pure function of (seed, step)."""

import errno
import itertools
import os
from collections import Counter

import pytest
import torch

from ldm.errors import UserError
from ldm.inversion.captions import PromptSource
from ldm.inversion.latents import ConceptBatches, LatentCache, cached_latents, encode_latents
from ldm.inversion.masks import ConceptMasks
from ldm.training.stream import StepStream

SCALE = 0.5


class Encoder:
    """A stand-in: 2 x 2 average pooling as mean, a constant std; counts the pictures it sees."""

    def __init__(self, std: float = 0.25) -> None:
        self.seen, self.std = 0, std

    def __call__(self, images: torch.Tensor):
        self.seen += len(images)
        assert not torch.is_grad_enabled()
        mean = torch.nn.functional.avg_pool2d(images, 2)
        return type("P", (), {"mean": mean, "std": torch.full_like(mean, self.std)})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=rng()) * 2 - 1


def build(n: int = 3, mirror: bool = True, std: float = 0.25) -> LatentCache:
    return encode_latents(Encoder(std), pictures(n), scale_factor=SCALE, mirror=mirror, batch_size=2)


def batches(n: int = 3, **changes) -> ConceptBatches:
    wanted = {"batch_size": 4, "seed": 1, "concept": "<x>"} | changes
    return ConceptBatches(build(n), PromptSource("<x>"), **wanted)


# --------------------------------------------------------------------------------- cache
@pytest.mark.parametrize("mirror, times", [(True, 2), (False, 1)])
def test_every_picture_and_its_mirror_is_encoded_exactly_once(mirror, times):
    encoder = Encoder()
    cache = encode_latents(encoder, pictures(5), scale_factor=1.0, mirror=mirror, batch_size=2)
    for _ in range(3):
        cache.sample(torch.arange(5), torch.zeros(5, dtype=torch.bool), rng())
    assert encoder.seen == 5 * times and len(cache) == 5 and cache.mirrored is mirror
    assert cache.shape == (3, 4, 4)


def test_without_noise_a_sample_is_the_scaled_mean_of_the_picture_or_its_mirror():
    cache, images = build(std=0.0), pictures()
    indices, flip = torch.tensor([2, 0, 2]), torch.tensor([True, False, False])
    z = cache.sample(indices, flip, rng())
    shown = torch.stack([images[2].flip(-1), images[0], images[2]])
    assert torch.allclose(z, SCALE * torch.nn.functional.avg_pool2d(shown, 2))


def test_the_noise_has_the_posteriors_std_times_the_scale():
    cache = build(1)
    z = cache.sample(torch.zeros(4000, dtype=torch.int64), torch.zeros(4000).bool(), rng())
    assert torch.allclose(z.std(0), torch.tensor(SCALE * 0.25), rtol=0.06)
    assert torch.allclose(z.mean(0), SCALE * cache.mean[0, 0], atol=0.01)
    again = cache.sample(torch.zeros(4000, dtype=torch.int64), torch.zeros(4000).bool(), rng())
    assert torch.equal(z, again)


def test_a_flip_without_mirrored_pictures_is_refused():
    with pytest.raises(ValueError, match="mirror"):
        build(mirror=False).sample(torch.tensor([0]), torch.tensor([True]), rng())


def test_an_autoencoder_that_gives_nan_is_refused():
    with pytest.raises(UserError, match="not finite"):
        build(std=float("nan"))


def kept(folder, encoder, images=None, fingerprint="f", mirror=True):
    return cached_latents(
        encoder,
        pictures() if images is None else images,
        scale_factor=SCALE,
        mirror=mirror,
        folder=folder,
        fingerprint=fingerprint,
    )


def test_the_cache_on_disk_saves_the_encoding_and_only_for_the_same_thing(tmp_path):
    encoder = Encoder()
    first = kept(tmp_path / "new", encoder)
    again = kept(tmp_path / "new", encoder)
    assert encoder.seen == 6
    assert torch.equal(first.mean, again.mean) and torch.equal(first.std, again.std)
    other = pictures()
    other[0, 0, 0, 0] += 0.01
    for times, change in enumerate(({"images": other}, {"fingerprint": "g"}), start=2):
        kept(tmp_path / "new", encoder, **change)
        assert encoder.seen == 6 * times
    kept(tmp_path / "new", encoder, mirror=False)
    assert encoder.seen == 21 and len(list((tmp_path / "new").iterdir())) == 4


def test_a_broken_cache_file_is_made_again(tmp_path, caplog):
    encoder = Encoder()
    first = kept(tmp_path, encoder)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(kept(tmp_path, encoder).mean, first.mean)
    assert encoder.seen == 12 and "broken" in caplog.text
    kept(tmp_path, encoder)
    assert encoder.seen == 12


def test_a_full_disk_leaves_no_half_cache(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        kept(tmp_path, Encoder())
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- batches
def same(a, b) -> bool:
    return (
        torch.equal(a["z"], b["z"])
        and torch.equal(a["image_index"], b["image_index"])
        and a["prompt"] == b["prompt"]
    )


def test_a_batch_depends_on_seed_concept_and_step_and_on_nothing_before():
    one, two = batches(), batches()
    later = [one.batch(step) for step in range(6)][5]
    torch.manual_seed(99)
    assert same(later, two.batch(5))
    for other in (two.batch(6), batches(seed=2).batch(5), batches(concept="<y>").batch(5)):
        assert not torch.equal(later["z"], other["z"])


def test_a_batch_leaves_global_randomness_alone():
    before = torch.random.get_rng_state()
    batches().batch(3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("n, size", [(3, 4), (5, 2), (4, 4), (1, 3)])
def test_every_picture_is_shown_equally_often_in_a_changing_order(n, size):
    source = batches(n, batch_size=size)
    drawn = torch.cat([source.image_indices(step) for step in range(6 * n)]).tolist()
    rounds = [tuple(drawn[i : i + n]) for i in range(0, len(drawn), n)]
    assert all(sorted(r) == list(range(n)) for r in rounds)
    assert n < 3 or len(set(rounds)) > 1
    assert set(Counter(drawn).values()) == {6 * size}


def test_latents_belong_to_the_pictures_that_a_batch_names_and_half_are_mirrored():
    source = ConceptBatches(build(3, std=0.0), PromptSource("<x>"), batch_size=8, seed=0, concept="c")
    flips = 0
    for step in range(50):
        batch = source.batch(step)
        for z, i in zip(batch["z"], batch["image_index"], strict=True):
            plain, mirror = (torch.equal(z, source.cache.mean[v, i] * SCALE) for v in (0, 1))
            assert plain or mirror
            flips += mirror
    assert 160 < flips < 240
    assert all("<x>" in prompt for prompt in batch["prompt"]) and len(batch["prompt"]) == 8


def test_a_loader_that_starts_at_a_step_continues_the_same_stream():
    source = batches()
    whole = list(itertools.islice(StepStream(source.batch).loader(), 5))
    resumed = list(itertools.islice(StepStream(source.batch, 3).loader(), 2))
    assert all(same(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    assert same(whole[0], source.batch(0))


def test_what_cannot_be_drawn_is_refused():
    cache, words = build(3), PromptSource("*", kind="dual", image_tokens=["a"])
    plain = {"batch_size": 2, "seed": 0, "concept": "c"}
    with pytest.raises(UserError, match="3 pictures need as many words, got 1"):
        ConceptBatches(cache, words, **plain)
    with pytest.raises(UserError, match="captions"):
        ConceptBatches(cache, PromptSource("*", captions=[("*",)]), **plain)
    with pytest.raises(UserError, match="batches of 0"):
        ConceptBatches(cache, PromptSource("*"), **(plain | {"batch_size": 0}))
    with pytest.raises(ValueError, match="mirror"):
        ConceptBatches(build(mirror=False), PromptSource("*"), **plain)
    ConceptBatches(build(mirror=False), PromptSource("*"), **plain, flip_p=0).batch(0)


def test_masks_are_scaled_to_the_latents_and_mirrored_with_them():
    masks = torch.rand(3, 1, 8, 8, generator=rng(1))
    cache = encode_latents(Encoder(0.0), (2 * masks - 1).expand(3, 3, 8, 8), scale_factor=1.0, mirror=True)
    source = ConceptBatches(
        cache, PromptSource("<x>"), batch_size=8, seed=0, concept="c", masks=ConceptMasks((4, 4), masks)
    )
    batch = source.batch(0)  # of pictures that are their own masks
    torch.testing.assert_close(2 * batch["mask"] - 1, batch["z"][:, :1])
    assert batches().batch(0)["mask"] is None
    with pytest.raises(UserError, match="3 pictures need as many masks, got 2"):
        ConceptBatches(
            cache,
            PromptSource("<x>"),
            batch_size=1,
            seed=0,
            concept="c",
            masks=ConceptMasks((4, 4), masks[:2]),
        )
