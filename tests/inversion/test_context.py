"""The context prompts of a run: which are drawn, what is logged, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import BASE, _module

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.config import settle
from ldm.inversion.context import ContextTerm, context_term
from ldm.inversion.module import TextualInversion
from ldm.inversion.sections import ContextConfig
from ldm.inversion.step import Part, losses
from ldm.inversion.templates import CONTEXT, SETS

OWN = ("a {} on the beach", "a red {} in snow", "the {} and a tree")
REST = {"images": "p", "placeholder": "<a>"}


@pytest.fixture
def concept() -> Concept:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (Path("a.png"), Path("b.png")), ("1", "2"))


def term(model: LatentDiffusion, **settings: Any) -> ContextTerm | None:
    wish = ContextConfig(**{"weight": 0.5, "templates": OWN, **settings})
    return context_term(model, replace(BASE, context=wish), ["<toy>"])


@pytest.fixture
def module(tiny_model: LatentDiffusion, concept: Concept) -> TextualInversion:
    tiny_model.add_placeholder("<toy>", init="tree")
    return _module(tiny_model, concept, context=term(tiny_model))


def test_the_prompts_are_a_function_of_the_step_and_the_seed(module: TextualInversion) -> None:
    objective = module.objective
    found = [objective.context_distance(step).item() for step in range(20)]
    assert found == [objective.context_distance(step).item() for step in range(20)]
    assert len(set(found)) == len(OWN)  # the word stands still: each prompt has its own figure
    objective.batches.seed += 1
    assert found != [objective.context_distance(step).item() for step in range(20)]


def test_the_term_is_added_by_its_weight_and_logged_by_itself(module: TextualInversion) -> None:
    (loss,) = losses(module.model, [Part(module.objective, module.objective.draw(0), 3)])
    distance = module.objective.context_distance(3)
    assert loss.scalars["train/context"].item() == pytest.approx(distance.item(), rel=1e-6)
    expected = loss.scalars["train/loss"] + 0.5 * distance
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_term_without_a_weight(tiny_model: LatentDiffusion) -> None:
    assert term(tiny_model, weight=0.0) is None


def test_context_prompts_that_cannot_be_are_refused(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<toy>", init="cat")
    tiny_model.add_placeholder("<b>", init="cat")
    for wrong, words in (
        ({"templates": ("a <b> on the {}",)}, "holds a learned word twice"),
        ({"templates": ("the red house on the snow of the green and blue {}",)}, "12 tokens .* cut off"),
        ({"class_word": "<b>"}, "class word '<b>'"),
        ({"class_word": "cat " * 10}, "class word"),
    ):
        with pytest.raises(UserError, match=words):
            term(tiny_model, **wrong)


def test_a_context_needs_a_class_word() -> None:
    with pytest.raises(UserError, match="compares <a> .* give init, or context.class_word"):
        settle(REST, {"preset": "core"})
    config = settle(REST, {"preset": "core", "context": {"class_word": "cat"}})
    assert config.class_of("<a>") == "cat" and config.context.weight == 1.5e-4
    assert (config.optim.lr, config.scale_lr, config.trainer.max_steps) == (0.005, False, 300)
    more = {"init": "dog", "more_words": {"<b>": "tree"}, "context": {"weight": 1, "class_word": "cat"}}
    both = settle(REST, more)
    assert (both.class_of("<a>"), both.class_of("<b>")) == ("cat", "tree")
    with pytest.raises(UserError, match="compares <b> .* give an init phrase"):
        settle(REST, {**more, "more_words": {"<b>": None}})
    with pytest.raises(UserError, match="template set"):
        settle(REST, {"init": "cat", "context": {"templates": "contexts"}})


def test_the_set_of_contexts_is_read_whole_by_the_shipped_model() -> None:
    from ldm.paths import PACKAGE

    known = set((PACKAGE / "assets" / "emoji" / "vocab.txt").read_text().split())
    assert SETS["context"] is CONTEXT and len(set(CONTEXT)) == len(CONTEXT)
    assert {word for line in CONTEXT for word in line.replace("{}", "").split()} <= known
