"""The model as one object: words in prompts, scaling of latents, parameterizations, frozenness."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ldm.backbone.model import LatentDiffusion, LossConfig, ModelConfig, build
from ldm.diffusion.condition import Context
from ldm.errors import UserError
from ldm.io.checkpoints import load_model_weights, read_state_dict, save_checkpoint
from ldm.models.attention import SpatialTransformer

PROMPT = "a photo of S* on a beach"


def draw(model: LatentDiffusion, batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, cond, t, noise."""
    generator = torch.Generator().manual_seed(5)
    z, noise = torch.randn(2, batch, *model.latent_shape, generator=generator)
    cond = torch.randn(batch, 12, 32, generator=generator)
    return z, cond, torch.tensor([1, 500, 980])[:batch], noise


# ------------------------------------------------------------------ pictures and latents
def test_decode_undoes_the_scale_that_training_applies(tiny_model: LatentDiffusion) -> None:
    x = torch.randn(2, 3, 16, 16).clamp(-1, 1)
    posterior = tiny_model.encode(x)
    assert posterior.mean.shape[1:] == tiny_model.latent_shape == (4, 4, 4)
    z = posterior.mean * tiny_model.scale_factor
    expected = tiny_model.autoencoder.decode(posterior.mean)
    torch.testing.assert_close(tiny_model.decode(z), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ prompts
def test_a_model_with_its_own_words_shares_the_weights_alone(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<known>", init="dog")
    plain = tiny_model.condition(["a photo of a cat"]).tokens
    twin, other = tiny_model.with_own_words(), tiny_model.with_own_words()
    twin.add_placeholder("cat", init="dog")
    other.add_placeholder("<mine>", init="tree")
    assert list(twin.manager.placeholders) == ["<known>", "cat"]
    assert list(other.manager.placeholders) == ["<known>", "<mine>"]
    assert list(tiny_model.manager.placeholders) == ["<known>"]
    assert torch.equal(tiny_model.condition(["a photo of a cat"]).tokens, plain)
    assert not torch.equal(twin.condition(["a photo of a cat"]).tokens, plain)
    assert twin.unet is tiny_model.unet and twin.text.token_table is tiny_model.text.token_table
    tiny_model.unet.to(torch.bfloat16)
    assert next(twin.unet.parameters()).dtype == torch.bfloat16


def test_condition_puts_the_vectors_where_the_placeholder_stands(
    tiny_model: LatentDiffusion,
) -> None:
    cat = tiny_model.text.tokenizer.words("cat")
    tiny_model.add_placeholder("S*", tiny_model.text.token_table[cat])
    ours = tiny_model.condition([PROMPT, "a cat"]).tokens
    plain = tiny_model.condition([PROMPT.replace("S*", "cat"), "a cat"]).tokens
    assert ours.shape == (2, 1, 12, 32)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [3, torch.tensor([3, 0, 3, 0, 3])])
def test_each_different_prompt_is_encoded_once_with_the_same_contexts_and_gradient(
    tiny_model: LatentDiffusion, step: int | Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.add_placeholder("S*", init="dog", num_vectors=2, progressive=(2,))
    prompts = ["a S*", "a cat", "a S*", "a S*", "a cat"]
    steps = step.tolist() if isinstance(step, Tensor) else [step] * 5
    one_by_one = torch.cat([tiny_model.condition(p, s).tokens for p, s in zip(prompts, steps, strict=True)])
    encode, rows = tiny_model.text.encode, []
    monkeypatch.setattr(tiny_model.text, "encode", lambda e, ids: rows.append(len(e)) or encode(e, ids))
    together = tiny_model.condition(prompts, step).tokens
    assert rows == [4 if isinstance(step, Tensor) else 2]  # (S*, 3), (cat, 0), (S*, 0), (cat, 3)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6)
    v_star = tiny_model.manager.parameter("S*")
    grads = [torch.autograd.grad(c.sin().sum(), v_star)[0] for c in (together, one_by_one)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_several_vectors_take_several_places(tiny_model: LatentDiffusion) -> None:
    words = tiny_model.text.tokenizer.words("big red dog")
    tiny_model.add_placeholder("<my dog>", tiny_model.text.token_table[words])
    ours = tiny_model.condition(["a <my dog> and a cat"]).tokens
    plain = tiny_model.condition(["a big red dog and a cat"]).tokens
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_equal_vectors_for_each_layer_are_a_word_without_layers(tiny_model: LatentDiffusion) -> None:
    z, _, t, _ = draw(tiny_model, 2)
    tiny_model.add_placeholder("S*", init="dog", num_vectors=2)
    n, prompts = tiny_model.unet.num_transformers, [PROMPT, "a S* and a cat"]
    plain = tiny_model.condition(prompts).tokens
    tiny_model.add_placeholder("<layers>", init="dog", num_vectors=2, word="per_layer")
    layers = tiny_model.condition([prompt.replace("S*", "<layers>") for prompt in prompts]).tokens
    assert n == 7 and layers.shape == (2, n, 12, 32)
    torch.testing.assert_close(layers, plain.expand_as(layers), rtol=1e-5, atol=1e-5)
    own, shared = (tiny_model.eps(z, t, Context(tokens)) for tokens in (layers, plain))
    torch.testing.assert_close(own, shared, rtol=1e-4, atol=1e-5)


def test_each_transformer_reads_its_own_context(tiny_model: LatentDiffusion) -> None:
    z, _, t, _ = draw(tiny_model, 2)
    n = tiny_model.unet.num_transformers
    contexts = torch.randn(2, n, 12, 32, generator=torch.Generator().manual_seed(1))
    heard = []
    transformers = [m for m in tiny_model.unet.modules() if isinstance(m, SpatialTransformer)]
    hooks = [m.register_forward_pre_hook(lambda m, args: heard.append(args[1])) for m in transformers]
    tiny_model.eps(z, t, Context(contexts))
    assert len(heard) == n and torch.stack(heard, dim=1).equal(contexts)
    for hook in hooks:
        hook.remove()
    with pytest.raises(ValueError, match=f"{n - 1} contexts for {n}"):
        tiny_model.eps(z, t, Context(contexts[:, 1:]))


def test_values_of_their_own_reach_attention_beside_the_keys(tiny_model: LatentDiffusion) -> None:
    z, _, t, _ = draw(tiny_model, 2)
    keys, values = torch.randn(2, 2, 1, 12, 32, generator=torch.Generator().manual_seed(1))
    together = tiny_model.eps(z, t, Context(keys))
    torch.testing.assert_close(tiny_model.eps(z, t, Context(keys, keys)), together, rtol=0, atol=0)
    assert (tiny_model.eps(z, t, Context(keys, values)) - together).abs().max() > 1e-4


def test_a_plain_tensor_is_the_context_of_all_layers(tiny_model: LatentDiffusion) -> None:
    z, _, t, _ = draw(tiny_model, 2)
    tokens = tiny_model.condition([PROMPT, "a cat"]).tokens
    assert tiny_model.eps(z, t, tokens[:, 0]).equal(tiny_model.eps(z, t, Context(tokens)))
    with pytest.raises(UserError, match=r"\(2, 1, 12, 32\).*Context"):
        tiny_model.eps(z, t, tokens)


def test_a_new_word_leaves_other_prompts_as_they_were(tiny_model: LatentDiffusion) -> None:
    prompts = ["a photo of a cat", "", "snow on a tree"]
    before = tiny_model.condition(prompts).tokens
    tiny_model.add_placeholder("S*", init="dog", num_vectors=2)
    tiny_model.add_placeholder("<b>")
    torch.testing.assert_close(tiny_model.condition(prompts).tokens, before, rtol=0, atol=0)
    tiny_model.remove_placeholder("S*")
    assert list(tiny_model.manager.placeholders) == ["<b>"]
    assert list(tiny_model.text.tokenizer.placeholders) == ["<b>"]


@pytest.mark.parametrize("name", ["S*", "  <my   dog> "])
def test_a_word_can_be_removed_by_the_string_it_was_added_by(tiny_model: LatentDiffusion, name: str) -> None:
    tiny_model.add_placeholder(name, init="dog")
    tiny_model.remove_placeholder(name)
    assert not tiny_model.manager.placeholders and not tiny_model.text.tokenizer.placeholders


def test_the_gradient_of_the_loss_reaches_v_star_and_nothing_else(
    tiny_model: LatentDiffusion,
) -> None:
    tiny_model.add_placeholder("S*", init="dog")
    z, _, t, noise = draw(tiny_model)
    tiny_model.loss(z, tiny_model.condition([PROMPT] * 3), t, noise).backward()
    moved = {name for name, p in tiny_model.named_parameters() if p.grad is not None}
    assert len(moved) == 1 and next(iter(moved)).startswith("manager.words.")
    grad = tiny_model.manager.parameter("S*").grad
    assert grad is not None and grad.norm() > 1e-6


def test_init_phrases_start_at_their_words_and_unknown_ones_are_refused(
    tiny_model: LatentDiffusion,
) -> None:
    tiny_model.add_placeholder("S*", init="dog")
    dog = tiny_model.text.token_table[tiny_model.text.tokenizer.words("dog")]
    assert torch.equal(tiny_model.manager.vectors("S*").detach(), dog)
    with pytest.raises(UserError, match="init phrase"):
        tiny_model.add_placeholder("<b>", init="猫")
    with pytest.raises(UserError, match="exists already"):
        tiny_model.add_placeholder("S*", init="cat")
    assert list(tiny_model.text.tokenizer.placeholders) == ["S*"]


def test_a_word_that_was_refused_is_not_half_added(tiny_model: LatentDiffusion) -> None:
    before = tiny_model.condition([PROMPT]).tokens
    with pytest.raises(UserError, match="another model"):
        tiny_model.add_placeholder("S*", torch.zeros(1, 7))
    assert not tiny_model.manager.placeholders and not tiny_model.text.tokenizer.placeholders
    torch.testing.assert_close(tiny_model.condition([PROMPT]).tokens, before, rtol=0, atol=0)


# ------------------------------------------------------------------ diffusion
def alpha_sigma(model: LatentDiffusion, t: Tensor) -> tuple[Tensor, Tensor]:
    abar = model.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


def with_parameterization(
    config: ModelConfig, kind: str, randomise: Callable[..., nn.Module]
) -> LatentDiffusion:
    model = build(replace(config, parameterization=kind))
    for part in model.parts.values():
        randomise(part)
    return model.freeze()


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_eps_is_the_noise_that_the_output_means(
    tiny_config: ModelConfig, kind: str, randomise: Callable[..., nn.Module]
) -> None:
    model = with_parameterization(tiny_config, kind, randomise)
    z, cond, t, noise = draw(model)
    alpha, sigma = alpha_sigma(model, t)
    z_t = model.q_sample(z, t, noise)
    torch.testing.assert_close(z_t, alpha * z + sigma * noise)
    out = model.predict(z_t, t, cond)
    expected = {
        "eps": out,
        "v": alpha * out + sigma * z_t,
        "x0": (z_t - alpha * out) / sigma,
    }[kind]
    torch.testing.assert_close(model.eps(z_t, t, cond), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_loss_is_the_error_of_eps_rescaled_to_the_parameterization(
    tiny_config: ModelConfig, kind: str, randomise: Callable[..., nn.Module]
) -> None:
    model = with_parameterization(tiny_config, kind, randomise)
    z, cond, t, noise = draw(model)
    alpha, sigma = alpha_sigma(model, t)
    error = model.eps(model.q_sample(z, t, noise), t, cond) - noise
    # d eps / d v = alpha, d eps / d x0 = -alpha / sigma
    error = error / {"eps": 1.0, "v": alpha, "x0": alpha / sigma}[kind]
    expected = error.square().flatten(1).mean(1)
    terms = model.loss_terms(z, cond, t, noise)
    torch.testing.assert_close(terms.per_sample, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.loss(z, cond, t, noise), terms.per_sample.mean())


def test_loss_weights_come_from_the_config(tiny_config: ModelConfig) -> None:
    model = build(replace(tiny_config, loss=LossConfig(min_snr_gamma=5.0)))
    z, cond, t, noise = draw(model)
    terms = model.loss_terms(z, cond, t, noise)
    weight = model.schedule.snr(t).clamp(max=5.0) / model.schedule.snr(t)
    torch.testing.assert_close(terms.per_sample, weight * terms.simple)


# ------------------------------------------------------------------ frozenness
def test_frozen_parts_stay_in_eval_whatever_train_says(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("S*", init="dog")
    assert tiny_model.train() is tiny_model
    frozen = [m for part in tiny_model.parts.values() for m in part.modules()]
    assert not any(m.training for m in frozen)
    assert tiny_model.manager.training
    assert [n for n, p in tiny_model.named_parameters() if p.requires_grad] == [
        n for n, _ in tiny_model.named_parameters() if n.startswith("manager.")
    ]
    tiny_model.eval()
    assert not tiny_model.manager.training


def test_parts_that_train_do_follow_train(tiny_config: ModelConfig) -> None:
    model = build(tiny_config)
    model.autoencoder.requires_grad_(False)
    model.eval().train()
    assert model.unet.training and model.text.training and not model.autoencoder.training


def test_weights_may_be_held_in_bfloat16_while_words_stay_float32(
    tiny_model: LatentDiffusion,
) -> None:
    tiny_model.add_placeholder("S*", init="dog")
    z, _, t, noise = draw(tiny_model)
    full = tiny_model.loss(z, tiny_model.condition([PROMPT] * 3), t, noise)
    tiny_model.to(torch.bfloat16)
    assert tiny_model.dtype == torch.bfloat16
    assert tiny_model.manager.parameter("S*").dtype == torch.float32
    assert tiny_model.schedule.alphas_cumprod.dtype == torch.float32
    half = tiny_model.loss(z, tiny_model.condition([PROMPT] * 3), t, noise)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0)
    half.backward()
    grad = tiny_model.manager.parameter("S*").grad
    assert grad is not None and grad.dtype == torch.float32
    assert tiny_model.decode(z).dtype == torch.float32


# ------------------------------------------------------------------ identity
def test_fingerprint_names_the_weights_and_nothing_else(
    tiny_config: ModelConfig, tiny_model: LatentDiffusion, randomise: Callable[..., nn.Module]
) -> None:
    def again() -> LatentDiffusion:
        model = build(tiny_config)
        for part in model.parts.values():
            randomise(part)
        return model

    fingerprint = tiny_model.fingerprint()
    assert len(fingerprint) == 64 and fingerprint == again().fingerprint()
    with_word = again()
    with_word.add_placeholder("S*", init="dog")
    assert with_word.fingerprint() == fingerprint
    for part in tiny_model.parts:
        changed = again()
        with torch.no_grad():
            next(changed.parts[part].parameters()).view(-1)[0] += 1.0
        assert changed.fingerprint() != fingerprint


def test_a_saved_model_loads_into_a_fresh_one(
    tiny_config: ModelConfig, tiny_model: LatentDiffusion, tmp_path
) -> None:
    path = save_checkpoint(tiny_model.parts, tmp_path / "m.safetensors", dtype=None)
    twin = build(tiny_config)
    assert twin.fingerprint() != tiny_model.fingerprint()
    twin = build(tiny_config)
    load_model_weights(twin.parts, read_state_dict(path))
    assert twin.fingerprint() == tiny_model.fingerprint()
