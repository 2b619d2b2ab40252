"""Sampling: what a seed fixes, how often the network is called, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.sampling.sample import initial_noise, sample, usual_batch

pytestmark = pytest.mark.slow

PROMPTS = ["a photo of a cat", "a red dog on snow", "a tree"]


@pytest.fixture
def calls(tiny_model: LatentDiffusion) -> list[int]:
    """Rows of every call of the UNet."""
    rows: list[int] = []
    tiny_model.unet.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    return rows


def test_pictures_are_float32_in_range(tiny_model: LatentDiffusion) -> None:
    images = sample(tiny_model, PROMPTS, steps=3, seed=0)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1 and images.std() > 0.05
    assert not images.requires_grad


def test_latents_decode_to_the_pictures(tiny_model: LatentDiffusion) -> None:
    z = sample(tiny_model, PROMPTS, steps=3, seed=0, decode=False)
    assert z.shape == (3, *tiny_model.latent_shape)
    images = sample(tiny_model, PROMPTS, steps=3, seed=0)
    torch.testing.assert_close(tiny_model.decode(z).clamp(-1, 1), images, rtol=0, atol=0)


def test_one_string_is_one_prompt(tiny_model: LatentDiffusion) -> None:
    one = sample(tiny_model, PROMPTS[0], steps=2, seed=0)
    assert torch.equal(one, sample(tiny_model, PROMPTS[:1], steps=2, seed=0))


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "dpm++"}, {"sampler": "plms"}])
def test_picture_i_depends_on_seed_and_i_not_on_the_batch(
    tiny_model: LatentDiffusion, options: dict[str, Any]
) -> None:
    def draw(prompts: list[str], batch_size: int) -> Tensor:
        return sample(tiny_model, prompts, steps=3, seed=4, decode=False, batch_size=batch_size, **options)

    together = draw(PROMPTS, 64)
    for batch_size in (1, 2):
        torch.testing.assert_close(draw(PROMPTS, batch_size), together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(draw(PROMPTS[:2], 64), together[:2], rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize(("size", "at_once"), [(64, 64), (256, 16), (512, 4), (768, 1), (2048, 1)])
def test_fewer_large_pictures_are_drawn_at_once(
    tiny_model: LatentDiffusion, calls: list[int], size: int, at_once: int
) -> None:
    tiny_model.image_size = size  # of the model; what is drawn here is small all the same
    sample(tiny_model, PROMPTS[:1] * 5, steps=1, scale=1, seed=0, decode=False)
    assert max(calls) == min(5, at_once) and sum(calls) == 5
    assert usual_batch(size) == at_once


def test_seeds_repeat_and_differ_and_leave_the_global_generator_alone(
    tiny_model: LatentDiffusion,
) -> None:
    state = torch.get_rng_state()
    draws = [sample(tiny_model, "a cat", steps=2, eta=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_pictures_are_new_but_follow_torchs_own_seed(
    tiny_model: LatentDiffusion,
) -> None:
    def draw_two() -> list[Tensor]:
        torch.manual_seed(3)
        return [sample(tiny_model, "a cat", steps=1) for _ in range(2)]

    first, second = draw_two()
    assert not torch.equal(first, second)
    assert torch.equal(first, draw_two()[0])


def test_start_noise_is_standard_normal_and_grows_by_rows(tiny_model: LatentDiffusion) -> None:
    noise = initial_noise(tiny_model, 200, seed=0)
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert torch.equal(initial_noise(tiny_model, 3, seed=0), noise[:3])


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 2), (3.0, 4)])
def test_one_call_a_step_with_twice_the_rows_under_guidance(
    tiny_model: LatentDiffusion, calls: list[int], scale: float, rows: int
) -> None:
    sample(tiny_model, PROMPTS[:2], steps=4, scale=scale, seed=0)
    assert calls == [rows] * 4


def test_pictures_are_drawn_at_most_batch_size_at_once(tiny_model: LatentDiffusion, calls: list[int]) -> None:
    sample(tiny_model, PROMPTS, steps=2, scale=1.0, seed=0, batch_size=2)
    assert calls == [2, 2, 1, 1]


def test_guidance_is_the_formula_on_the_two_predictions(tiny_model: LatentDiffusion) -> None:
    x_T = initial_noise(tiny_model, 1, seed=0)
    cond, uncond = tiny_model.condition(["a cat"]), tiny_model.condition([""])
    t = torch.tensor([1])
    with_, without = (tiny_model.eps(x_T, t, c) for c in (cond, uncond))

    def one_step(**options: Any) -> Tensor:
        return sample(tiny_model, cond=cond, steps=1, seed=0, decode=False, **options)

    # one DDIM step from t = 1 to 0 is linear in eps
    plain, none = one_step(scale=1.0), one_step(scale=0.0)
    torch.testing.assert_close(one_step(scale=4.0), none + 4 * (plain - none), rtol=1e-4, atol=1e-4)
    assert (with_ - without).abs().max() > 1e-3


def test_contexts_and_prompts_are_the_same_thing(tiny_model: LatentDiffusion) -> None:
    cond = tiny_model.condition(PROMPTS)
    by_prompt = sample(tiny_model, PROMPTS, steps=2, seed=0)
    assert torch.equal(sample(tiny_model, cond=cond, steps=2, seed=0), by_prompt)
    for rows in (1, 3):
        uncond = tiny_model.condition([""] * rows)
        again = sample(tiny_model, cond=cond, uncond=uncond, steps=2, seed=0)
        torch.testing.assert_close(again, by_prompt, rtol=1e-5, atol=1e-5)


def test_a_negative_prompt_replaces_the_empty_one(tiny_model: LatentDiffusion) -> None:
    negative = sample(tiny_model, "a cat", steps=2, seed=0, negative_prompt="a dog")
    assert not torch.equal(negative, sample(tiny_model, "a cat", steps=2, seed=0))
    uncond = tiny_model.condition(["a dog"])
    assert torch.equal(negative, sample(tiny_model, "a cat", uncond=uncond, steps=2, seed=0))


def test_start_noise_can_be_given(tiny_model: LatentDiffusion) -> None:
    x_T = initial_noise(tiny_model, 3, seed=8)
    given = sample(tiny_model, PROMPTS, x_T=x_T, steps=2, seed=0)
    assert torch.equal(given, sample(tiny_model, PROMPTS, steps=2, seed=8))


def test_every_picture_may_have_a_seed_and_index_of_its_own(tiny_model: LatentDiffusion) -> None:
    def draw(prompts: list[str], **options: Any) -> Tensor:
        return sample(tiny_model, prompts, steps=2, eta=1.0, decode=False, **options)

    mixed = draw(PROMPTS, draws=[(5, 1), (4, 0), (5, 0)])
    five, four = draw([PROMPTS[2], PROMPTS[0]], seed=5), draw(PROMPTS[1:2], seed=4)
    torch.testing.assert_close(mixed, torch.stack([five[1], four[0], five[0]]), rtol=1e-4, atol=1e-4)


def test_callback_sees_every_step_of_every_batch(tiny_model: LatentDiffusion) -> None:
    seen: list[tuple[int, int, int]] = []
    sample(
        tiny_model,
        PROMPTS,
        steps=2,
        seed=0,
        batch_size=2,
        callback=lambda s: seen.append((s.i, s.t, len(s.z_t))),
    )
    assert seen == [(0, 501, 2), (1, 1, 2), (0, 501, 1), (1, 1, 1)]


def test_a_learnt_word_is_drawn(tiny_model: LatentDiffusion) -> None:
    cat = tiny_model.text.token_table[tiny_model.text.tokenizer.words("cat")]
    tiny_model.add_placeholder("<it>", cat)
    ours, plain = (sample(tiny_model, f"a {w}", steps=2, seed=0) for w in ("<it>", "cat"))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert not ours.requires_grad


def test_a_model_in_bfloat16_draws_finite_float32(tiny_model: LatentDiffusion) -> None:
    tiny_model.to(torch.bfloat16)
    images = sample(tiny_model, PROMPTS[:1], steps=2, seed=0)
    assert images.dtype == torch.float32 and images.isfinite().all()


def test_a_precision_is_that_of_the_drawing_alone(tiny_model: LatentDiffusion) -> None:
    seen = []
    tiny_model.unet.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    tiny_model.autoencoder.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    before = [t.clone() for t in (*tiny_model.parameters(), *tiny_model.buffers())]
    usual = sample(tiny_model, PROMPTS, steps=2, seed=0)
    half = sample(tiny_model, PROMPTS, steps=2, seed=0, precision="bf16")
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2 and half.dtype == torch.float32
    assert 0 < (half - usual).abs().mean() < 0.05
    assert all(map(torch.equal, before, (*tiny_model.parameters(), *tiny_model.buffers())))
    assert torch.equal(sample(tiny_model, PROMPTS, steps=2, seed=0), usual)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "prompts or cond"),
        ({"prompts": "a cat", "cond": torch.zeros(1, 12, 32)}, "prompts or cond"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": "a cat", "x_T": torch.zeros(2, 4, 4, 4)}, "2 rows for 1"),
        ({"prompts": "a cat", "draws": [(0, 0), (0, 1)]}, "2 draws for 1"),
        ({"prompts": "a cat", "draws": [(0, 0)], "seed": 0}, "no seed"),
        ({"prompts": "a cat", "sampler": "euler"}, "unknown sampler 'euler'"),
        ({"prompts": "a cat", "steps": 0}, "steps"),
        ({"prompts": "a cat", "steps": 1001}, "steps"),
        ({"prompts": "a cat", "sampler": "plms", "eta": 0.5}, "eta"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    tiny_model: LatentDiffusion, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sample(tiny_model, **options)
    assert "\n" not in str(caught.value)
