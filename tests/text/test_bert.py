"""LDM's text encoder: parity with diffusers and with the plain formula, and the seam for v*."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.text.bert import BertConditioner

SHAPE = {"n_embed": 24, "n_layer": 3, "max_seq_len": 12, "heads": 3, "dim_head": 5}
PROMPTS = ["a photo of a cat", "", "a big red dog on a small green beach"]


@pytest.fixture
def bert(tiny_vocab: Path, randomise: Callable[..., nn.Module]) -> BertConditioner:
    return randomise(BertConditioner(tiny_vocab, **SHAPE, logits_head=True)).eval()


def contexts(bert: BertConditioner, prompts: list[str]) -> Tensor:
    ids = bert.tokenize(prompts)
    return bert.encode(bert.embed(ids), ids)


def plain_formula(bert: BertConditioner, embeds: Tensor) -> Tensor:
    """The encoder written out: x + Attention(LN x), x + MLP(LN x), ..., LN."""
    weights = dict(bert.transformer.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    batch, length, _ = embeds.shape
    x = embeds + weights["pos_emb.emb.weight"][:length]
    for i in range(SHAPE["n_layer"]):
        attention, mlp = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        h = norm(x, f"{attention}.0")
        q, k, v = (
            torch.einsum("bld,ed->ble", h, weights[f"{attention}.1.to_{n}.weight"]).reshape(
                batch, length, SHAPE["heads"], SHAPE["dim_head"]
            )
            for n in "qkv"
        )
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / SHAPE["dim_head"] ** 0.5
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
        out = f"{attention}.1.to_out"
        x = x + mixed @ weights[f"{out}.weight"].T + weights[f"{out}.bias"]
        h = norm(x, f"{mlp}.0")
        h = h @ weights[f"{mlp}.1.net.0.0.weight"].T + weights[f"{mlp}.1.net.0.0.bias"]
        h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
        x = x + h @ weights[f"{mlp}.1.net.2.weight"].T + weights[f"{mlp}.1.net.2.bias"]
    return norm(x, "norm")


def test_encoder_and_its_gradient_follow_the_plain_formula(bert: BertConditioner) -> None:
    results = []
    ids = bert.tokenize(PROMPTS)
    for encode in (lambda e: bert.encode(e, ids), lambda e: plain_formula(bert, e)):
        embeds = bert.embed(ids).detach().requires_grad_()
        out = encode(embeds)
        results.append((out.detach(), torch.autograd.grad(out.cos().sum(), embeds)[0]))
    for ours, expected in zip(*results, strict=True):
        assert expected.std() > 0.05
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
def test_encoder_agrees_with_diffusers_ldm_bert(bert: BertConditioner) -> None:
    theirs = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
    config = theirs.LDMBertConfig(
        vocab_size=len(bert.token_table),
        max_position_embeddings=SHAPE["max_seq_len"],
        encoder_layers=SHAPE["n_layer"],
        encoder_ffn_dim=4 * SHAPE["n_embed"],
        encoder_attention_heads=SHAPE["heads"],
        head_dim=SHAPE["dim_head"],
        d_model=SHAPE["n_embed"],
    )
    reference = theirs.LDMBertModel(config).eval()
    reference.load_state_dict({their_name(k): v for k, v in bert.state_dict().items()})
    ids = bert.tokenize(PROMPTS)
    with torch.no_grad():
        (expected,) = reference(ids, return_dict=False)
        torch.testing.assert_close(contexts(bert, PROMPTS), expected, rtol=1e-5, atol=1e-5)


def their_name(name: str) -> str:
    """The public name of a weight as diffusers calls it: two of our layers are one of theirs."""
    name = name.removeprefix("transformer.")
    if layer := re.match(r"attn_layers\.layers\.(\d+)\.(\d)\.(.*)", name):
        i, part, rest = int(layer[1]), int(layer[2]), layer[3]
        norms, functions = ("self_attn_layer_norm", "final_layer_norm"), ("self_attn", "")
        own = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
        own |= {"net.0.0": "fc1", "net.2": "fc2"}
        stem, leaf = rest.rpartition(".")[::2]
        inside = (norms if part == 0 else functions)[i % 2]
        path = ["model.layers", str(i // 2), inside, own.get(stem, stem), leaf]
        return ".".join(p for p in path if p)
    for ours, theirs in (
        ("token_emb.", "model.embed_tokens."),
        ("pos_emb.emb.", "model.embed_positions."),
        ("norm.", "model.layer_norm."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def test_pads_are_attended_to_and_positions_count(bert: BertConditioner) -> None:
    ids = bert.tokenize(["a cat"])
    embeds = bert.embed(ids).detach()
    out = bert.encode(embeds, ids)
    assert (ids[0, 4:] == bert.tokenizer.pad_id).all()
    changed = embeds.clone()
    changed[0, -1] *= -1  # the last pad
    assert (bert.encode(changed, ids)[0, :4] - out[0, :4]).abs().max() > 1e-3
    swapped = embeds[:, [0, 2, 1, *range(3, 12)]]
    assert (bert.encode(swapped, ids)[0, 1] - out[0, 2]).abs().max() > 1e-3


def test_a_prompt_does_not_depend_on_its_neighbours(bert: BertConditioner) -> None:
    together = contexts(bert, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(contexts(bert, [prompt])[0], together[i], rtol=1e-5, atol=1e-5)


def test_embed_reads_the_table_and_survives_private_ids(bert: BertConditioner) -> None:
    private = bert.tokenizer.add_placeholder("S*")
    assert private >= len(bert.token_table)
    ids = bert.tokenize(["a photo of S*"])
    embeds = bert.embed(ids)
    assert embeds.shape == (1, 12, 24) and embeds.isfinite().all()
    ordinary = ids < len(bert.token_table)
    assert (~ordinary).sum() == 1
    assert torch.equal(embeds[ordinary], bert.token_table[ids[ordinary]])


def test_table_may_be_larger_than_the_vocabulary_file(tiny_vocab: Path) -> None:
    bert = BertConditioner(tiny_vocab, n_embed=8, n_layer=1, vocab_size=100, max_seq_len=6)
    assert bert.token_table.shape == (100, 8)
    assert contexts(bert, ["a cat"]).shape == (1, 6, 8)


@pytest.mark.parametrize("head", [False, True])
def test_the_output_head_is_there_on_request_and_never_used(tiny_vocab: Path, head: bool) -> None:
    bert = BertConditioner(tiny_vocab, n_embed=8, n_layer=1, max_seq_len=6, logits_head=head)
    assert ("transformer.to_logits.weight" in bert.state_dict()) is head
    contexts(bert, ["a cat"]).sum().backward()
    assert all(p.grad is None for n, p in bert.named_parameters() if "to_logits" in n)
