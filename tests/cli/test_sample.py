"""``ldm sample`` and ``ldm inspect``: files, reproducibility, placeholders, provenance."""

import errno
import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import ldm.io.runs
from ldm.io.embeddings import Embedding, load_embedding, save_embeddings
from ldm.io.images import save_png
from ldm.io.recipes import load_recipe, to_text
from ldm.sampling import gallery

pytestmark = pytest.mark.slow


def pngs(folder: Path) -> dict[str, bytes]:
    """Name -> pixels of all pictures of a folder but the grid."""
    return {p.name: Image.open(p).tobytes() for p in sorted(folder.glob("*.png")) if p.name != "grid.png"}


def test_pictures_carry_their_prompt_and_seed_and_lie_in_a_grid(cli, model_folder, embedding):
    result = cli(
        "sample", "--model", model_folder, "--embedding", embedding, "--prompt", "a photo of {}",
        "--prompt", "<toy> on snow", "--n", 3, "--seed", 5, "--steps", 2, "--out", "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "out/grid.png" in result.out
    files = pngs(Path("out"))
    assert len(files) == 6
    picture = Image.open(Path("out") / "00_a-photo-of-toy_5_02.png")
    assert picture.size == (16, 16)
    assert picture.text["prompt"] == "a photo of <toy>"
    assert (picture.text["seed"], picture.text["index"]) == ("5", "2")
    assert Image.open("out/grid.png").size == (3 * 18 + 2, 2 * 18 + 2)


def test_a_picture_depends_on_prompt_seed_and_index_alone(cli, model_folder):
    def draw(out: str, *words: object) -> dict[str, bytes]:
        shared = ("--steps", 2, "--eta", 0.5, "--out", out, "--prompt", "a cat")
        assert cli("sample", "--model", model_folder, *shared, *words).code == 0
        return pngs(Path(out))

    few = draw("few", "--n", 1)
    many = draw("many", "--n", 3, "--prompt", "a dog")
    other = draw("other", "--n", 1, "--seed", 1)
    # convolutions of another batch size may round differently: equal to one part in 255
    a, b = (torch.frombuffer(bytearray(s["00_a-cat_0_00.png"]), dtype=torch.uint8) for s in (few, many))
    assert (a.int() - b.int()).abs().max() <= 1
    assert list(few.values()) != list(other.values())


def test_a_learned_word_changes_what_is_drawn(cli, model_folder, embedding):
    for out, words in (("with", ["--embedding", embedding, "--prompt", "a {}"]),
                       ("without", ["--prompt", "a cat"])):  # fmt: skip
        assert cli("sample", "--model", model_folder, "--n", 1, "--steps", 2, "--out", out, *words).code == 0
    assert list(pngs(Path("with")).values()) != list(pngs(Path("without")).values())


def test_two_words_are_drawn_in_one_prompt(cli, model_folder, embedding):
    second = Embedding("<box>", torch.ones(2, load_embedding(embedding).D))
    other = save_embeddings(second, embedding.with_name("box.safetensors"))
    words = ["sample", "--model", model_folder, "--embedding", embedding, other, "--n", 1, "--steps", 2]
    assert cli(*words, "--prompt", "<toy> in <box>", "--out", "out").code == 0
    result = cli(*words, "--prompt", "a {}")
    assert result.code == 2 and "<toy>, <box>" in result.err


def test_an_embedding_of_another_model_of_the_same_width_needs_force(cli, model_folder, embedding):
    word = load_embedding(embedding)
    other = save_embeddings(
        Embedding("<toy>", word.vectors, {"base_model": "0" * 64}), embedding.with_name("o.safetensors")
    )
    words = ["sample", "--model", model_folder, "--embedding", other, "--prompt", "a {}", "--n", 1,
             "--steps", 2, "--out", "out"]  # fmt: skip
    result = cli(*words)
    assert result.code == 2 and "another model" in result.err and "--force" in result.err
    assert not Path("out").exists()
    result = cli(*words, "--force")
    assert result.code == 0 and "warning" in result.err


def test_a_picture_alone_is_enough_to_draw_it_again_bit_for_bit(cli, model_folder, embedding):
    drawn = cli(
        "sample", "--model", model_folder, "--embedding", embedding, "--prompt", "a photo of {}", "--prompt",
        "<toy> on snow", "--seeds", "7,3", "--n", 2, "--batch-size", 5, "--eta", 0.5, "--steps", 3,
        "--negative-prompt", "a red {}", "--scale", 2.5, "--out", "out",
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    first = pngs(Path("out"))
    assert len(first) == 8
    embedding.unlink()
    # the last of the first batch, and of the rest
    for name in ("01_toy-on-snow_7_00.png", "01_toy-on-snow_3_01.png"):
        (Path("alone") / name).parent.mkdir(exist_ok=True)
        (Path("out") / name).rename(Path("alone") / name)
        result = cli("sample", "--again", Path("alone") / name, "--model", model_folder, "--out", "again")
        assert result.code == 0, result.err
        assert pngs(Path("again"))[name] == first[name]
        recipe = load_recipe(Path("again") / name)
        assert recipe.prompt == "<toy> on snow" and recipe.negative_prompt == "a red <toy>"
        assert to_text(recipe) == to_text(load_recipe(Path("alone") / name))


def test_again_says_what_is_missing_and_never_overwrites(cli, model_folder, tiny_model):
    words = ["sample", "--model", model_folder, "--prompt", "a cat", "--n", 1, "--steps", 1, "--out", "out"]
    assert cli(*words).code == 0
    picture = "out/00_a-cat_0_00.png"

    def refused(*more: object) -> str:
        result = cli("sample", "--again", picture, *more)
        assert result.code == 2 and result.err.count("\n") == 1, result.err
        return result.err

    assert "'tiny'; give it by --model" in refused()  # a name in a picture is not taken for a path
    assert "overwritten" in refused("--model", model_folder, "--out", "out")
    assert "leave out --seed" in refused("--seed", 1)
    assert "leave out --prompt" in refused("--prompt", "a dog")
    text = to_text(load_recipe(Path(picture)))
    save_png(Image.open(picture), Path(picture), {**text, "base_model": "0" * 64})
    assert "another model" in refused("--model", model_folder, "--out", "b")
    save_png(Image.open(picture), Path(picture), {})
    assert "does not say how" in refused()


def test_what_is_there_already_is_not_drawn_again(cli, model_folder):
    words = ["sample", "--model", model_folder, "--prompt", "a cat", "--steps", 1, "--out", "out"]
    assert cli(*words, "--n", 2).code == 0
    before = {p.name: p.stat().st_mtime_ns for p in Path("out").glob("00_*.png")}
    result = cli(*words, "--n", 3)
    assert "3 pictures in out, 2 were there" in result.out
    after = {p.name: p.stat().st_mtime_ns for p in Path("out").glob("00_*.png")}
    assert len(after) == 3 and before.items() <= after.items()
    Path("out/00_a-cat_0_01.png").write_bytes(b"half a picture")
    assert "2 were there" in cli(*words, "--n", 3).out
    assert "were there" not in cli(*words, "--n", 3, "--scale", 2).out  # another recipe


def test_an_interrupted_command_goes_on_where_it_stopped(cli, model_folder, monkeypatch):
    words = ["sample", "--model", model_folder, "--prompt", "a", "--n", 3, "--steps", 1, "--batch-size", 2]
    original, calls = gallery.sample, []

    def stop_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(gallery, "sample", stop_at_the_second)
    result = cli(*words, "--out", "out")
    assert result.code == 130 and "the same command with --out out goes on" in result.err
    assert len(pngs(Path("out"))) == 2
    assert "3 pictures in out, 2 were there" in cli(*words, "--out", "out").out


def test_prompts_come_from_a_file_or_the_input(cli, model_folder, monkeypatch):
    text = "# scenes\n\n  a cat on snow  \r\na red dog\n"
    Path("prompts.txt").write_text(text)
    words = ["sample", "--model", model_folder, "--n", 1, "--steps", 1, "--out", "out", "--no-grid"]
    assert cli(*words, "--prompt", "a tree", "--prompts-file", "prompts.txt").code == 0
    names = ["00_a-tree_0_00.png", "01_a-cat-on-snow_0_00.png", "02_a-red-dog_0_00.png"]
    assert sorted(pngs(Path("out"))) == names and not Path("out/grid.png").exists()
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert cli(*words, "--prompts-file", "-").code == 0
    assert len(pngs(Path("out"))) == 5
    for content, says in ((b"# none\n", "no prompt"), (b"\xff\xfe\xfa", "UTF-8")):
        Path("prompts.txt").write_bytes(content)
        result = cli(*words, "--prompts-file", "prompts.txt")
        assert result.code == 2 and says in result.err and result.err.count("\n") == 1


def test_several_seeds_make_one_picture_each_and_columns_shape_the_grid(cli, model_folder):
    words = ["sample", "--model", model_folder, "--prompt", "a cat", "--steps", 1, "--out", "out"]
    assert cli(*words, "--seeds", "9, 2-4,3", "--columns", 2).code == 0
    assert sorted(pngs(Path("out"))) == [f"00_a-cat_{seed}_00.png" for seed in (2, 3, 4, 9)]
    assert Image.open("out/grid.png").size == (2 * 18 + 2, 2 * 18 + 2)
    alone = cli(*words, "--seed", 9, "--n", 1, "--out", "one")
    assert alone.code == 0
    a, b = (Image.open(f"{out}/00_a-cat_9_00.png").tobytes() for out in ("out", "one"))
    # another batch size may round differently: equal to one part in 255
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1


@pytest.mark.parametrize("seeds", ["", "a", "1,", "5-2", "-3", "1-9999999999", "9" * 30, "1;2"])
def test_a_list_of_seeds_that_is_none_is_refused(cli, model_folder, seeds):
    result = cli("sample", "--model", model_folder, "--prompt", "a cat", f"--seeds={seeds}", "--out", "out")
    assert result.code == 2 and "--seeds" in result.err and not Path("out").exists()


def test_no_prompt_at_all_is_refused(cli, model_folder):
    result = cli("sample", "--model", model_folder)
    assert result.code == 2 and "--prompts-file" in result.err


def test_inspect_shows_the_recipe_of_a_picture_and_its_words(cli, model_folder, embedding):
    cli("sample", "--model", model_folder, "--embedding", embedding, "--prompt", "a {}", "--n", 1,
        "--steps", 1, "--out", "out")  # fmt: skip
    result = cli("inspect", "out/00_a-toy_0_00.png", "--model", model_folder)
    assert result.code == 0, result.err
    for part in ("a <toy>", "negative prompt", "toy.safetensors", "1 of width 32", "nearest words"):
        assert part in result.out


@pytest.mark.parametrize("words", [
    ["--n", 0], ["--batch-size", 0], ["--columns", 0], ["--scale", "nan"],
    ["--steps", 0], ["--sampler", "euler"], ["--eta", 2], ["--sampler", "plms", "--eta", 1],
    ["--model", "nonesuch"], ["--prompt", "a {}"],
], ids=str)  # fmt: skip
def test_a_wrong_value_is_one_line_and_leaves_nothing(cli, model_folder, words):
    result = cli("sample", "--model", model_folder, "--prompt", "a cat", "--out", "out", *words)
    assert result.code == 2 and result.err.startswith("ldm: error: ")
    assert result.err.count("\n") == 1 and not Path("out").exists()


def test_inspect_shows_provenance_norms_and_nearest_words(cli, model_folder, embedding):
    result = cli("inspect", embedding, "--model", model_folder)
    assert result.code == 0, result.err
    norm = load_embedding(embedding).vectors.norm()
    for part in ("<toy>", "1 of width 32", f"{norm:.3f}", "this model", "nearest words", "step", "7"):
        assert part in result.out


def test_inspect_takes_several_files_and_reads_all_before_it_shows_any(
    cli, model_folder, embedding, tmp_path
):
    other = save_embeddings(Embedding("<other>", torch.randn(1, 32)), tmp_path / "other.safetensors")
    shown = cli("inspect", embedding, other, "--model", model_folder).out
    assert "<toy>" in shown and "<other>" in shown
    refused = cli("inspect", embedding, tmp_path / "none.safetensors", "--model", model_folder)
    assert refused.code == 2 and not refused.out


def test_inspect_finds_the_word_that_a_vector_is(cli, model_folder, tiny_model, tmp_path):
    cat = tiny_model.text.tokenizer.words("cat")[0]
    vectors = tiny_model.text.token_table[[cat]].detach()
    path = save_embeddings(Embedding("<x>", vectors), tmp_path / "x.safetensors")
    assert "cat 1.00" in cli("inspect", path, "--model", model_folder).out


def test_inspect_refuses_a_model_of_another_width(cli, model_folder, tmp_path):
    path = save_embeddings(Embedding("<x>", torch.ones(1, 768)), tmp_path / "x.safetensors")
    result = cli("inspect", path, "--model", model_folder)
    assert result.code == 2 and "768" in result.err


def test_what_is_drawn_stays_when_a_later_write_fails(cli, model_folder, monkeypatch):
    words = ["sample", "--model", model_folder, "--prompt", "a cat", "--n", 3]
    words += ["--steps", 1, "--batch-size", 1]
    real = ldm.io.runs.os.replace

    def full(source, target):
        if str(target).endswith(failing):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    for failing, left in (("_02.png", 2), ("grid.png", 3)):
        with monkeypatch.context() as patch:
            patch.setattr("ldm.io.runs.os.replace", full)
            result = cli(*words, "--out", failing)
        assert result.code == 2 and "disk is full" in result.err and "\n" not in result.err.strip()
        assert len(list(Path(failing).iterdir())) == left
        assert cli(*words, "--out", failing).code == 0
        assert len(list(Path(failing).iterdir())) == 4


def test_a_cut_picture_is_drawn_again(cli, model_folder):
    words = ["sample", "--model", model_folder, "--prompt", "a cat", "--n", 2, "--steps", 1, "--out", "out"]
    assert cli(*words).code == 0
    whole = pngs(Path("out"))
    first = Path("out") / next(iter(whole))
    first.write_bytes(first.read_bytes()[:-60])
    result = cli(*words)
    assert result.code == 0 and "1 were there" in result.out, result.err
    assert pngs(Path("out")) == whole
