"""``ldm sample`` and ``ldm inspect``: files, reproducibility, placeholders, provenance."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.io.embeddings import Embedding, load_embedding, save_embeddings


def pngs(folder: Path) -> dict[str, bytes]:
    """Name -> pixels of all pictures of a folder but the grid."""
    return {
        p.name: Image.open(p).tobytes() for p in sorted(folder.glob("*.png")) if p.name != "grid.png"
    }


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


@pytest.mark.parametrize("words", [
    ["--n", 0], ["--steps", 0], ["--sampler", "euler"], ["--eta", 2], ["--sampler", "plms", "--eta", 1],
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


def test_inspect_finds_the_word_that_a_vector_is(cli, model_folder, tiny_model, tmp_path):
    cat = tiny_model.text.tokenizer.words("cat")[0]
    vectors = tiny_model.text.token_table[[cat]].detach()
    path = save_embeddings(Embedding("<x>", vectors), tmp_path / "x.safetensors")
    assert "cat 1.00" in cli("inspect", path, "--model", model_folder).out


def test_inspect_refuses_a_model_of_another_width(cli, model_folder, tmp_path):
    path = save_embeddings(Embedding("<x>", torch.ones(1, 768)), tmp_path / "x.safetensors")
    result = cli("inspect", path, "--model", model_folder)
    assert result.code == 2 and "768" in result.err
