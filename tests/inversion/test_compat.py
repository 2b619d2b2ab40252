"""Each quirk of the official code by its own switch: what it gives in closed form, and the default."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.config import resolve, to_plain
from ldm.data.concept import Concept, load_concept
from ldm.errors import UserError
from ldm.inversion.compat import FIXED, OFFICIAL, CompatConfig, encoder_calls, growth_steps, switches
from ldm.model import LatentDiffusion
from ldm.text.bert import BertConditioner
from ldm.training import optim
from ldm.training.config import InversionConfig, as_official
from ldm.training.fit import TrainerConfig
from ldm.training.run import learn

BASE = InversionConfig(
    images=Path(),
    placeholder="<toy>",
    init="cat",
    templates="plain",
    allow_untrained=True,
    trainer=TrainerConfig(max_steps=1, accelerator="cpu"),
)


def start(model: LatentDiffusion, quirks: CompatConfig = FIXED, **settings: Any) -> torch.Tensor:
    """Where a word of these settings starts."""
    model.add_placeholder("<toy>", **{"init": "cat", **settings}, compat=quirks)
    vectors = model.manager.vectors("<toy>").detach().clone()
    model.remove_placeholder("<toy>")
    return vectors


def word(model: LatentDiffusion, text: str) -> torch.Tensor:
    return model.text.token_table[model.text.tokenizer.words(text)].detach()


# ------------------------------------------------------------------ the config key
def test_official_is_every_switch_and_the_default_none() -> None:
    assert all(getattr(OFFICIAL, f.name) for f in fields(CompatConfig))
    assert not any(getattr(FIXED, f.name) for f in fields(CompatConfig))
    assert InversionConfig(Path(), "*").compat == FIXED


def test_a_config_names_all_of_them_or_single_ones() -> None:
    def read(compat: Any) -> CompatConfig:
        config = resolve(InversionConfig, {"images": "p", "placeholder": "*", "compat": compat})
        assert resolve(InversionConfig, to_plain(config)) == config
        return switches(config.compat)

    assert read("official") == OFFICIAL
    assert read({"weight_decay": True, "copies": True}) == CompatConfig(weight_decay=True, copies=True)
    with pytest.raises(UserError, match="did you mean 'copies'"):
        read({"copys": True})
    with pytest.raises(UserError, match="compat"):
        read("oficial")


# ------------------------------------------------------------------ where v* starts
def test_copies(tiny_model: LatentDiffusion) -> None:
    cat = word(tiny_model, "cat")
    same = start(tiny_model, CompatConfig(copies=True), num_vectors=3)
    assert same.equal(cat.repeat(3, 1))
    spread = start(tiny_model, num_vectors=3)
    assert spread[0].equal(cat[0]) and torch.pdist(spread).min() > 0


def test_position(tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    cat, position = word(tiny_model, "cat"), torch.arange(32.0)
    quirk = CompatConfig(position=True)
    assert start(tiny_model, quirk).equal(cat)  # LDM's encoder: the official code adds nothing
    monkeypatch.setattr(BertConditioner, "init_position", position)
    assert start(tiny_model, quirk).equal(cat + position)
    assert start(tiny_model).equal(cat)


def test_one_token(tiny_model: LatentDiffusion) -> None:
    with pytest.raises(UserError, match="2 tokens"):
        start(tiny_model, CompatConfig(one_token=True), init="cat toy")
    assert start(tiny_model, CompatConfig(one_token=True)).equal(word(tiny_model, "cat"))
    assert start(tiny_model, init="cat toy", num_vectors=2).equal(word(tiny_model, "cat toy"))


def test_uniform(tiny_model: LatentDiffusion) -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    settings = {"init": None, "num_vectors": 50}
    official = start(tiny_model, CompatConfig(uniform=True), generator=generator(), **settings)
    assert official.equal(torch.rand(50, 32, generator=generator()))
    # its norm is about sqrt(D / 3); the default's is a word's
    assert official.norm(dim=1).mean() == pytest.approx((32 / 3) ** 0.5, rel=0.03)
    fixed = start(tiny_model, generator=generator(), **settings)
    median = tiny_model.text.token_table.norm(dim=1).median()
    torch.testing.assert_close(fixed.norm(dim=1), median.expand(50))


# ------------------------------------------------------------------ in training
@pytest.fixture
def concept() -> Concept:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (Path("a"), Path("b"), Path("c")), ("1", "2", "3"))


@pytest.mark.parametrize("falls_off", [False, True])
def test_end_falls_off(tiny_model: LatentDiffusion, concept: Concept, falls_off: bool) -> None:
    quirk = CompatConfig(end_falls_off=falls_off)
    learn(tiny_model, concept, replace(BASE, num_vectors=8, compat=quirk), progress=False)
    # [CLS] a photo of a <toy> on the [SEP]: 8 + 7 positions of which 12 are kept
    text = tiny_model.text
    ids = text.tokenize(["a photo of a <toy> on the"])
    ids, _ = tiny_model.manager(ids, text.embed(ids))
    assert ids.shape == (1, 12)
    end, toy = text.tokenizer.end_id, tiny_model.manager.placeholders["<toy>"]
    assert ids[0, -1].item() == (toy if falls_off else end)


def official_counter(steps: int, pictures: int, batch: int, accumulate: int, every: int) -> list[int]:
    """The count at each step's last call, by going through a run call by call."""
    validation = 2 * -(-pictures // batch)
    count, at, batches = min(4, validation), [], 0
    for step in range(steps):
        for i in range(accumulate):
            count += 1
            if i == 0:
                at.append(count)
            batches += 1
            if batches % -(-100 * pictures // batch) == 0:
                count += validation
        if every and (step + 1) % every == 0:
            count += 2
    return at


@pytest.mark.parametrize("run", [(5, 4, 1, 500), (3, 2, 2, 0), (1, 4, 1, 100)])
def test_encoder_calls(run: tuple[int, int, int, int]) -> None:
    pictures, batch_size, accumulate, image_every = run
    settings = {"pictures": pictures, "batch_size": batch_size}
    settings |= {"accumulate": accumulate, "image_every": image_every}
    at = official_counter(4200, *run)
    assert [encoder_calls(step, **settings) + 1 for step in range(4200)] == at
    # the k-th further vector is used from the step on whose call brings the count to 2000 k
    steps = growth_steps((2000, 4000), **settings)
    assert steps == tuple(next(i for i, count in enumerate(at) if count >= c) for c in (2000, 4000))
    assert steps != (2000, 4000)


def test_encoder_calls_move_the_steps_of_a_progressive_word(
    tiny_model: LatentDiffusion, concept: Concept
) -> None:
    for quirk, step in ((FIXED, 8), (CompatConfig(encoder_calls=True), 5)):  # 2 calls before training
        config = replace(BASE, num_vectors=2, progressive=(8,), compat=quirk)
        learn(tiny_model, concept, config, progress=False)
        counts = [tiny_model.manager.count("<toy>", s) for s in (step - 1, step)]
        assert counts == [1, 2]


def test_weight_decay() -> None:
    def after(steps: int, quirk: CompatConfig) -> float:
        """What the optimiser makes of v = 1 in steps without a gradient."""
        v = torch.nn.Parameter(torch.ones(1))
        settings = as_official(replace(BASE, compat=quirk), pictures=3).optim
        optimizer = optim.configure([v], settings, steps, lr=0.04)["optimizer"]
        for _ in range(steps):
            v.grad = torch.zeros(1)
            optimizer.step()
        return v.item()

    quirk = CompatConfig(weight_decay=True)
    assert after(100, quirk) == pytest.approx((1 - 0.04 * 0.01) ** 100)
    assert after(100, FIXED) == 1
    assert (1 - 0.04 * 0.01) ** 5000 == pytest.approx(0.135, abs=1e-3)  # over a run of the paper's


# ------------------------------------------------------------------ pictures
def test_squash(tmp_path: Path) -> None:
    picture = Image.new("RGB", (48, 16), "black")
    picture.paste("white", (16, 0, 32, 16))
    picture.save(tmp_path / "a.png")
    squashed, cropped = (
        load_concept(tmp_path, 16, **replace(BASE, compat=quirk).framing()).images[0]
        for quirk in (CompatConfig(squash=True), FIXED)
    )
    assert (cropped == 1).all()  # the middle third
    for columns, value in ((slice(0, 4), -1), (slice(7, 9), 1), (slice(12, 16), -1)):
        assert (squashed[:, :, columns] == value).all()
    assert replace(BASE, compat="official", fit="crop").framing()["fit"] == "crop"  # center_crop


def test_ignore_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), "black")
    picture.paste("white", (0, 0, 16, 8))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    as_stored, upright = (
        load_concept(tmp_path, 16, **replace(BASE, compat=quirk).framing()).images[0]
        for quirk in (CompatConfig(ignore_orientation=True), FIXED)
    )
    assert (as_stored[:, :8] == 1).all() and (as_stored[:, 8:] == -1).all()
    assert upright.equal(as_stored.flip(1, 2))
