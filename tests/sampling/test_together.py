"""Pictures of many words in one batch: those of each word alone, and what happens to one is its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import Job
from ldm.inversion.many.pack import learn_many
from ldm.inversion.report import at_the_end, on_the_way
from ldm.inversion.run import learn
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.inversion.task import read_pictures
from ldm.io.embeddings import load_embedding
from ldm.io.runs import create_run
from ldm.sampling import together as drawing
from ldm.sampling.sample import sample
from ldm.sampling.together import Order, draw, draw_together
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig

pytestmark = pytest.mark.slow

#: of a range of 2, where pictures are those of one model: half a level of 255
TOLERANCE = 1 / 255
BASE = InversionConfig(
    images=Path(),
    placeholder="",
    init="cat",
    captions=CaptionsConfig(templates="plain"),
    show=ShowConfig(prompts=("a photo of {}", "{} on snow"), samples_per_prompt=2, steps=3, scale=2.0),
    batch_size=2,
    stop=StopConfig(monitor_every=4, allow_untrained=True),
    optim=OptimConfig(lr=1e-3, schedule="constant"),
    trainer=TrainerConfig(max_steps=4, accelerator="cpu", checkpoint_every=4, image_every=2),
    logging=LoggingConfig(loggers=()),
)


@pytest.fixture
def model(tiny_config: ModelConfig, randomise: Callable[..., nn.Module]) -> LatentDiffusion:
    model = build(tiny_config)
    for part in model.parts.values():
        randomise(part)
    return model.freeze()


@pytest.fixture
def rows(model: LatentDiffusion) -> list[int]:
    """Of every call of the UNet that no gradient is asked of."""
    found: list[int] = []
    model.unet.register_forward_hook(
        lambda m, args, out: None if torch.is_grad_enabled() else found.append(len(out))
    )
    return found


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Three words of their own seeds, prompts and pictures; the last one is drawn with more guidance."""
    made = []
    for i, name in enumerate("abc"):
        folder = tmp_path / name
        folder.mkdir()
        rng = torch.Generator().manual_seed(i)
        pixels = torch.randint(256, (16, 16, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "0.png")
        config = replace(
            BASE,
            images=folder,
            placeholder=f"<{name}>",
            seed=i,
            show=replace(BASE.show, scale=2.0 + (i == 2)),
        )
        made.append(Job(name, config))
    return made


def order(model: LatentDiffusion, name: str, **changes: object) -> Order:
    """Of a twin of the model that knows the word <name>, as no other twin does."""
    twin = model.with_own_words()
    vectors = torch.randn(1, twin.text.width, generator=torch.Generator().manual_seed(ord(name)))
    twin.add_placeholder(f"<{name}>", vectors)
    values = {"prompts": (f"a photo of <{name}>", f"<{name}>"), "sampler": "ddim", "steps": 3, "scale": 2.0}
    return Order(**{"model": twin, "seed": ord(name), **values, **changes})  # type: ignore[arg-type]


def alone(order: Order) -> Tensor:
    """The pictures as a user draws them."""
    sampler, steps, scale = order.manner
    return sample(order.model, order.prompts, sampler=sampler, steps=steps, scale=scale, seed=order.seed)


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_pictures_drawn_together_are_those_drawn_alone(model: LatentDiffusion, rows: list[int]) -> None:
    orders = [order(model, name) for name in "abc"]
    together = list(draw_together(orders))
    assert rows == [12] * 3  # three steps, six pictures with guidance
    for one, images in zip(orders, together, strict=True):
        assert isinstance(images, Tensor)
        assert float((images - alone(one)).abs().max()) < TOLERANCE
        assert torch.equal(draw(one), alone(one))
    assert (alone(orders[0]) - alone(orders[1])).abs().max() > 50 * TOLERANCE


def test_a_batch_is_no_larger_than_a_usual_one_and_of_one_manner(
    model: LatentDiffusion, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "usual_batch", lambda size: 5)
    faster = order(model, "e", steps=2)
    orders = [order(model, "a"), order(model, "b"), order(model, "c"), order(model, "d"), faster]
    drawn = list(draw_together([*orders, order(model, "f", prompts=())]))
    assert rows == [8] * 6 + [4] * 2
    assert [len(images) for images in drawn] == [2] * 5 + [0]  # type: ignore[arg-type]


def test_what_is_wrong_with_one_order_stops_no_other(model: LatentDiffusion) -> None:
    orders = [order(model, "a"), order(model, "b", prompts=("x",), steps=9999), order(model, "c")]
    first, second, third = draw_together(orders)
    assert isinstance(second, UserError) and "9999" in str(second)
    for images, one in ((first, orders[0]), (third, orders[2])):
        assert isinstance(images, Tensor) and float((images - alone(one)).abs().max()) < TOLERANCE
    with pytest.raises(UserError, match="9999"):
        draw(orders[1])


@pytest.mark.parametrize(("room", "tried"), [(3, [4, 2]), (0, [4, 2, 1, 2, 1, 2, 1])])
def test_out_of_memory_is_met_by_fewer_pictures_at_a_time(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, room: int, tried: list[int]
) -> None:
    sizes: list[int] = []

    def limited(*words: object, batch_size: int, **settings: object) -> Tensor:
        sizes.append(batch_size)
        if batch_size > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return sample(*words, batch_size=batch_size, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "sample", limited)
    orders = [order(model, "a"), order(model, "b")]
    drawn = list(draw_together(orders))
    assert sizes == tried
    for images, one in zip(drawn, orders, strict=True):
        if room:
            assert isinstance(images, Tensor) and float((images - alone(one)).abs().max()) < TOLERANCE
        else:
            assert "one picture" in str(images)


def test_what_is_drawn_follows_the_settings(model: LatentDiffusion) -> None:
    config = replace(BASE, placeholder="<x>", show=replace(BASE.show, steps=50))
    way, end = on_the_way(model, config), at_the_end(model, config)
    assert way.prompts == ("a photo of <x>", "<x> on snow") and way.manner == ("dpm++", 20, 2.0)
    assert end.prompts == tuple(prompt for prompt in way.prompts for _ in range(2))
    assert end.manner == ("ddim", 50, 2.0) and on_the_way(model, BASE).steps == 3


def test_the_pictures_of_a_packs_concepts_are_those_of_runs_of_their_own(
    model: LatentDiffusion, jobs: list[Job], rows: list[int], tmp_path: Path
) -> None:
    learn_many(model, jobs, tmp_path / "runs", pack=3, progress=False)
    # two prompts and guidance: on the way two concepts make 8 rows, at the end 16; the third is unlike
    assert rows.count(8) == 3 * 3 + 3 and rows.count(16) == 3 and rows.count(4) >= 3 * 3
    for job in jobs:
        concept, _ = read_pictures(job.config, model.image_size)
        run = create_run(tmp_path / "alone" / job.name)
        learn(model.with_own_words(), concept, job.config, run=run, progress=False)
        own = sorted((run.path / "images").iterdir())
        assert len(own) == 1 + 3 + 4  # the picture, three steps, two of two prompts
        packed = tmp_path / "runs" / job.name / "images"
        assert [path.name for path in own] == sorted(path.name for path in packed.iterdir())
        for path in own:  # v* differs within rounding (test_pack.py), a picture by a level of 255
            assert np.abs(levels(path) - levels(packed / path.name)).max() <= 1, path


def test_the_last_pictures_are_drawn_by_the_model_as_it_was_loaded(
    model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    """Training in bfloat16 stores its weights so; a run of its own has them back by then."""
    trainer = replace(BASE.trainer, precision="bf16-mixed")
    jobs = [replace(job, config=replace(job.config, trainer=trainer)) for job in jobs]
    learn_many(model, jobs, tmp_path / "runs", progress=False)
    for job in jobs:
        run = tmp_path / "runs" / job.name
        twin = model.with_own_words()
        word = load_embedding(run / "embeddings.safetensors")
        twin.add_placeholder(word.placeholder, word.vectors)
        for i, image in enumerate(alone(at_the_end(twin, job.config))):
            expected = ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()
            assert np.abs(levels(run / "images" / f"final_{i:03d}.png") - expected).max() <= 1
