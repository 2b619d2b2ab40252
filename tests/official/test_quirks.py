"""Each quirk of the official code by its own switch: what it gives in closed form, and the default."""

import copy
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.backbone.loading import load
from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.config import resolve, to_plain
from ldm.errors import UserError
from ldm.inversion.concept import Concept, concept_of
from ldm.inversion.config import InversionConfig, as_official, settle
from ldm.inversion.run import learn, run_inversion
from ldm.inversion.sections import CaptionsConfig, ComputeConfig, PicturesConfig, StopConfig
from ldm.io.checkpoints import collect
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.io.runs import create_run
from ldm.official.quirks import (
    AS_SETTINGS,
    FIXED,
    OFFICIAL,
    CompatConfig,
    encoder_calls,
    growth_steps,
    switches,
)
from ldm.text.bert import BertConditioner
from ldm.text.bpe import ClipTokenizer
from ldm.training import optim
from ldm.training.fit import LoggingConfig, TrainerConfig

pytestmark = pytest.mark.slow

BASE = InversionConfig(
    images=Path(),
    placeholder="<toy>",
    init="cat",
    captions=CaptionsConfig(templates="plain"),
    stop=StopConfig(allow_untrained=True),
    trainer=TrainerConfig(max_steps=1, accelerator="cpu"),
)


def start(model: LatentDiffusion, quirks: CompatConfig = FIXED, **settings: Any) -> torch.Tensor:
    """Where a word of these settings starts."""
    model.add_placeholder(**{"placeholder": "<toy>", "init": "cat", **settings}, compat=quirks)
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

    settings = {"init": None, "num_vectors": 10}
    official = start(tiny_model, CompatConfig(uniform=True), generator=generator(), **settings)
    assert official.equal(torch.rand(10, 32, generator=generator()))
    # its norm is about sqrt(D / 3); the default's is a word's
    assert official.norm(dim=1).mean() == pytest.approx((32 / 3) ** 0.5, rel=0.06)
    fixed = start(tiny_model, generator=generator(), **settings)
    median = tiny_model.text.token_table.norm(dim=1).median()
    torch.testing.assert_close(fixed.norm(dim=1), median.expand(10))


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
    ids, *_ = tiny_model.manager(ids, text.embed(ids))
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


def test_the_count_of_encoder_calls_is_not_saved_with_the_vectors_alone(
    tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path
) -> None:
    for quirk, moves in ((CompatConfig(encoder_calls=True), True),
                         (CompatConfig(encoder_calls=True, vectors_only=True), False)):  # fmt: skip
        second = []
        for resume, steps in ((False, 7), (True, 9 if moves else 2)):
            config = replace(BASE, num_vectors=2, progressive=(8,), compat=quirk,
                             show=replace(BASE.show, samples_per_prompt=0), logging=LoggingConfig(loggers=()),
                             trainer=replace(BASE.trainer, max_steps=steps, image_every=0))  # fmt: skip
            run = create_run(tmp_path / str(moves), resume=resume)
            learn(tiny_model, concept, config, run=run, resume=resume, progress=False)
            second.append(tiny_model.manager.vectors("<toy>")[1].clone())
        # in use from step 5 on: two more steps are the run's 8th and 9th, or its first
        assert torch.equal(*second) != moves


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
        concept_of(tmp_path, 16, replace(BASE, compat=quirk).framing()).images[0]
        for quirk in (CompatConfig(squash=True), FIXED)
    )
    assert (cropped == 1).all()  # the middle third
    for columns, value in ((slice(0, 4), -1), (slice(7, 9), 1), (slice(12, 16), -1)):
        assert (squashed[:, :, columns] == value).all()
    center_crop = replace(BASE, compat="official", pictures=PicturesConfig(fit="crop"))
    assert center_crop.framing().fit == "crop"


def test_ignore_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), "black")
    picture.paste("white", (0, 0, 16, 8))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    as_stored, upright = (
        concept_of(tmp_path, 16, replace(BASE, compat=quirk).framing()).images[0]
        for quirk in (CompatConfig(ignore_orientation=True), FIXED)
    )
    assert (as_stored[:, :8] == 1).all() and (as_stored[:, 8:] == -1).all()
    assert upright.equal(as_stored.flip(1, 2))


def test_every_file(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "a", format="PNG")  # the content says what it is
    quirk = replace(BASE, compat=CompatConfig(every_file=True)).framing()
    assert [p.name for p in concept_of(tmp_path, 16, quirk).paths] == ["a", "b.png"]
    for other in ("b.txt", ".hidden"):
        (tmp_path / other).write_text("a <toy>")
        assert [p.name for p in concept_of(tmp_path, 16, BASE.framing()).paths] == ["b.png"]
        with pytest.raises(UserError, match=f"{other}: it is corrupt or of an unknown kind"):
            concept_of(tmp_path, 16, quirk)
        (tmp_path / other).unlink()


# ------------------------------------------------------------------ the placeholder and its prompts
def test_takes_word(tiny_model: LatentDiffusion, concept: Concept) -> None:
    text, quirk = tiny_model.text, CompatConfig(takes_word=True)
    before = text.tokenize(["a Toy on the beach"])
    config = replace(BASE, placeholder="toy")
    learn(tiny_model, concept, config, progress=False)  # a string: a token is still spelled "Toy"
    assert text.tokenize(["a Toy on the beach"]).equal(before)
    learn(tiny_model, concept, replace(config, compat=quirk), progress=False)
    own = tiny_model.manager.placeholders["toy"]
    assert text.tokenize(["a Toy on the beach"]).equal(before.where(before != before[0, 2], own))
    tiny_model.remove_placeholder("toy")
    assert text.tokenize(["a Toy on the beach"]).equal(before)
    for name in ("<toy>", "cat toy", "*"):  # several tokens, two words, none of this vocabulary
        with pytest.raises(UserError, match="is not one token of the vocabulary"):
            start(tiny_model, quirk, placeholder=name)


def test_a_taken_word_is_not_a_part_of_another_token() -> None:
    text = ClipTokenizer(12)
    star, pair = text.vocabulary_id("*"), text.vocabulary_id("**")
    own = text.add_placeholder("*", takes_word=True)
    assert star == 265 and pair is not None
    assert text.words("a * b ** S*") == [text.vocabulary_id("a"), own, text.vocabulary_id("b"), pair,
                                         text.vocabulary_id("S"), own]  # fmt: skip
    twin = copy.deepcopy(text)
    text.remove_placeholder("*")
    assert text.words("*") == [star] and twin.words("*") == [own]


def test_star_prompts(
    tiny_model: LatentDiffusion, concept: Concept, caplog: pytest.LogCaptureFixture
) -> None:
    for quirk, moves in ((FIXED, True), (CompatConfig(star_prompts=True), False)):
        caplog.clear()
        vectors = learn(tiny_model, concept, replace(BASE, compat=quirk), progress=False).vectors
        assert vectors.equal(word(tiny_model, "cat")) == (not moves)
        warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warned) == (not moves) and all("prompts hold '*' and not '<toy>'" in w for w in warned)


# ------------------------------------------------------------------ the trainer
def test_ignore_checkpointing(tiny_config: ModelConfig, concept: Concept) -> None:
    params = {**tiny_config.unet["params"], "use_checkpoint": True}
    model = build(replace(tiny_config, unet={**tiny_config.unet, "params": params})).freeze()
    block, calls = model.unet.middle_block[0], []
    block.out_layers.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    quirk = CompatConfig(ignore_checkpointing=True)
    for config, passes in (
        (BASE, 2),
        (replace(BASE, compat=quirk), 1),
        (replace(BASE, compat=quirk, compute=ComputeConfig(checkpointing=True)), 2),  # what is given wins
    ):
        calls.clear()
        learn(model, concept, config, progress=False)
        assert sum(calls) == passes and block.use_checkpoint


def test_vectors_only(tiny_model: LatentDiffusion, concept: Concept, tmp_path: Path) -> None:
    def steps(name: str, n: int, quirk: CompatConfig, resume: bool = False) -> torch.Tensor:
        config = replace(
            BASE,
            compat=quirk,
            trainer=replace(BASE.trainer, max_steps=n, image_every=0),
            show=replace(BASE.show, samples_per_prompt=0, prompts=()),
            logging=LoggingConfig(loggers=()),
        )
        run = create_run(tmp_path / name, resume=resume)
        return learn(tiny_model, concept, config, run=run, resume=resume, progress=False).vectors

    quirk = CompatConfig(vectors_only=True)
    learned = steps("quirk", 3, quirk)
    last = tmp_path / "quirk" / "checkpoints" / "last.ckpt"
    kept = torch.load(last, weights_only=True)
    assert set(kept) == {"state_dict", "base_model"}
    assert {key.split(".")[1] for key in kept["state_dict"]} == {"manager"}
    # a resumed run is one that starts from the learned vectors and does all of its steps
    save_embeddings(Embedding("<toy>", learned), tmp_path / "learned.safetensors")
    start_there = replace(
        BASE,
        init_embedding=tmp_path / "learned.safetensors",
        init=None,
        trainer=replace(BASE.trainer, max_steps=2),
    )
    anew = learn(tiny_model, concept, start_there, progress=False).vectors
    assert steps("quirk", 2, quirk, resume=True).equal(anew)
    # the default goes on: two steps of three have been done, and the optimiser remembers them
    steps("fixed", 2, FIXED)
    assert "optimizer_states" in torch.load(
        tmp_path / "fixed" / "checkpoints" / "last.ckpt", weights_only=False
    )
    assert steps("fixed", 3, FIXED, resume=True).equal(learned)
    last.write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged"):
        steps("quirk", 2, quirk, resume=True)


# ------------------------------------------------------------------ the base model
def test_loose_weights(
    tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = collect(tiny_model.parts)
    lost = "model.diffusion_model.out.2.weight"
    state["cond_stage_model.other"] = state.pop(lost)
    torch.save({"state_dict": state}, tmp_path / "m.ckpt")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "photos" / "a.png")
    config = replace(
        BASE,
        images=tmp_path / "photos",
        model=to_plain(tiny_config),
        checkpoint=str(tmp_path / "m.ckpt"),
        stop=replace(BASE.stop, allow_untrained=False),
        show=replace(BASE.show, samples_per_prompt=0),
        logging=LoggingConfig(loggers=()),
    )
    config = replace(config, model={"model": config.model}, trainer=replace(BASE.trainer, image_every=0))
    with pytest.raises(UserError, match="1 missing .* 1 unexpected .*cond_stage_model.other"):
        run_inversion(config, tmp_path / "fixed", progress=False)
    assert not caplog.records
    config = replace(config, compat=CompatConfig(loose_weights=True))
    run_inversion(config, tmp_path / "quirk", progress=False)
    difference, untrained = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "1 missing (model.diffusion_model.out.2.weight); 1 unexpected" in difference
    assert "like that of an untrained one; training goes on" in untrained
    # all that fits is there; the rest is random, the same at each load
    loose, again = (load(config.model, config.checkpoint, strict=False) for _ in range(2))
    own = collect(loose.parts)
    assert loose.fingerprint() == again.fingerprint() and not any(p.is_meta for p in own.values())
    assert [name for name in own if not own[name].equal(collect(tiny_model.parts)[name])] == [lost]
    state[lost] = torch.ones(1)  # torch itself refuses another shape
    torch.save({"state_dict": state}, tmp_path / "m.ckpt")
    with pytest.raises(UserError, match="1 of another shape"):
        load(config.model, config.checkpoint, strict=False)


# ------------------------------------------------------------------ switches that are settings
def test_switches_become_the_settings_that_they_stand_for() -> None:
    config = replace(BASE, compat="official")
    for name, value in AS_SETTINGS.values():
        assert attrgetter(name)(config) == value != attrgetter(name)(BASE), name
    assert replace(config, seed=BASE.seed) == config


def test_a_setting_that_is_given_wins_over_its_switch() -> None:
    given = {"optim.weight_decay": 0.1, "pictures.fit": "pad", "compute.checkpointing": True}
    config = settle({"images": "", "placeholder": "*", "compat": "official", **given})
    assert all(attrgetter(name)(config) == value for name, value in given.items())
    assert not config.strict and not config.pictures.upright and config.pictures.every_file
