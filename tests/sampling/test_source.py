"""Pictures to start from: how they are read, and what sampling makes of them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import ldm
from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.sampling.sample import initial_noise, sample
from ldm.sampling.source import Source, find_noise, load_source

pytestmark = pytest.mark.slow

PROMPTS = ["a photo of a cat", "a red dog on snow"]


def noisy(*shape: int) -> torch.Tensor:
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def half(tiny_model: LatentDiffusion) -> Source:
    """A picture whose left half is to be painted."""
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1
    return load_source(tiny_model, noisy(16, 16), mask=mask)


# ------------------------------------------------------------------ reading
def test_a_photo_is_turned_and_cropped_and_its_mask_with_it(
    tiny_model: LatentDiffusion, tmp_path: Path
) -> None:
    # stored lying: 40 x 20, upright it is 20 x 40 with red above and blue below
    photo = Image.new("RGB", (40, 20), "red")
    photo.paste("blue", (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo.save(tmp_path / "photo.png", exif=exif)
    mask = Image.new("L", (10, 20))  # of another size, upright; white where the photo is blue
    mask.paste(255, (0, 10, 10, 20))
    mask.save(tmp_path / "mask.png")
    source = load_source(tiny_model, tmp_path / "photo.png", mask=tmp_path / "mask.png")
    assert source.image.shape == (3, 16, 16) and source.mask is not None
    assert source.mask.shape == (1, 16, 16)
    assert (source.image[0, :6] > 0.9).all() and (source.image[2, 10:] > 0.9).all()
    assert (source.mask[0, :6] < 0.1).all() and (source.mask[0, 10:] > 0.9).all()


def test_padding_and_what_is_transparent_in_a_mask_is_kept(tiny_model: LatentDiffusion) -> None:
    photo = Image.new("RGB", (32, 16), "red")
    mask = Image.new("RGBA", (32, 16), (255, 255, 255, 255))
    mask.paste((255, 255, 255, 0), (0, 0, 16, 16))
    source = load_source(tiny_model, photo, mask=mask, fit="pad", background="blue")
    assert source.mask is not None
    assert (source.image[2, :4] > 0.9).all() and (source.mask[0, :3] < 0.1).all()
    assert (source.mask[0, 5:11, :7] < 0.1).all() and (source.mask[0, 5:11, 9:] > 0.9).all()


def test_strength_is_full_with_a_mask_and_partial_without(tiny_model: LatentDiffusion, half: Source) -> None:
    assert half.strength == 1.0
    assert load_source(tiny_model, noisy(16, 16)).strength == 0.6


def test_one_painted_pixel_opens_its_latent(tiny_model: LatentDiffusion) -> None:
    mask = torch.zeros(1, 16, 16)
    mask[0, 5, 9] = 1
    found = load_source(tiny_model, noisy(16, 16), mask=mask).latent_mask(tiny_model)
    assert found is not None and found.shape == (1, 1, 4, 4)
    assert found.nonzero().tolist() == [[0, 0, 1, 2]]


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, float("nan")])
def test_a_strength_outside_its_range_is_refused(tiny_model: LatentDiffusion, strength: float) -> None:
    with pytest.raises(UserError, match="strength"):
        load_source(tiny_model, noisy(16, 16), strength=strength)


def test_wrong_sizes_and_files_are_refused(tiny_model: LatentDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the mask has shape"):
        load_source(tiny_model, noisy(16, 16), mask=torch.ones(16, 16))
    with pytest.raises(UserError, match="give .3, 16, 16"):
        load_source(tiny_model, noisy(8, 8))
    with pytest.raises(UserError, match="no picture"):
        load_source(tiny_model, tmp_path / "none.png")


# ------------------------------------------------------------------ drawing
@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm++"])
def test_outside_the_mask_latents_and_pixels_are_the_pictures(
    tiny_model: LatentDiffusion, half: Source, sampler: str
) -> None:
    options = {"steps": 3, "seed": 0, "source": half, "sampler": sampler}
    z = sample(tiny_model, PROMPTS, decode=False, **options)
    kept = half.latents(tiny_model)[..., 2:]
    assert torch.equal(z[..., 2:], kept.expand(2, -1, -1, -1))
    images = sample(tiny_model, PROMPTS, **options)
    assert torch.equal(images[..., 8:], half.image[..., 8:].expand(2, -1, -1, -1))
    assert (images[0, ..., :8] - images[1, ..., :8]).abs().max() > 0.01
    assert (images[..., :8] - half.image[..., :8]).abs().mean() > 0.1


def test_pixels_outside_the_mask_may_be_the_autoencoders(tiny_model: LatentDiffusion) -> None:
    mask = torch.zeros(1, 16, 16)
    blank = load_source(tiny_model, noisy(16, 16), mask=mask, keep_pixels=False)
    image = sample(tiny_model, PROMPTS[0], steps=2, seed=0, source=blank)
    expected = tiny_model.decode(blank.latents(tiny_model)).clamp(-1, 1)
    assert torch.equal(image, expected)


def test_a_full_mask_is_plain_sampling(tiny_model: LatentDiffusion) -> None:
    full = load_source(tiny_model, noisy(16, 16), mask=torch.ones(1, 16, 16))
    images = sample(tiny_model, PROMPTS, steps=2, seed=0, source=full)
    assert torch.equal(images, sample(tiny_model, PROMPTS, steps=2, seed=0))


def test_strength_is_a_share_of_the_steps(tiny_model: LatentDiffusion) -> None:
    seen: list[int] = []
    source = load_source(tiny_model, noisy(16, 16), strength=0.4)
    sample(tiny_model, PROMPTS[0], steps=5, seed=0, source=source, callback=lambda s: seen.append(s.t))
    assert seen == [201, 1]


def test_a_model_in_bfloat16_edits_too(tiny_model: LatentDiffusion, half: Source) -> None:
    tiny_model.to(torch.bfloat16)
    images = sample(tiny_model, PROMPTS[0], steps=2, seed=0, source=half)
    assert images.dtype == torch.float32 and images.isfinite().all()


# ------------------------------------------------------------------ the noise behind a picture
def test_sampling_from_the_noise_found_returns_to_the_latents(tiny_model: LatentDiffusion) -> None:
    # random weights are rougher than trained ones: a step would not be a contraction
    tiny_model.unet.out[2].weight.data *= 0.03
    source = load_source(tiny_model, noisy(16, 16))
    z_0 = source.latents(tiny_model)

    def error(**options: int) -> float:
        x_T = find_noise(tiny_model, source, PROMPTS[0], steps=10, **options)
        assert x_T.shape == (1, *tiny_model.latent_shape)
        z = sample(tiny_model, PROMPTS[0], x_T=x_T, steps=10, scale=1.0, decode=False)
        return float((z - z_0).norm() / z_0.norm())

    assert error() < 1e-3 and error(iterations=1) > 0.05


def test_noise_is_found_under_guidance_as_it_is_sampled(tiny_model: LatentDiffusion) -> None:
    source, options = load_source(tiny_model, noisy(16, 16)), {"steps": 1, "iterations": 3}
    plain = find_noise(tiny_model, source, PROMPTS[0], **options)
    against_itself = {"scale": 3.0, "negative_prompt": PROMPTS[0], **options}
    torch.testing.assert_close(
        find_noise(tiny_model, source, PROMPTS[0], **against_itself), plain, rtol=1e-3, atol=1e-3
    )
    guided = find_noise(tiny_model, source, PROMPTS[0], scale=3.0, **options)
    assert (guided - plain).abs().max() > 1e-3


def test_one_start_noise_serves_several_prompts(tiny_model: LatentDiffusion) -> None:
    x_T = initial_noise(tiny_model, 1, seed=0)
    both = sample(tiny_model, PROMPTS, x_T=x_T, steps=2, decode=False)
    second = sample(tiny_model, PROMPTS[1], x_T=x_T, steps=2, decode=False)
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)


def test_it_is_public() -> None:
    assert ldm.load_source is load_source and ldm.find_noise is find_noise


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize(
    ("size", "mask_size"),
    [
        ((40, 20), (30, 20)),
        ((40, 20), (20, 40)),
        ((20, 40), (30, 20)),
        ((20, 20), (40, 20)),
        ((40, 20), (20, 10)),
        ((40, 20), (41, 20)),
    ],
)
def test_a_mask_of_any_aspect_paints_the_place_that_it_covers(
    tiny_model: LatentDiffusion, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    size: tuple[int, int], mask_size: tuple[int, int], fit: str,
) -> None:  # fmt: skip
    """White over the right 6 tenths and lower half of the picture, which is blue there."""

    def corner(size: tuple[int, int], mode: str, colour: object) -> Image.Image:
        picture = Image.new(mode, size)
        picture.paste(colour, (round(size[0] * 0.4), size[1] // 2, *size))  # type: ignore[arg-type]
        return picture

    photo, mask = corner(size, "RGB", "blue"), corner(mask_size, "L", 255)
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    for given in ((photo, mask), (tmp_path / "photo.png", tmp_path / "mask.png")):
        source = load_source(tiny_model, given[0], mask=given[1], fit=fit)
        assert source.mask is not None
        blue = (source.image[2] + 1) / 2 * (source.image[0] < 0)  # not the white of padding
        assert (source.mask[0] - blue).abs().mean() < 0.06
    said = "stretched" in caplog.text
    assert said == (abs(size[0] / size[1] - mask_size[0] / mask_size[1]) > 0.1)


def test_a_square_mask_is_laid_over_the_square_that_is_left(
    tiny_model: LatentDiffusion, caplog: pytest.LogCaptureFixture
) -> None:
    mask = Image.new("L", (8, 8))
    mask.paste(255, (4, 0, 8, 8))
    source = load_source(tiny_model, Image.new("RGB", (40, 20)), mask=mask)
    assert source.mask is not None and not caplog.records
    assert (source.mask[0, :, :7] < 0.1).all() and (source.mask[0, :, 9:] > 0.9).all()
