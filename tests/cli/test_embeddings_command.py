"""``ldm embeddings``: show, convert and merge files of any tool; nothing asked, nothing overwritten."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.io.embedding_formats import FORMATS
from ldm.io.embeddings import Embedding, load_embedding, load_embeddings, read_file, save_embeddings

pytestmark = pytest.mark.slow


def vectors(k: int, d: int) -> torch.Tensor:
    return torch.randn(k, d, generator=torch.Generator().manual_seed(k))


@pytest.fixture
def cat(tmp_path):
    """A word of ours for Stable Diffusion v1."""
    word = Embedding("<cat>", vectors(2, 768), {"base_model": "ab" * 32, "step": "500"})
    return save_embeddings(word, tmp_path / "cat.safetensors")


@pytest.fixture
def dog(tmp_path):
    """A word of the official code, called "*" there."""
    return save_embeddings(Embedding("*", vectors(3, 768)), tmp_path / "dog.pt")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(cli, tmp_path):
    """Run a command line that must fail; nothing is written; returns its line."""

    def run(*words: object) -> str:
        before = contents(tmp_path)
        result = cli("embeddings", *words)
        assert result.code == 2 and result.err.count("\n") == 1, result.err
        assert result.err.startswith("ldm: error: ")
        assert contents(tmp_path) == before
        return result.err

    return run


# -------------------------------------------------------------------------------- show
def test_show_tells_format_size_norms_base_model_and_notes_of_every_word(cli, cat, dog):
    result = cli("embeddings", "show", cat, dog)
    assert result.code == 0, result.err
    norms = load_embedding(cat).vectors.norm(dim=1)
    for part in (
        "<cat>",
        "2 of width 768 (Stable Diffusion v1)",
        "float32",
        "diffusers (ours",
        "step",
        "500",
        f"{norms[0]:.3f}, {norms[1]:.3f}",
        "official (",
        "3 of width 768",
        "265",
    ):
        assert part in " ".join(result.out.split())


def test_show_knows_sdxl_and_the_type_on_disk(cli, tmp_path):
    both = {"clip_l": vectors(9, 768).half(), "clip_g": vectors(9, 1280).half()}
    save_file(both, tmp_path / "x.safetensors")
    out = " ".join(cli("embeddings", "show", "x.safetensors").out.split())
    for part in ("9 of width 768 + 1280 (SDXL)", "float16", "second text encoder", "median", "sdxl (SDXL"):
        assert part in out


def test_show_prints_no_control_characters_of_a_file(cli, tmp_path):
    save_file({"<a>": torch.ones(1, 4)}, tmp_path / "x.safetensors", {"note": "\x1b[2J\x07gone"})
    result = cli("embeddings", "show", "x.safetensors")
    assert result.code == 0 and "?[2J?gone" in result.out and "\x1b[2J" not in result.out


def test_show_refuses_what_is_no_embedding(refused, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"<html>404</html>")
    assert "x.bin" in refused("show", "x.bin") and "none.pt" in refused("show", "none.pt")


# ----------------------------------------------------------------------------- convert
@pytest.mark.parametrize("known", [f for f in FORMATS if f.encoders == 1], ids=lambda f: f.name)
def test_convert_writes_every_format_under_another_name(cli, cat, tmp_path, known):
    out = tmp_path / f"out{known.suffix}"
    result = cli("embeddings", "convert", cat, out, "--to", known.name, "--name", "my cat")
    assert result.code == 0, result.err
    assert str(out) in result.out and "my cat" in result.out
    assert read_file(out).format is known
    assert torch.equal(load_embedding(out).vectors, vectors(2, 768))
    assert load_embedding(out).placeholder == "my cat"


def test_convert_goes_by_the_suffix_and_its_help_names_every_format(cli, cat):
    for suffix, name in ((".pt", "official"), (".bin", "diffusers-bin"), (".png", "a1111-png")):
        assert cli("embeddings", "convert", cat, f"out{suffix}").code == 0
        assert read_file(f"out{suffix}").format.name == name
    text = cli("embeddings", "convert", "--help").out
    assert all(known.name in text for known in FORMATS)


def test_convert_joins_and_splits_the_halves_of_sdxl(cli, tmp_path):
    for n, d in (("", 768), ("_2", 1280)):
        save_file({"<s>": vectors(2, d)}, tmp_path / f"learned_embeds{n}.safetensors")
    halves = "learned_embeds.safetensors", "learned_embeds_2.safetensors"
    assert cli("embeddings", "convert", *halves, "one.safetensors").code == 0
    assert sorted(load_file("one.safetensors")) == ["clip_g", "clip_l"]
    assert cli("embeddings", "convert", "one.safetensors", "p.safetensors", "--to", "sdxl-pivotal").code == 0
    assert cli("embeddings", "convert", "p.safetensors", "d.safetensors", "--to", "sdxl-diffusers").code == 0
    for half, new in zip(halves, ("d.safetensors", "d_2.safetensors"), strict=True):
        assert torch.equal(load_file(half)["<s>"], load_file(new)["<s>"])


def test_convert_takes_one_word_out_of_several(cli, refused, cat, dog):
    assert cli("embeddings", "merge", cat, dog, "--out", "both.safetensors").code == 0
    assert "holds 2" in refused("convert", "both.safetensors", "x.safetensors", "--name", "y")
    assert "holds no 'x', but '<cat>', '*'" in refused("convert", "both.safetensors", "x.pt", "--word", "x")
    assert "one embedding a file" in refused("convert", "both.safetensors", "x.png")
    assert cli("embeddings", "convert", "both.safetensors", "x.png", "--word", "*", "--name", "dog").code == 0
    assert torch.equal(load_embedding("x.png").vectors, vectors(3, 768))


def test_convert_overwrites_only_when_forced(cli, refused, cat, dog):
    assert "exists" in refused("convert", cat, dog)
    assert cli("embeddings", "convert", cat, dog, "--force").code == 0
    assert load_embedding(dog).placeholder == "<cat>"
    assert cli("embeddings", "convert", cat, cat, "--to", "kohya", "--force").code == 0  # onto itself
    assert torch.equal(load_embedding(cat).vectors, vectors(2, 768))


def test_convert_keeps_the_second_file_of_a_pair_too(refused, tmp_path):
    save_file({"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}, tmp_path / "x.safetensors")
    (tmp_path / "d_2.safetensors").touch()
    line = refused("convert", "x.safetensors", "d.safetensors", "--to", "sdxl-diffusers")
    assert "d_2.safetensors exists" in line


def test_convert_refuses_what_does_not_go_together(refused, cat, dog):
    assert "no embedding format 'webui'" in refused("convert", cat, "x.pt", "--to", "webui")
    assert "name it x.safetensors" in refused("convert", cat, "x.pt", "--to", "kohya")
    assert "not the two halves" in refused("convert", cat, dog, "x.safetensors")
    assert "3 files" in refused("convert", cat, dog, dog, "x.safetensors")
    assert "not empty" in refused("convert", cat, "x.pt", "--name", " ")


# ------------------------------------------------------------------------------- merge
def test_merge_writes_the_words_of_all_files_under_their_new_names(cli, cat, dog):
    result = cli("embeddings", "merge", cat, dog, "--out", "both.safetensors", "--rename", "*=<dog>")
    assert result.code == 0, result.err
    first, second = load_embeddings("both.safetensors")
    assert (first.placeholder, second.placeholder) == ("<cat>", "<dog>")
    assert torch.equal(first.vectors, vectors(2, 768)) and torch.equal(second.vectors, vectors(3, 768))
    assert first.metadata == load_embedding(cat).metadata
    assert second.metadata == {}  # the token id was that of "*"


def test_merge_refuses_a_collision_and_says_how_to_resolve_it(cli, refused, cat, dog, tmp_path):
    other = save_embeddings(Embedding("*", vectors(1, 768)), tmp_path / "other.pt")
    line = refused("merge", "dog.pt", "other.pt", "--out", "x.safetensors")
    assert "dog.pt and other.pt both hold '*'" in line and "--rename 'other.pt:*=NEW'" in line
    line = refused("merge", cat, dog, "--rename", "*=a", "<cat>=a", "--out", "x.safetensors")
    assert "both hold 'a'" in line
    words = ["merge", "dog.pt", "other.pt", "--rename", "dog.pt:*=dog", "--rename", "other.pt:*=*"]
    assert cli("embeddings", *words, "--out", "x.safetensors").code == 0
    assert [w.placeholder for w in load_embeddings("x.safetensors")] == ["dog", "*"]
    assert other.exists()


def test_merge_to_an_official_file_says_what_can_be_done(refused, cat, tmp_path):
    other = save_embeddings(Embedding("<x>", torch.ones(1, 32)), tmp_path / "x.safetensors")
    more = save_embeddings(Embedding("<y>", torch.ones(1, 32)), tmp_path / "y.safetensors")
    line = refused("merge", other, more, "--out", "both.pt")
    assert "<x>, <y> have none of their own" in line
    assert "write .safetensors or .bin, or a .pt for each word (ldm embeddings convert --word" in line


def test_merge_refuses_words_of_different_base_models(refused, cat, tmp_path):
    save_embeddings(Embedding("<v2>", vectors(1, 1024)), tmp_path / "v2.safetensors")
    line = refused("merge", cat, "v2.safetensors", "--out", "x.safetensors")
    assert "'<cat>' has width 768 (Stable Diffusion v1)" in line
    assert "'<v2>' has width 1024 (Stable Diffusion v2)" in line


def test_merge_refuses_a_rename_of_nothing_and_one_that_is_none(refused, cat, dog):
    line = refused("merge", cat, dog, "--rename", "<cow>=x", "--out", "x.safetensors")
    assert "no embedding is called '<cow>'" in line and "'<cat>', '*'" in line
    for rule in ("a", "a=", "=b", "a=b=c"):
        assert "OLD=NEW" in refused("merge", cat, "--rename", rule, "--out", "x.safetensors")


def test_merge_never_asks_and_never_overwrites(cli, refused, cat, dog, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    assert "exists" in refused("merge", cat, dog, "--out", cat)
    assert cli("embeddings", "merge", cat, dog, "--out", cat, "--force").code == 0
    assert len(load_embeddings(cat)) == 2


def test_merge_as_the_official_script_replaces_silently_without_a_terminal(cli, refused, dog, tmp_path):
    save_embeddings(Embedding("*", vectors(1, 768)), tmp_path / "other.pt")
    words = ("merge", "dog.pt", "other.pt", "--out", "dog.pt")
    assert "both hold '*'" in refused(*words, "--force")
    result = cli("embeddings", *words, "--compat", "official")
    assert result.code == 0 and "'*' of other.pt replaces that of dog.pt" in result.err
    assert torch.equal(load_embedding("dog.pt").vectors, vectors(1, 768))


@pytest.mark.parametrize(("width", "token_id"), [(768, 320), (1280, 1037)])  # "a" in CLIP's and BERT's
def test_merge_as_the_official_script_asks_on_a_terminal(
    cli, refused, tmp_path, monkeypatch, width, token_id
):
    for k, name in ((1, "x.pt"), (2, "y.pt")):
        save_embeddings(Embedding("*", vectors(k, width)), tmp_path / name)
    asked, typed = [], iter(["cat toy", "a"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(typed))
    words = ("merge", "x.pt", "y.pt", "--out", "z.pt", "--compat", "official")
    assert cli("embeddings", *words).code == 0
    assert "y.pt holds '*' as x.pt does" in asked[0] and "'cat toy' is not one token" in asked[1]
    first, second = load_embeddings("z.pt")
    assert (first.placeholder, second.placeholder, second.metadata["token_id"]) == ("*", "a", str(token_id))
    assert torch.equal(first.vectors, vectors(1, width)) and torch.equal(second.vectors, vectors(2, width))

    def no_more(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", no_more)
    assert "no name was given" in refused(*words)


# ------------------------------------------------------------------- hostile, everywhere
class Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.ckpt", "x.png"])
def test_no_command_runs_what_a_file_wants_to_run(cli, refused, cat, model_folder, tmp_path, name):
    flag = tmp_path / "ran"
    torch.save({"<a>": torch.ones(1, 768), "x": Bomb(flag)}, tmp_path / name)
    for words in (["show", name], ["convert", name, "y.safetensors"],
                  ["merge", cat, name, "--out", "y.safetensors"]):  # fmt: skip
        assert "more than vectors (which is refused)" in refused(*words)
    for words in (["--embedding", name], ["--checkpoint", name]):
        result = cli("sample", "--model", model_folder, "--prompt", "a cat", "--out", "out", *words)
        assert result.code == 2 and result.err.count("\n") == 1
    assert not flag.exists()


#: name of a tensor -> what the line says
OTHERS = {
    "lora_unet_mid.lora_down.weight": "is a LoRA",
    "text_model.final_layer_norm.bias": "is a text encoder",
    "t5xxl": "T5-XXL of Stable Diffusion 3 or FLUX",
}
COMMANDS = ["show", "convert", "merge", "sample", "edit", "inspect", "evaluate", "invert"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_what_holds_no_word(cli, cat, model_folder, pictures, tmp_path, command, name):
    other = tmp_path / "other.safetensors"
    save_file({name: torch.ones(4, 32)}, other)
    model = ["--model", model_folder]
    result = cli(*{
        "show": ["embeddings", "show", other],
        "convert": ["embeddings", "convert", other, "new.pt"],
        "merge": ["embeddings", "merge", cat, other, "--out", "new.safetensors"],
        "sample": ["sample", *model, "--embedding", other, "--prompt", "a {}", "--out", "new"],
        "edit": ["edit", *model, "--embedding", other, "--prompt", "a {}", "--image", pictures / "0.png",
                 "--out", "new"],
        "inspect": ["inspect", *model, other],
        "evaluate": ["evaluate", *model, "--embedding", other, "--images", pictures, "--out", "new"],
        "invert": ["invert", *model, "--name", "<x>", "--images", pictures, "--out", "new",
                   "--set", f"init_embedding={other}"],
    }[command])  # fmt: skip
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert OTHERS[name] in result.err and "other.safetensors" in result.err
    assert not list(tmp_path.glob("new*"))
