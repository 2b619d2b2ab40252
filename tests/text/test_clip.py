"""Stable Diffusion's text encoders: parity with transformers, public names, and the seam for v*."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.checkpoints import collect, load_model_weights
from ldm.text.clip import ClipConditioner, OpenClipConditioner
from ldm.text.conditioner import TextConditioner
from ldm.words.manager import EmbeddingManager

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TINY = {"width": 32, "layers": 3, "heads": 4, "max_length": 20, "mlp_ratio": 3.0}
PROMPTS = ["a photo of a cat", "", "a big red dog on a small green beach, 4 k"]


@pytest.fixture(scope="module")
def one(randomise: Callable[..., nn.Module]) -> ClipConditioner:
    return randomise(ClipConditioner(**TINY)).eval()


@pytest.fixture(scope="module")
def two(randomise: Callable[..., nn.Module]) -> OpenClipConditioner:
    return randomise(OpenClipConditioner(**TINY)).eval()


def contexts(text: TextConditioner, prompts: list[str] = PROMPTS) -> Tensor:
    ids = text.tokenize(prompts)
    return text.encode(text.embed(ids), ids)


def reference(act: str) -> nn.Module:
    """transformers' model of the same size."""
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=TINY["width"],
        intermediate_size=int(TINY["mlp_ratio"] * TINY["width"]),
        num_hidden_layers=TINY["layers"],
        num_attention_heads=TINY["heads"],
        max_position_embeddings=TINY["max_length"],
        hidden_act=act,
    )
    return transformers.CLIPTextModel(config).eval()


def their_weights(text: ClipConditioner) -> dict[str, Tensor]:
    return {k.removeprefix("transformer.text_model."): v for k, v in text.state_dict().items()}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.3  # something to compare
    assert (ours - theirs).norm() / theirs.norm() < 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_version_1_and_its_gradient_are_transformers_last_hidden_state(one: ClipConditioner) -> None:
    theirs = reference("quick_gelu")
    theirs.load_state_dict(their_weights(one))  # strict: the names are Hugging Face's, all of them
    ids, results = one.tokenize(PROMPTS), []
    for call, table in (
        (lambda: contexts(one), one.token_table),
        (lambda: theirs(ids).last_hidden_state, theirs.get_input_embeddings().weight),
    ):
        out = call()
        results.append((out.detach(), torch.autograd.grad(out.sin().sum(), table)[0]))
    assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # another kernel computes what needs no gradient
        assert_close(contexts(one), results[1][0])


def test_version_2_is_transformers_next_to_last_state_after_the_final_norm(
    one: ClipConditioner, two: OpenClipConditioner
) -> None:
    theirs, names = reference("gelu"), ClipConditioner(**TINY)
    names.tower.load_state_dict(
        {k: v for k, v in two.model.state_dict().items() if k not in ("text_projection", "logit_scale")}
    )
    theirs.load_state_dict(their_weights(names))
    with torch.no_grad():
        states = theirs(two.tokenize(PROMPTS), output_hidden_states=True).hidden_states
        expected = theirs.final_layer_norm(states[-2])
        assert_close(contexts(two), expected)
        assert (contexts(two) - theirs.final_layer_norm(states[-1])).abs().max() > 0.1


@pytest.mark.parametrize("version", ["one", "two"])
def test_a_token_sees_those_before_it_and_pads_count_as_tokens(
    version: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(version)
    ids = text.tokenize(["a cat"])
    embeds = text.embed(ids).detach()
    changed = embeds.clone()
    changed[0, 10] *= -1  # a pad
    difference = (text.encode(changed, ids) - text.encode(embeds, ids)).abs().amax(-1)[0]
    assert difference[:10].max() < 1e-5 and difference[10:].min() > 1e-3
    assert text.encode(embeds[:, :7], ids[:, :7]).shape == (1, 7, 32)


@pytest.mark.parametrize("version", ["one", "two"])
def test_weights_go_out_and_come_back_under_public_names(
    version: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(version)
    public = collect({"cond_stage_model.": text})
    layer = "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"
    assert (layer in public) == (version == "one")
    with torch.device("meta"):
        empty = type(text)(**TINY)
    for fresh in (type(text)(**TINY), empty):
        load_model_weights({"cond_stage_model.": fresh}, public)
        torch.testing.assert_close(contexts(fresh.eval()), contexts(text), rtol=0, atol=1e-6)
    load_model_weights({"cond_stage_model.": fresh}, {**public, **position_ids()})
    del public[sorted(public)[5]]
    with pytest.raises(UserError, match="1 missing"):
        load_model_weights({"cond_stage_model.": fresh}, public)


def position_ids() -> dict[str, Tensor]:
    return {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(20)[None]}


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
@pytest.mark.parametrize("version", [1, 2])
def test_clip_skip_counts_hidden_states_from_the_last_one(
    one: ClipConditioner, two: OpenClipConditioner, version: int, clip_skip: int
) -> None:
    text = one if version == 1 else two
    theirs, names = reference("quick_gelu" if version == 1 else "gelu"), ClipConditioner(**TINY)
    names.tower.load_state_dict((one.tower if version == 1 else two.model).state_dict(), strict=False)
    theirs.load_state_dict(their_weights(names))
    ids = text.tokenize(PROMPTS)
    with torch.no_grad():
        states = theirs(ids, output_hidden_states=True).hidden_states
        with text.skipping(clip_skip):
            assert_close(contexts(text), theirs.final_layer_norm(states[-clip_skip]))
    assert text.clip_skip == text.own_clip_skip == version
    built = type(text)(**TINY, clip_skip=clip_skip)
    assert built.clip_skip == clip_skip and built.other_clip_skip is None


@pytest.mark.parametrize("clip_skip", [0, -1, 4, 100])
def test_a_clip_skip_that_leaves_no_block_is_refused(one: ClipConditioner, clip_skip: int) -> None:
    with pytest.raises(UserError, match=r"give 1 \(the last block\) to 3"):
        one.use_clip_skip(clip_skip)
    assert one.clip_skip == 1


def test_a_copy_of_the_conditioner_is_independent(one: ClipConditioner) -> None:
    twin = copy.deepcopy(one)
    with torch.no_grad():
        twin.tower.ln_final.weight.mul_(2)
    assert not torch.equal(contexts(twin), contexts(one))
    twin.load_state_dict(one.state_dict())
    assert torch.equal(contexts(twin), contexts(one))


@pytest.mark.parametrize("version", ["one", "two"])
@pytest.mark.parametrize("k", [1, 3])
def test_vectors_of_a_placeholder_enter_the_prompt_and_the_end_token_stays(
    version: str, k: int, request: pytest.FixtureRequest
) -> None:
    text = copy.deepcopy(request.getfixturevalue(version))
    manager = EmbeddingManager(text.width, len(text.token_table), text.tokenizer.end_id)
    private = text.tokenizer.add_placeholder("<toy>")
    vectors = torch.randn(k, 32)
    manager.add("<toy>", private, vectors)
    crowded = "a <toy> " * 8 + "b b"  # 18 tokens in their frame: full before the vectors are in
    ids = text.tokenize(["a photo of <toy>, red", crowded])
    new_ids, embeds, _ = manager(ids, text.embed(ids))
    embeds = embeds[:, 0]  # one prompt for all layers of a denoiser
    ours = (new_ids == private).nonzero()
    assert ours[:k].tolist() == [[0, 4 + i] for i in range(k)]
    for i, (row, column) in enumerate(ours.tolist()):
        assert torch.equal(embeds[row, column], vectors[i % k]) or row == 1
    end, pad = text.tokenizer.end_id, text.tokenizer.pad_id
    comma_red_end = text.tokenizer.words(", red") + [end]
    assert new_ids[0, 4 + k : 7 + k].tolist() == comma_red_end
    assert set(new_ids[0, 7 + k :].tolist()) == {pad}
    assert new_ids[1, -1] == end and (new_ids[1, :-1] != end).all()
    out = text.encode(embeds, new_ids)
    (gradient,) = torch.autograd.grad(out.sin().sum(), manager.parameter("<toy>"))
    assert (gradient.abs().sum(dim=1) > 0).all()


def save(folder: Path, config: dict | None, vocabulary: Path | None) -> nn.Module:
    theirs = reference("gelu")
    theirs.save_pretrained(folder)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if vocabulary:
        for name in ("vocab.json", "merges.txt"):
            (folder / name).write_text((vocabulary / name).read_text(encoding="utf-8"), encoding="utf-8")
    return theirs


@pytest.mark.parametrize("nested", [False, True])
def test_version_may_be_a_hugging_face_folder_of_any_width(
    tmp_path: Path, clip_vocabulary: Path, nested: bool
) -> None:
    theirs = save(tmp_path, None, clip_vocabulary if nested else None)
    if nested:  # a whole CLIP: its text tower's config and weights are inside
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
        (tmp_path / "model.safetensors").unlink()
        state = {f"text_model.{name}": tensor for name, tensor in theirs.state_dict().items()}
        torch.save(
            {**state, "vision_model.x": torch.ones(2), "logit_scale": torch.ones(())},
            tmp_path / "pytorch_model.bin",
        )
    text = ClipConditioner(version=tmp_path).eval()
    assert (text.width, text.max_length, len(text.tower.transformer.resblocks)) == (32, 20, 3)
    with torch.no_grad():
        expected = theirs(text.tokenize(PROMPTS)).last_hidden_state
        torch.testing.assert_close(contexts(text), expected, rtol=1e-5, atol=1e-5)


def test_wrong_versions_and_sizes_are_one_line_errors(tmp_path: Path) -> None:
    save(tmp_path, {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}, None)
    empty = tmp_path / "empty"
    empty.mkdir()
    for make, words in (
        (lambda: ClipConditioner(version="openai/clip-vit-base-patch32"), "nothing is downloaded"),
        (lambda: ClipConditioner(version=empty), "there is no JSON file .*config.json"),
        (lambda: ClipConditioner(version=tmp_path), "does not fit the config.json"),
        (lambda: ClipConditioner(width=32, heads=5), "5 heads"),
        (lambda: ClipConditioner(width=32, heads=4, layers=1, act="relu"), "activation 'relu'"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_word_beyond_a_short_token_table_is_refused_and_a_placeholder_is_not() -> None:
    text = OpenClipConditioner(width=32, layers=2, heads=2, vocab_size=400, max_length=8)
    text.tokenizer.add_placeholder("<toy>")
    assert text.embed(text.tokenizer(["<toy>"])).shape == (1, 8, 32)
    with pytest.raises(UserError, match="knows 400 tokens"):
        text.tokenize(["<toy>"])  # the start token already has no row
