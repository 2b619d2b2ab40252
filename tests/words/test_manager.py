"""EmbeddingManager against a slow obvious one, and its promises: pure, fp32, restorable."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.words.kind import Word
from ldm.words.manager import EmbeddingManager, image_token

PAD, END, VOCAB, WIDTH, LAYERS = 0, 2, 20, 5, 3
NAMES = ("S*", "*", "<a.b c>", "cat")


def build(
    counts: list[int],
    progressive: list[list[int] | None] | None = None,
    seed: int = 0,
    per_layer: list[bool] | None = None,
):
    manager = EmbeddingManager(WIDTH, VOCAB, END, layers=LAYERS)
    generator = torch.Generator().manual_seed(seed)
    # ids fall while names rise: order of adding and order of ids must not be confused
    for i, count in enumerate(counts):
        shape = (LAYERS, count, WIDTH) if per_layer and per_layer[i] else (count, WIDTH)
        vectors = torch.randn(shape, generator=generator)
        kind = "per_layer" if len(shape) == 3 else "plain"
        manager.add(NAMES[i], VOCAB + 7 - i, vectors, progressive[i] if progressive else None, word=kind)
    return manager


def slow(manager: EmbeddingManager, ids: Tensor, embeds: Tensor, step: int | None):
    """One layer after the other, if any word has vectors for each; else one that all layers share."""
    apart = any(manager.vectors(name).ndim == 3 for name in manager.placeholders)
    placed = [slow_in_layer(manager, ids, embeds, step, layer) for layer in range(LAYERS if apart else 1)]
    return placed[0][0], torch.stack([embeds for _, embeds in placed], dim=1)


def slow_in_layer(manager: EmbeddingManager, ids: Tensor, embeds: Tensor, step: int | None, layer: int):
    """One list a row, as one would write it on paper."""
    vectors = {name: manager.vectors(name, step) for name in manager.placeholders}
    vectors = {name: v if v.ndim == 2 else v[layer] for name, v in vectors.items()}
    length = ids.shape[1]
    names = {token_id: name for name, token_id in manager.placeholders.items()}
    all_ids, all_embeds = [], []
    for row, row_embeds in zip(ids.tolist(), embeds, strict=True):
        out: list[tuple[int, Tensor]] = []
        for token, embed in zip(row, row_embeds, strict=True):
            if token in names:
                out += [(token, vector) for vector in vectors[names[token]]]
            else:
                out.append((token, embed))
        end = next((i for i, (token, _) in enumerate(out) if token == END), None)
        if manager.keep_end and end is not None and end >= length:
            out[length - 1] = out[end]
        all_ids.append([token for token, _ in out[:length]])
        all_embeds.append(torch.stack([embed for _, embed in out[:length]]))
    return torch.tensor(all_ids), torch.stack(all_embeds)


@st.composite
def cases(draw):
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    growth = [
        sorted(draw(st.lists(st.integers(0, 9), min_size=k - 1, max_size=k - 1)))
        if draw(st.booleans())
        else None
        for k in counts
    ]
    private = [VOCAB + 7 - i for i in range(len(counts))]
    length = draw(st.integers(1, 9))
    token = st.one_of(st.integers(3, VOCAB - 1), st.sampled_from(private), st.just(VOCAB + 9))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.lists(token, min_size=0, max_size=length - 1)) + [END]
        rows.append(row + [draw(st.sampled_from((PAD, END)))] * (length - len(row)))
    step = draw(st.one_of(st.none(), st.integers(0, 10)))
    per_layer = draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    return build(counts, growth, per_layer=per_layer), torch.tensor(rows), step


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(case=cases(), keep_end=st.booleans())
def test_vectorised_equals_the_slow_obvious_one(case, keep_end: bool) -> None:
    manager, ids, step = case
    manager.keep_end = keep_end
    embeds = torch.randn(*ids.shape, WIDTH)
    given_ids, given_embeds = ids.clone(), embeds.clone()
    expected_ids, expected_embeds = slow(manager, ids, embeds, step)

    new_ids, new_embeds, _ = manager(ids, embeds, step)

    assert new_ids.equal(expected_ids) and new_embeds.equal(expected_embeds)
    assert ids.equal(given_ids) and embeds.equal(given_embeds), "the arguments were edited"
    again = manager(ids, embeds, step)
    assert again[0].equal(new_ids) and again[1].equal(new_embeds), "a call changed the manager"


def test_a_step_for_each_row_equals_one_call_a_row() -> None:
    manager = build([3, 2], [[2, 4], [3]])
    ids = torch.tensor([[1, VOCAB + 7, 5, VOCAB + 6, END, PAD, PAD]] * 3)
    embeds = torch.randn(3, 7, WIDTH)
    both = manager(ids, embeds, torch.tensor([0, 2, 4]))
    for i, step in enumerate((0, 2, 4)):
        one = manager(ids[i : i + 1], embeds[i : i + 1], step)
        assert both[0][i].equal(one[0][0]) and both[1][i].equal(one[1][0])


def test_layers_are_told_apart_only_where_a_word_that_has_them_occurs_or_trains() -> None:
    manager = build([1, 2], per_layer=[True, False])
    plain, layered = torch.tensor([[1, VOCAB + 6, END, PAD]]), torch.tensor([[1, VOCAB + 7, END, PAD]])
    embeds = torch.randn(1, 4, WIDTH)
    assert manager(plain, embeds)[1].shape == (1, LAYERS, 4, WIDTH)
    with torch.no_grad():
        assert manager(plain, embeds)[1].shape == (1, 1, 4, WIDTH)
        assert manager(layered, embeds)[1].shape == (1, LAYERS, 4, WIDTH)
    manager.train_only([NAMES[1]])
    assert manager(plain, embeds)[1].shape == (1, 1, 4, WIDTH)


def test_each_layer_has_its_own_gradient() -> None:
    manager = build([2], per_layer=[True])
    _, embeds, _ = manager(torch.tensor([[1, VOCAB + 7, END, PAD, PAD]]), torch.randn(1, 5, WIDTH))
    embeds[:, 1].sum().backward()
    grad = manager.parameter(NAMES[0]).grad
    assert grad.equal(torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(LAYERS, 2, WIDTH))


def test_vectors_for_another_number_of_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(2, 1, 5\).*\(3, K, 5\)"):
        build([1]).add("<new>", VOCAB + 9, torch.randn(LAYERS - 1, 1, WIDTH), word="per_layer")


def test_vectors_are_spliced_in_and_the_rest_moves_right() -> None:
    manager = build([3])
    private = VOCAB + 7
    ids = torch.tensor([[1, private, 5, END, PAD, PAD]])
    new_ids, new_embeds, _ = manager(ids, torch.zeros(1, 6, WIDTH))
    assert new_ids.tolist() == [[1, private, private, private, 5, END]]
    assert new_embeds[0, 0, 1:4].equal(manager.vectors("S*"))


def test_the_end_token_stays_last_when_vectors_overflow_unless_compat() -> None:
    ids = torch.tensor([[1, VOCAB + 7, 5, 6, END]])
    embeds = torch.arange(5.0)[None, :, None].expand(1, 5, WIDTH)
    manager = build([4])
    new_ids, new_embeds, _ = manager(ids, embeds)
    assert new_ids[0, -1] == END and new_embeds[0, 0, -1].equal(embeds[0, -1])
    manager.keep_end = False
    assert END not in manager(ids, embeds)[0]


def test_progressive_vectors_appear_at_their_steps() -> None:
    manager = EmbeddingManager(WIDTH, VOCAB, END)
    manager.add("S*", VOCAB, torch.randn(3, WIDTH), progressive=(2000, 4000))
    ids = torch.tensor([[1, VOCAB, END, PAD, PAD, PAD]])
    counts = {0: 1, 1999: 1, 2000: 2, 3999: 2, 4000: 3, None: 3}
    for step, count in counts.items():
        assert manager.count("S*", step) == len(manager.vectors("S*", step)) == count
        assert (manager(ids, torch.zeros(1, 6, WIDTH), step)[0] == VOCAB).sum() == count


def test_gradient_reaches_only_the_vectors_used_and_only_from_their_positions() -> None:
    manager = build([2, 3, 1], [None, [5, 6], None])
    ids = torch.tensor([[1, VOCAB + 6, 4, VOCAB + 6, END, PAD, PAD]])
    embeds = torch.randn(1, 7, WIDTH, requires_grad=True)
    _, out, _ = manager(ids, embeds, 5)  # two of three vectors of NAMES[1], twice
    weight = torch.arange(7.0)[None, :, None]
    (out * weight).sum().backward()
    used = manager.parameter(NAMES[1]).grad
    assert used[:, 0].tolist() == [1.0 + 4.0, 2.0 + 5.0, 0.0]
    for name in (NAMES[0], NAMES[2]):
        assert manager.parameter(name).grad.abs().sum() == 0
    # ordinary tokens keep their own gradient; placeholders' dummy embeddings get none
    assert embeds.grad[0, :, 0].tolist() == [0.0, 0.0, 3.0, 0.0, 6.0, 0.0, 0.0]


def test_without_placeholders_prompts_pass_unchanged() -> None:
    ids, embeds = torch.tensor([[1, 5, END]]), torch.randn(1, 3, WIDTH)
    new_ids, new_embeds, _ = EmbeddingManager(WIDTH, VOCAB, END)(ids, embeds)
    assert new_ids.equal(ids) and new_embeds.equal(embeds[:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_stay_float32_bit_for_bit_in_any_precision(dtype: torch.dtype) -> None:
    manager = build([2, 1])
    before = copy.deepcopy(manager.state_dict())
    holder = nn.ModuleDict({"manager": manager, "linear": nn.Linear(2, 2)}).to(dtype)
    assert holder["linear"].weight.dtype == dtype
    for tensor in (*manager.parameters(), *manager.buffers()):
        assert tensor.dtype == torch.float32
    for key, tensor in manager.state_dict().items():
        if isinstance(tensor, Tensor):
            assert tensor.equal(before[key])
    ids = torch.tensor([[1, VOCAB + 7, END, PAD]])
    out = manager(ids, torch.zeros(1, 4, WIDTH, dtype=dtype))[1]
    assert out.dtype == dtype
    out.sum().backward()
    assert manager.parameter("S*").grad.dtype == torch.float32


def test_half_and_bfloat16_keep_float32_and_device_moves_work() -> None:
    manager = build([2]).half().bfloat16()
    assert manager.parameter("S*").dtype == torch.float32
    moved = manager.to("meta", torch.float16)
    assert moved.parameter("S*").device.type == moved.device.type == "meta"
    assert moved.parameter("S*").dtype == torch.float32


def test_parameters_are_the_vectors_alone() -> None:
    manager = build([2, 3])
    assert {id(p) for p in manager.parameters()} == {id(manager.parameter(n)) for n in NAMES[:2]}


def assert_same(one: EmbeddingManager, other: EmbeddingManager) -> None:
    assert one.placeholders == other.placeholders
    for name in one.placeholders:
        assert one.parameter(name).equal(other.parameter(name))
        assert one.init_vectors(name).equal(other.init_vectors(name))
        assert [one.count(name, s) for s in range(9)] == [other.count(name, s) for s in range(9)]
    ids = torch.tensor([[1, VOCAB + 7, VOCAB + 6, VOCAB + 5, END] + [PAD] * 6])
    embeds = torch.randn(1, 11, WIDTH)
    assert one(ids, embeds, 4)[1].equal(other(ids, embeds, 4)[1])


def test_state_dict_restores_an_empty_manager_inside_another_module(tmp_path) -> None:
    manager = build([3, 1, 2], [[2, 6], None, None])
    with torch.no_grad():
        for parameter in manager.parameters():
            parameter += 1
    torch.save(nn.ModuleDict({"m": manager}).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    empty = EmbeddingManager(WIDTH, VOCAB, END)
    nn.ModuleDict({"m": empty}).load_state_dict(state, strict=True)
    assert_same(manager, empty)
    assert all(p.requires_grad for p in empty.parameters())


def test_loading_replaces_other_placeholders_and_keeps_agreeing_parameter_objects() -> None:
    saved = build([2, 1])
    target = EmbeddingManager(WIDTH, VOCAB, END)
    target.add("old", VOCAB + 3, torch.zeros(1, WIDTH))
    target.add(NAMES[0], VOCAB + 4, torch.zeros(2, WIDTH))
    target.add(NAMES[1], VOCAB + 5, torch.zeros(4, WIDTH))  # another K
    trained = target.parameter(NAMES[0])
    target.load_state_dict(saved.state_dict())
    assert_same(saved, target)
    assert target.parameter(NAMES[0]) is trained


def test_deep_copy_and_pickle_are_independent() -> None:
    manager = build([2, 1])
    for twin in (copy.deepcopy(manager), pickle.loads(pickle.dumps(manager))):
        assert_same(manager, twin)
        twin.add("new", VOCAB + 9, torch.zeros(1, WIDTH))
    assert "new" not in manager.placeholders


def test_removed_placeholder_leaves_the_others_in_place() -> None:
    manager = build([2, 3, 1])
    kept = manager.vectors(NAMES[2]).clone()
    manager.remove(NAMES[1])
    ids = torch.tensor([[1, VOCAB + 6, VOCAB + 5, END]])
    embeds = torch.zeros(1, 4, WIDTH)
    new_ids, new_embeds, _ = manager(ids, embeds)
    assert new_ids.equal(ids) and new_embeds[0, 0, 1].equal(embeds[0, 1])
    assert new_embeds[0, 0, 2].equal(kept[0])


def test_image_tokens_are_named_by_rule_and_get_ids_from_the_caller() -> None:
    manager = EmbeddingManager(WIDTH, VOCAB, END)
    ids = iter(range(VOCAB, VOCAB + 9))
    names = manager.add_image_tokens("S", torch.randn(3, WIDTH), lambda name: next(ids))
    assert names == ("S_0", "S_1", "S_2") == tuple(image_token("S", i) for i in range(3))
    assert manager.placeholders == {name: VOCAB + i for i, name in enumerate(names)}


def test_names_that_look_alike_have_their_own_parameters() -> None:
    manager = EmbeddingManager(WIDTH, VOCAB, END)
    for i, name in enumerate(("a.b", "a*b", "a_b", "ab", "a_2e_b", "values", "é", "<>", "猫")):
        manager.add(name, VOCAB + i, torch.full((1, WIDTH), float(i)))
    assert len(list(manager.parameters())) == 9
    assert [manager.vectors(name)[0, 0].item() for name in manager.placeholders] == list(range(9))


def test_norms_and_distances_are_of_the_vectors_in_use() -> None:
    manager = EmbeddingManager(WIDTH, VOCAB, END)
    start = torch.ones(2, WIDTH)
    manager.add("S*", VOCAB, start, progressive=(10,))
    with torch.no_grad():
        manager.parameter("S*")[0] += 2
    assert start.equal(torch.ones(2, WIDTH)), "add must copy"
    torch.testing.assert_close(manager.norms()["S*"], torch.tensor([45.0, 5.0]).sqrt())
    torch.testing.assert_close(manager.distance_to_init()["S*"], torch.tensor([20.0, 0]).sqrt())
    assert len(manager.norms(step=9)["S*"]) == len(manager.distance_to_init(9)["S*"]) == 1


def test_what_does_not_fit_is_refused() -> None:
    manager = build([1])
    ok = torch.zeros(2, WIDTH)
    with pytest.raises(UserError, match="exists already"):
        manager.add("S*", VOCAB, ok)
    with pytest.raises(UserError, match="another model"):
        manager.add("new", VOCAB, torch.zeros(2, WIDTH + 1))
    with pytest.raises(UserError, match="NaN"):
        manager.add("new", VOCAB, ok.log() * 0)
    with pytest.raises(UserError, match="no placeholder 'new'; known: 'S\\*'"):
        manager.vectors("new")
    with pytest.raises(ValueError, match="vocabulary word"):
        manager.add("new", VOCAB - 1, ok)
    with pytest.raises(ValueError, match="another placeholder"):
        manager.add("new", VOCAB + 7, ok)
    for steps in ((1, 2), (2, 1, 3)):
        with pytest.raises(ValueError, match="grow"):
            manager.add("new", VOCAB, ok, progressive=steps)
    assert list(manager.placeholders) == ["S*"], "a refused placeholder left something behind"


def test_words_that_are_known_but_do_not_train_are_shown_and_left_alone() -> None:
    manager = build([2, 3, 1])
    manager.train_only([NAMES[1]])
    assert manager.trained == [NAMES[1]]
    assert [p.requires_grad for p in map(manager.parameter, NAMES[:3])] == [False, True, False]
    ids = torch.tensor([[1, VOCAB + 7, END, PAD, PAD]])  # NAMES[0] alone
    expected = build([2, 3, 1])(ids, torch.zeros(1, 5, WIDTH))[1]
    out = manager(ids, torch.zeros(1, 5, WIDTH))[1]
    assert out.equal(expected)
    out.sum().backward()
    assert manager.parameter(NAMES[0]).grad is None
    assert not manager.parameter(NAMES[1]).grad.any()  # it trains: zero, not missing


def test_of_thousands_of_known_words_only_those_at_hand_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = EmbeddingManager(WIDTH, VOCAB, END)
    for i in range(2000):
        manager.add(f"w{i}", VOCAB + i, torch.full((1, WIDTH), float(i)))
    manager.train_only(["w7"])
    touched: list[str] = []
    word = EmbeddingManager.word

    def watched(self: EmbeddingManager, name: str) -> Word:
        touched.append(name)
        return word(self, name)

    monkeypatch.setattr(EmbeddingManager, "word", watched)
    out = manager(torch.tensor([[1, VOCAB + 1500, END]]), torch.zeros(1, 3, WIDTH))[1]
    assert set(touched) == {"w7", "w1500"} and out[0, 0, 1, 0] == 1500
