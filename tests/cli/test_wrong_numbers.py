"""Numbers that cannot be meant: one line that names the setting, before any work, and nothing is left."""

import json
from pathlib import Path

import pytest

from ldm.config import dump_yaml, to_plain
from ldm.io.embeddings import load_embeddings

pytestmark = pytest.mark.slow

#: as words of ``ldm invert``, and the setting that the line names
OF_INVERT = {
    "--seed=-1": "seed", "--seed=4294967296": "seed", "--steps=0": "max_steps", "--steps=-1": "max_steps",
    "--steps=99999999999999999999": "max_steps", "--lr=-1": "optim.lr", "--lr=nan": "optim.lr",
    "--lr=inf": "optim.lr", "--batch-size=0": "batch_size", "--batch-size=-4": "batch_size",
    "--batch-size=999999999": "batch_size", "--num-vectors=0": "num_vectors",
    "--num-vectors=-1": "num_vectors", "--num-vectors=1000000": "num_vectors",
    "--precision=fp16": "precision", "--precision=no": "precision", "--precision=16-mixed": "precision",
    "--precision=16-true": "precision", "--precision=bf16": "precision", "trainer.accumulate=0": "accumulate",
    "trainer.log_every=0": "log_every", "trainer.devices=0": "devices", "trainer.devices=-1": "devices",
    "trainer.nodes=0": "nodes", "trainer.image_every=-1": "image_every",
    "trainer.checkpoint_every=0": "checkpoint_every", "trainer.checkpoint_every=-1": "checkpoint_every",
    "trainer.threads=-1": "threads", "trainer.threads=100000": "threads",
    "trainer.max_minutes=0": "max_minutes", "trainer.max_minutes=nan": "max_minutes",
    "trainer.accelerator=tpuu": "accelerator", "trainer.accelerator=gpu": "accelerator",
    "trainer.strategy=dpp": "strategy", "stop.monitor_every=0": "monitor_every",
    "stop.monitor_every=-5": "monitor_every", "stop.patience=-1": "patience",
    "stop.min_improvement=2": "min_improvement",
    "pictures.flip_p=1.5": "flip_p", "pictures.flip_p=-.1": "flip_p",
    "captions.mixing_prob=2": "mixing_prob", "model_lr=-1": "model_lr",
    "regularization=-1": "regularization", "init_scale=0": "init_scale", "init_scale=-1": "init_scale",
    "show.samples_per_prompt=-1": "samples_per_prompt", "show.steps=0": "steps",
    "show.steps=-3": "steps", "show.steps=1001": "sampling steps",
    "show.scale=nan": "scale", "show.sampler=euler": "sampler", "shared_steps=-1": "shared_steps",
    "progressive=[-1]": "progressive", "timesteps.std=0": "timesteps.std",
    "timesteps.lowest=1": "timesteps.lowest", "timesteps.kind=cubic": "timesteps.kind",
    "optim.eps=0": "optim.eps", "optim.betas=[0.9]": "betas", "optim.betas=[1, 0.9]": "betas",
    "optim.weight_decay=-1": "weight_decay", "optim.warmup_steps=-1": "warmup_steps",
    "optim.clip_norm=-1": "clip_norm", "optim.schedule=step": "schedule", "seed=1.5": "seed",
    "seed=true": "seed", "batch_size=two": "batch_size", "pictures.fit=stretch": "fit",
    "pictures.interpolation=nearest": "interpolation",
    "pictures.background=#gggggg": "background", "formats=[bin]": "formats",
}  # fmt: skip


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def refused(cli, tmp_path, monkeypatch):
    """Run a command line that must fail before any work; its line names ``setting``."""
    import ldm.inversion.run

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(ldm.inversion.run, "fit", too_late)

    def run(*words: object, setting: str) -> None:
        before = tree(tmp_path)
        result = cli(*words)
        lines = [line for line in result.err.splitlines() if not line.startswith("ldm: warning: ")]
        assert result.code == 2 and len(lines) == 1, (words, result.err)
        assert lines[0].startswith(("ldm: error: ", "ldm invert: error: ")) and setting in lines[0], lines
        assert tree(tmp_path) == before, words

    return run


def test_of_a_word(refused, model_folder, pictures) -> None:
    common = ("--model", model_folder, "--images", pictures, "--name", "<toy>", "--out", "new/run")
    for word, setting in OF_INVERT.items():
        words = [word] if word.startswith("--") else ["--set", word]
        refused("invert", *common, *words, setting=setting)


OF_STAGES = [
    (stage, word)
    for stage in ("autoencoder", "diffusion", "clip")
    for word in (
        "seed=-1", "batch_size=0", "trainer.max_steps=0", "trainer.max_steps=-1", "trainer.accumulate=0",
        "trainer.checkpoint_every=0", "trainer.log_every=0", "trainer.threads=-1", "trainer.precision=fp16",
        "trainer.precision=16-mixed", "trainer.accelerator=gpu", "trainer.devices=0", "optim.lr=-1",
        "optim.lr=nan", "optim.betas=[0.9]", "trainer.strategy=dpp",
    )
] + [
    ("autoencoder", "loss.kl_weight=-1"), ("autoencoder", "loss.adversarial_start=-1"),
    ("autoencoder", "loss.discriminator_channels=0"), ("diffusion", "ema_decay=1"),
    ("diffusion", "ema_every=0"), ("diffusion", "caption_dropout=1.5"), ("diffusion", "sample_scale=nan"),
    ("diffusion", "timesteps.lowest=1"), ("clip", "data.twins=-1"), ("clip", "data.plain=2"),
    ("latents", "count=0"), ("latents", "batch_size=0"), ("latents", "seed=-1"),
    ("latents", "precision=half"),
]  # fmt: skip


def test_of_a_stage(cli, tiny_config, tmp_path) -> None:
    data = {"target": "ldm.pretraining.sources.FolderPictures", "params": {"root": "none", "image_size": 16}}
    stages = {
        "autoencoder": {"autoencoder": tiny_config.autoencoder, "data": data},
        "latents": {"autoencoder": tiny_config.autoencoder, "data": data, "autoencoder_run": "none"},
        "diffusion": {"model": to_plain(tiny_config), "autoencoder_run": "none", "latents": ["none"]},
        "clip": {"clip": {}},
    }
    for stage, word in OF_STAGES:
        (tmp_path / "stage.yaml").write_text(dump_yaml(stages[stage]))
        before = tree(tmp_path)
        result = cli("train", stage, "--base", "stage.yaml", "--out", "new", word)
        assert result.code == 2 and result.err.count("\n") == 1, (stage, word, result.err)
        assert word.partition("=")[0].split(".")[-1] in result.err
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (("--steps", 0), "steps"), (("--steps", -1), "steps"), (("--steps", 1001), "steps"),
        (("--scale", "nan"), "scale"), (("--scale", "inf"), "scale"), (("--sampler", "euler"), "sampler"),
        (("--n", 0), "--n"), (("--n", 10**9), "pictures"), (("--batch-size", 0), "--batch-size"),
        (("--columns", -1), "--columns"), (("--eta", 2), "eta"), (("--eta", -1), "eta"),
        (("--eta", "nan"), "eta"), (("--seeds", "1-"), "--seeds"), (("--seed", -1), "seed"),
    ],
)  # fmt: skip
def test_of_drawing(cli, model_folder, tmp_path, words, setting: str) -> None:
    before = tree(tmp_path)
    result = cli("sample", "--model", model_folder, "--prompt", "a cat", "--out", "new", *words)
    assert result.code == 2 and result.err.count("\n") == 1 and setting in result.err, result.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [("--n", 0), ("--among", 0), ("--concepts", -1), ("--pictures", 0), ("--steps", 0), ("--steps", 1001),
     ("--scale", "nan"), ("--sampler", "euler"), ("--seed", -1)],
)  # fmt: skip
@pytest.mark.parametrize("what", ["embedding", "base", "inversion"])
def test_of_measuring(cli, model_folder, embedding, pictures, tmp_path, what: str, words) -> None:
    before = tree(tmp_path)
    given = ("--embedding", embedding, "--images", pictures) if what == "embedding" else ()
    result = cli("evaluate", what, "--model", model_folder, *given, "--out", "new", *words)
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert words[0].lstrip("-") in result.err and tree(tmp_path) == before


@pytest.mark.parametrize("word", ["seed=-1", "stepss=3", "placeholder=<b>", "show.scale=nan", "images=x"])
def test_of_the_words_that_measuring_learns(cli, model_folder, tmp_path, word: str) -> None:
    before = tree(tmp_path)
    result = cli("evaluate", "inversion", "--model", model_folder, "--out", "new", "--set", word)
    assert result.code == 2 and result.err.count("\n") == 1 and word.partition("=")[0] in result.err
    assert tree(tmp_path) == before


# ------------------------------------------------------------------ in a list
WRONG_ENTRIES = (
    {"steps": 0}, {"seed": -1}, {"lr": "nan"}, {"num_vektors": 2}, {"trainer": {"accumulate": 0}},
    {"images": None}, {"show": {"prompts": ["no word"]}}, {"templates": "objects"}, {"shared_steps": 3},
    {"stop": {"monitor_every": 0}}, {"optim": 3},
)  # fmt: skip


def test_one_wrong_concept_takes_no_other_down(cli, model_folder, pictures, tmp_path) -> None:
    """Entries that are wrong in all ways: the good ones are learned, each wrong one is named, and a resumed
    list learns what has been put right."""
    good = [{"name": name, "images": str(pictures)} for name in ("<toy>", "<hat>")]
    wrong = [{"name": f"<w{i}>", "images": str(pictures), **e} for i, e in enumerate(WRONG_ENTRIES)]
    entries = [good[0], *wrong, "a text", {"images": str(pictures)}, good[1]]
    (tmp_path / "c.yaml").write_text(dump_yaml({"concepts": entries}))
    result = cli("invert", "--concepts", "c.yaml", "--model", model_folder, "--out", "all")
    bad = len(WRONG_ENTRIES) + 2
    assert result.code == 2 and f"{bad} of {bad + 2} concepts failed" in result.err, result.err
    assert "Traceback" not in result.err and result.err.count("left out") == bad
    words = load_embeddings("all/embeddings.safetensors")
    assert [word.placeholder for word in words] == ["<toy>", "<hat>"]
    rows = json.loads(Path("all/concepts.json").read_text())["concepts"]
    assert [row["status"] for row in rows] == ["learned", *["failed"] * bad, "learned"]
    assert all(row["error"] for row in rows[1:-1])
    entries[1]["steps"] = 1
    (tmp_path / "c.yaml").write_text(dump_yaml({"concepts": entries}))
    again = cli("invert", "--concepts", "c.yaml", "--model", model_folder, "--out", "all", "--resume")
    assert f"{bad - 1} of {bad + 2} concepts failed" in again.err, again.err
    rows = json.loads(Path("all/concepts.json").read_text())["concepts"]
    assert [row["status"] for row in rows[:3]] == ["kept", "learned", "failed"]
    kept = cli("invert", "--resume", "--out", "all")  # from the list that is kept
    assert f"{bad - 1} of {bad + 2} concepts failed" in kept.err, kept.err
