"""Presets lie between the model's own settings and the user's, wherever they are named."""

from pathlib import Path

import pytest

from ldm.cli.invert import config_of
from ldm.cli.main import build_parser, main
from ldm.config import load_yaml, to_plain
from ldm.errors import UserError
from ldm.inversion import presets
from ldm.inversion.config import settle
from ldm.inversion.many.concept_list import read_jobs
from ldm.inversion.many.jobs import Job

WORD = {"images": "pictures", "placeholder": "<a>"}
OWN = {"trainer": {"max_steps": 150}, "optim": {"schedule": "cosine", "lr": 0.01}, "scale_lr": False}


def test_the_preset_wins_over_the_model_and_the_user_over_the_preset() -> None:
    config = settle(OWN, WORD, {"preset": "paper"}, {"steps": 7})
    assert (config.optim.schedule, config.optim.lr, config.scale_lr) == ("constant", 0.005, True)
    assert config.trainer.max_steps == 7
    assert config.trainer.accumulate * config.batch_size * config.optim.lr == pytest.approx(0.04)
    assert settle(OWN, {**WORD, "preset": "paper"}, {"steps": 7}) == config  # whichever layer names it
    assert settle(OWN, {**WORD, "preset": "paper"}, {"preset": None}) == settle(OWN, WORD)


def test_best_is_the_models_own_settings() -> None:
    assert settle(OWN, WORD, {"preset": "best"}) == settle(OWN, WORD)


def test_every_preset_says_what_it_is_and_is_a_config() -> None:
    assert {"paper", "best"} <= set(presets.names())
    for name in presets.names():
        preset = presets.read(name)
        assert preset.about and preset.source and "\n" not in preset.about
        settle(OWN, {**WORD, "init": "cat"}, {"preset": name})


def test_crossinit_is_the_authors_rate_steps_and_pull_and_needs_a_phrase() -> None:
    config = settle(OWN, {**WORD, "init": "cat"}, {"preset": "crossinit"})
    assert config.init_from == "encoder" and config.scale_lr and config.trainer.max_steps == 320
    assert config.batch_size * config.optim.lr == pytest.approx(0.005)
    assert (config.regularization, config.regularization_form) == (1e-5, "norm")
    with pytest.raises(UserError, match="init_from=encoder .* give init"):
        settle(OWN, WORD, {"preset": "crossinit"})
    with pytest.raises(UserError, match="starts <b> .* give init"):
        settle(OWN, {**WORD, "init": "cat", "more_words": {"<b>": None}}, {"init_from": "encoder"})


def test_a_file_of_the_users_own_is_a_preset(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("steps: 9\n")
    assert settle(OWN, WORD, {"preset": str(own)}).trainer.max_steps == 9
    own.write_text("about: mine\nsettings: {steps: 8}\n")
    assert settle(OWN, WORD, {"preset": str(own)}).trainer.max_steps == 8
    own.write_text("about: mine\nsettings: {steps: 8}\nstepz: 3\n")
    with pytest.raises(UserError, match="stepz"):
        presets.read(own)
    own.write_text("settings: {preset: paper}\n")
    with pytest.raises(UserError, match="names another preset"):
        presets.read(own)


@pytest.mark.parametrize("wrong", ["papr", 3])
def test_a_preset_that_does_not_exist_is_one_line(wrong: object) -> None:
    with pytest.raises(UserError, match="paper"):
        settle(OWN, WORD, {"preset": wrong})


def test_command_line_and_list_name_a_preset(tmp_path: Path) -> None:
    words = ["invert", "--images", "p", "--name", "<a>", "--preset", "paper", "--steps", "5"]
    config = config_of(build_parser().parse_args(words))
    assert (config.optim.schedule, config.trainer.max_steps) == ("constant", 5)
    listed = tmp_path / "list.yaml"
    listed.write_text(
        "defaults: {preset: paper, steps: 6}\n"
        "concepts: [{name: <a>, images: p}, {name: <b>, images: p, preset: best}]\n"
    )
    first, second = read_jobs(listed)
    assert isinstance(first, Job) and isinstance(second, Job)
    assert (first.config.optim.schedule, second.config.optim.schedule) == ("constant", "cosine")
    assert first.config.trainer.max_steps == second.config.trainer.max_steps == 6


def test_a_run_that_is_resumed_keeps_its_settings(tmp_path: Path) -> None:
    kept = to_plain(settle(OWN, WORD, {"preset": "paper", "steps": 7}))
    assert "preset" not in kept
    assert settle(kept, {}) == settle(OWN, WORD, {"preset": "paper", "steps": 7})


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(line.split()[0] in presets.names() for line in listed.splitlines())
    assert main(["presets", "paper"]) == 0
    shown = capsys.readouterr().out
    settings = tmp_path / "shown.yaml"
    settings.write_text(shown.split("supplement\n")[1])
    assert load_yaml([settings]) == presets.read("paper").settings
    assert main(["presets", "best"]) == 0
    assert "it sets nothing" in capsys.readouterr().out
    assert main(["presets", "papr"]) == 2
    with pytest.raises(SystemExit):
        main(["invert", "--help"])
    assert ", ".join(presets.names()) in " ".join(capsys.readouterr().out.split())
