"""Several words learned together from one set of pictures: by templates, by captions, by official files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import dump_yaml, to_plain
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig, check
from ldm.inversion.placeholders import add_words
from ldm.inversion.run import learn, run_inversion
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.io.checkpoints import save_checkpoint
from ldm.io.embeddings import load_embeddings
from ldm.io.runs import create_run
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig

pytestmark = pytest.mark.slow

BASE = InversionConfig(
    images=Path(),
    placeholder="<a>",
    init="cat",
    more_words={"<b>": "tree"},
    subject="<a> on <b>",
    captions=CaptionsConfig(templates="plain"),
    show=ShowConfig(prompts=("a photo of {}",), samples_per_prompt=1, steps=2),
    stop=StopConfig(monitor_every=2, allow_untrained=True),
    optim=OptimConfig(lr=1e-3, schedule="constant"),
    trainer=TrainerConfig(max_steps=3, accelerator="cpu", checkpoint_every=2, image_every=0),
    logging=LoggingConfig(loggers=("csv",)),
)


@pytest.fixture
def config(tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path) -> InversionConfig:
    """``BASE`` with three pictures and a model on disk."""
    model = tmp_path / "model"
    save_checkpoint(tiny_model.parts, model / "model.safetensors", dtype=None)
    described = {**to_plain(tiny_config), "checkpoint": "model.safetensors"}
    (model / "config.yaml").write_text(dump_yaml({"model": described}))
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (24, 20), colour).save(photos / f"{i}.png")
    return replace(BASE, images=photos, model=str(model))


def word(model: LatentDiffusion, text: str) -> torch.Tensor:
    return model.text.token_table[model.text.tokenizer.words(text)].detach()


def test_every_word_in_the_prompts_is_learned_saved_resumed_and_reported(
    config: InversionConfig, tiny_model: LatentDiffusion, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run_inversion(config, out, progress=False).placeholder == "<a>"
    whole = load_embeddings(out / "embeddings.safetensors")
    assert [(w.placeholder, w.metadata["init"]) for w in whole] == [("<a>", "cat"), ("<b>", "tree")]
    for learned, init in zip(whole, ("cat", "tree"), strict=True):
        assert 1e-3 < (learned.vectors - word(tiny_model, init)).norm() < 1
    at_two = load_embeddings(out / "checkpoints" / "embeddings_gs-2.safetensors")
    assert [w.placeholder for w in at_two] == ["<a>", "<b>"]
    page = (out / "report.html").read_text()
    for text in ("&lt;a&gt; and &lt;b&gt;", "norm of &lt;b&gt;", "&lt;b&gt;, vector 1", "cat, tree",
                 "a photo of &lt;a&gt; on &lt;b&gt;"):  # fmt: skip
        assert text in page, text
    # an interrupted run ends with the same words
    short = replace(config, trainer=replace(config.trainer, max_steps=2))
    run_inversion(short, tmp_path / "cut", progress=False)
    run_inversion(config, tmp_path / "cut", resume=True, progress=False)
    for one, other in zip(whole, load_embeddings(tmp_path / "cut" / "embeddings.safetensors"), strict=True):
        assert one.vectors.equal(other.vectors)


def test_captions_may_hold_one_word_or_all(config: InversionConfig, tmp_path: Path) -> None:
    for i, caption in enumerate(("a <a> on <b>", "a <b>", "{} on the beach")):
        (config.images / f"{i}.txt").write_text(caption)
    config = replace(config, subject=None)  # {} is the placeholder
    run_inversion(config, tmp_path / "run", progress=False)
    words = load_embeddings(tmp_path / "run" / "embeddings.safetensors")
    assert [w.placeholder for w in words] == ["<a>", "<b>"]
    (config.images / "1.txt").write_text("a dog")
    with pytest.raises(UserError, match="write <a> or <b> or {} into it"):
        run_inversion(config, tmp_path / "other", progress=False)


def test_a_word_that_no_prompt_holds_is_left_out_and_changes_nothing(
    config: InversionConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = replace(config, more_words={}, subject=None)
    beside = replace(config, subject=None)
    learned = [run_inversion(c, tmp_path / f"{i}", progress=False) for i, c in enumerate((alone, beside))]
    assert learned[0].vectors.equal(learned[1].vectors)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "no prompt holds '<b>': left out"
    ]
    assert len(load_embeddings(tmp_path / "1" / "embeddings.safetensors")) == 1


def test_a_run_whose_prompts_do_not_hold_the_placeholder_is_refused(
    config: InversionConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no prompt holds <a>"):
        run_inversion(replace(config, subject="a <b>"), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("words", "says"), [({"<a>": "cat"}, "leave it out"), ({" ": "cat"}, "more_words"), ({"<b>": 3}, "null")]
)
def test_words_that_cannot_be_are_refused(words: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(replace(BASE, more_words=words))


def test_an_official_pt_of_several_words_needs_names_that_are_tokens(
    config: InversionConfig, tiny_model: LatentDiffusion, tmp_path: Path
) -> None:
    config = replace(config, formats=("pt",))
    with pytest.raises(UserError, match="formats"):  # before the work
        run_inversion(config, tmp_path / "refused", progress=False)
    assert not list((tmp_path / "refused" / "checkpoints").glob("*.ckpt"))
    config = replace(config, placeholder="dog", more_words={"toy": None}, subject="a dog with a toy")
    run_inversion(config, tmp_path / "run", progress=False)
    words = load_embeddings(tmp_path / "run" / "checkpoints" / "embeddings.pt")
    ids = tiny_model.text.tokenizer.words("dog toy")
    assert [int(w.metadata["token_id"]) for w in words] == ids


def test_in_memory_the_model_knows_them_all(tiny_model: LatentDiffusion, tmp_path: Path) -> None:
    from ldm.inversion.concept import Concept

    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    concept = Concept(images, (tmp_path / "a.png", tmp_path / "b.png"), ("1", "2"))
    config = replace(BASE, num_vectors=2)
    run = create_run(tmp_path / "run")
    learn(tiny_model, concept, config, run=run, progress=False)
    for w in load_embeddings(run.path / "embeddings.safetensors"):
        assert tiny_model.manager.vectors(w.placeholder).equal(w.vectors) and w.K == 2


def test_a_start_is_scaled(tiny_model: LatentDiffusion) -> None:
    add_words(tiny_model, replace(BASE, init_scale=0.25))
    for name, init in (("<a>", "cat"), ("<b>", "tree")):
        found = tiny_model.manager.vectors(name).detach()
        torch.testing.assert_close(found, 0.25 * word(tiny_model, init))
        tiny_model.remove_placeholder(name)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="init_scale"):
            check(replace(BASE, init_scale=scale))
