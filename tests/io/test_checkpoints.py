"""Base checkpoints: all formats read, strict about weights only, never half-loaded."""

import os
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm.errors import UserError
from ldm.io.checkpoints import (
    fingerprint,
    load_model_weights,
    read_metadata,
    read_state_dict,
    read_torch,
    save_checkpoint,
)

pytestmark = pytest.mark.slow


def make_parts(seed: int = 0, width: int = 6) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {
        "model.diffusion_model.": nn.Sequential(nn.Conv2d(3, width, 3), nn.GroupNorm(2, width)),
        "first_stage_model.": nn.Sequential(nn.Conv2d(3, width, 1)),
        "cond_stage_model.": nn.Embedding(10, width),
    }


def flat(parts: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {p + n: t.clone() for p, m in parts.items() for n, t in m.state_dict().items()}


def same(a: dict[str, nn.Module], b: dict[str, nn.Module]) -> bool:
    x, y = flat(a), flat(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# ------------------------------------------------------------------------------ reading
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", ["m.ckpt", "m.pt", "old.ckpt", "m.safetensors"])
def test_every_format_gives_the_same_tensors(tmp_path, name, nested):
    weights, path = flat(make_parts()), tmp_path / name
    if name.endswith("safetensors"):
        save_file(weights, path)
    else:
        torch.save(
            {"state_dict": weights, "epoch": 3} if nested else weights,
            path,
            _use_new_zipfile_serialization=not name.startswith("old"),
        )
    found = read_state_dict(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[k], weights[k]) for k in weights)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.ckpt"):
        read_state_dict(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("name", ["m.ckpt", "old.ckpt", "m.safetensors"])
def test_a_file_cut_short_is_a_one_line_error_that_names_it(tmp_path, name):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(flat(make_parts()), path)
    else:
        torch.save(flat(make_parts()), path, _use_new_zipfile_serialization=not name.startswith("old"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=name) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"version https://git-lfs.g", pickle.dumps([1, 2]), b"\x00" * 64]
)
def test_a_file_of_another_kind_is_a_one_line_error_that_names_it(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="x.ckpt") as caught:
        read_state_dict(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="no weights"):
        read_state_dict(tmp_path / "x.ckpt")


class Bomb:
    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_runs(tmp_path, zipped):
    flag = tmp_path / "ran"
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "x": Bomb(str(flag))},
        tmp_path / "x.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match="mkdir"):
        read_state_dict(tmp_path / "x.ckpt")
    assert not flag.exists()


def test_what_lightning_and_omegaconf_pickle_beside_the_weights_does_not_get_in_the_way(
    tmp_path, monkeypatch
):
    import numpy
    from omegaconf import OmegaConf

    ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning"})
    stand_in = types.ModuleType("pytorch_lightning")  # the real one takes seconds to import
    stand_in.ModelCheckpoint = ModelCheckpoint
    monkeypatch.setitem(sys.modules, "pytorch_lightning", stand_in)
    torch.save(
        {
            "state_dict": {"a": torch.ones(2)},
            "callbacks": {ModelCheckpoint: {"best": 1}},
            "state": ModelCheckpoint(),
            "best_model_score": numpy.float64(0.5),
            "array": numpy.arange(3),
            "hyper_parameters": OmegaConf.create({"a": {"b": [1, 2]}}),
        },
        tmp_path / "x.ckpt",
    )
    assert read_state_dict(tmp_path / "x.ckpt")["a"].tolist() == [1, 1]


# ------------------------------------------------------------------------------ loading
def test_loading_is_lenient_about_what_is_no_weight():
    source, target = make_parts(0), make_parts(1)
    weights = flat(source) | {
        "betas": torch.ones(4),
        "alphas_cumprod": torch.ones(4),
        "logvar": torch.ones(4),
        "model_ema.diffusion_model0weight": torch.ones(3),
        "embedding_manager.string_to_param_dict.*": torch.ones(1, 6),
        "first_stage_model.loss.discriminator.main.0.weight": torch.ones(2),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.ones(1, 77),
    }
    load_model_weights(target, weights)
    assert same(source, target)


def test_position_ids_may_also_lack():
    module = nn.Linear(2, 2)
    module.register_buffer("position_ids", torch.arange(3))
    load_model_weights(
        {"cond_stage_model.": module},
        {"cond_stage_model.weight": torch.ones(2, 2), "cond_stage_model.bias": torch.ones(2)},
    )
    assert module.bias.tolist() == [1, 1]


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "prefix"])
def test_another_models_checkpoint_is_refused_and_touches_nothing(change):
    parts, before, weights = make_parts(0), make_parts(0), flat(make_parts(1))
    last = "model.diffusion_model.1.weight"  # loaded last, so a half-load would show
    if change == "missing":
        del weights[last]
    elif change == "unexpected":
        weights["model.diffusion_model.9.weight"] = torch.ones(1)
    elif change == "prefix":
        weights["control_model.9.weight"] = torch.ones(1)
    else:
        weights[last] = torch.ones(99)
    with pytest.raises(UserError, match="m.ckpt.*another model") as caught:
        load_model_weights(parts, weights, source="m.ckpt")
    assert same(parts, before) and "\n" not in str(caught.value)
    assert "(99,) instead of (6,)" in str(caught.value) or change != "shape"


def test_the_difference_counts_all_and_names_the_first_few():
    with pytest.raises(UserError, match=r"7 missing .*bias, .*, \.\.\.\); 1 unexpected \(x\.y\)"):
        load_model_weights(make_parts(), {"x.y": torch.ones(1)})


def test_one_part_loads_alone_and_ignored_patterns_may_be_left_over():
    source, target = make_parts(0), make_parts(1)
    only = {"first_stage_model.": target["first_stage_model."]}
    load_model_weights(
        only, flat(source) | {"first_stage_model.old.x": torch.ones(1)}, ignore=["first_stage_model.old.*"]
    )
    assert torch.equal(only["first_stage_model."][0].weight, source["first_stage_model."][0].weight)
    assert not same(source, target)


def test_weights_are_cast_to_the_modules_dtype_and_meta_modules_take_them():
    source = make_parts(0)
    half = {k: v.half() for k, v in flat(source).items()}
    target = make_parts(1)
    load_model_weights(target, half)
    assert target["first_stage_model."][0].weight.dtype == torch.float32
    with torch.device("meta"):
        empty = make_parts(1)
    empty["first_stage_model."].requires_grad_(False)
    load_model_weights(empty, half)
    assert torch.equal(empty["first_stage_model."][0].weight, half["first_stage_model.0.weight"])
    assert not empty["first_stage_model."][0].weight.requires_grad


# ------------------------------------------------------------------- saving, fingerprint
def test_save_and_load_keep_the_fingerprint_in_half_and_full_precision(tmp_path):
    parts = make_parts(0)
    mark = fingerprint(parts)
    for dtype in (torch.float16, torch.float32, None):
        path = save_checkpoint(parts, tmp_path / "m.safetensors", dtype, {"card": "x"})
        again = make_parts(5)
        assert fingerprint(again) != mark
        load_model_weights(again, read_state_dict(path))
        assert fingerprint(again) == mark
        assert read_metadata(path) == {"format_version": "1", "fingerprint": mark, "card": "x"}
        for module in again.values():
            module.half()
        assert fingerprint(again) == mark


def test_a_half_precision_file_is_half_as_large(tmp_path):
    parts = {"first_stage_model.": nn.Linear(100, 100)}
    size = [
        save_checkpoint(parts, tmp_path / "m.safetensors", d).stat().st_size
        for d in (torch.float16, torch.float32)
    ]
    assert size[0] < 0.6 * size[1]


def test_the_exact_fingerprint_sees_one_bit_and_the_dtype():
    parts = make_parts(0)
    before = fingerprint(parts, exact=True)
    weight = parts["first_stage_model."][0].weight.data
    weight.view(torch.int32).flatten()[0] ^= 1
    assert fingerprint(parts, exact=True) != before
    weight.view(torch.int32).flatten()[0] ^= 1
    assert fingerprint(parts, exact=True) == before
    parts["first_stage_model."].double()
    assert fingerprint(parts, exact=True) != before


def test_the_fingerprint_depends_on_names_and_shapes():
    w = torch.ones(2, 3)
    marks = set()
    for prefix, shape in (("a.", (2, 3)), ("b.", (2, 3)), ("a.", (3, 2)), ("a.", (6, 1))):
        module = nn.Linear(shape[1], shape[0], bias=False)
        module.weight.data = w.reshape(shape).clone()
        marks.add(fingerprint({prefix: module}))
    assert len(marks) == 4


def test_values_that_half_precision_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    module = nn.Linear(1, 1)
    module.weight.data.fill_(1e6)
    with pytest.raises(UserError, match="float32"):
        save_checkpoint({"first_stage_model.": module}, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_tied_weights_can_be_saved(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    path = save_checkpoint({"cond_stage_model.": module}, tmp_path / "m.safetensors", None)
    assert len(read_state_dict(path)) == 4


def test_what_torch_says_of_a_damaged_file_is_not_printed(tmp_path, recwarn):
    """Found by tests/torture/fuzz.py: a program of protocol 128."""
    torch.save({"a": torch.ones(2)}, tmp_path / "x.ckpt")
    data = (tmp_path / "x.ckpt").read_bytes()
    (tmp_path / "x.ckpt").write_bytes(data.replace(b"\x80\x02}", b"\x80\x80}", 1))
    assert (tmp_path / "x.ckpt").read_bytes() != data
    assert read_torch(tmp_path / "x.ckpt")["a"].tolist() == [1, 1]
    assert not recwarn.list
