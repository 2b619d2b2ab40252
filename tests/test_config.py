"""Configs: merging, typed resolution with helpful errors, and import by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ldm import config
from ldm.config import dump_yaml, instantiate, load_yaml, locate, resolve, to_plain
from ldm.errors import UserError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["linear", "cosine"] = "linear"


@dataclass(frozen=True)
class Outer:
    steps: int
    name: str = "run"
    fast: bool = False
    folder: Path = Path("out")
    limit: int | None = None
    words: tuple[str, ...] = ()
    widths: list[int] = field(default_factory=list)
    extra: dict = field(default_factory=dict)
    anything: Any = None
    inner: Inner = field(default_factory=Inner)


class Widget:
    def __init__(self, width: int, height: int = 2) -> None:
        if width < 0:
            raise ValueError("a width\nbelow 0")
        self.size = (width, height)


def anything_goes(**options: int) -> dict[str, int]:
    return options


WIDGET = f"{__name__}.Widget"


@pytest.fixture
def of_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of this file as ones that a config may name."""
    names = {WIDGET, f"{__name__}.anything_goes"}
    monkeypatch.setattr(config, "TARGETS", config.TARGETS | {name: name for name in names})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("steps: 3\nname: first\ninner: {rate: 0.5}\nwidths: [1, 2]\ncopy: ${inner.rate}\n")
    b.write_text("name: second\n")
    return a, b


# ------------------------------------------------------------------ reading
def test_later_files_win_then_overrides_and_interpolation_is_resolved(
    files: tuple[Path, Path],
) -> None:
    values = load_yaml(files, ["inner.rate=0.25", "inner.kind=cosine", "new.key=[1,2]"])
    assert values == {
        "steps": 3,
        "name": "second",
        "inner": {"rate": 0.25, "kind": "cosine"},
        "widths": [1, 2],
        "copy": 0.25,
        "new": {"key": [1, 2]},
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_yaml([tmp_path / "nowhere.yaml"])


@pytest.mark.parametrize("text", ["a: [1, 2", "a: 1\n b: 2", "\t- x: {"])
def test_a_file_that_is_not_yaml_is_a_one_line_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.yaml") as caught:
        load_yaml([path])
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(UserError, match=r"photo\.yaml"):
        load_yaml([path])


def test_a_list_at_the_top_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(UserError):
        load_yaml([path])


def test_an_override_without_a_value_is_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"key\.sub=value"):
        load_yaml(files, ["inner.rate"])


def test_an_override_whose_value_is_not_yaml_is_one_line(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError) as caught:
        load_yaml(files, ["words=[a {}]"])
    assert "\n" not in str(caught.value)


def test_a_dangling_interpolation_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: ${nothing.here}\n")
    with pytest.raises(UserError) as caught:
        load_yaml([path])
    assert "nothing" in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------ resolving
def test_values_become_a_typed_frozen_dataclass() -> None:
    config = resolve(
        Outer,
        {
            "steps": 3,
            "folder": "logs",
            "limit": 4,
            "words": ["a", "b"],
            "widths": [1],
            "extra": {"x": 1},
            "inner": {"rate": 1, "kind": "cosine"},
        },
    )
    assert config == Outer(
        3, "run", False, Path("logs"), 4, ("a", "b"), [1], {"x": 1}, None, Inner(1.0, "cosine")
    )
    assert isinstance(config.inner.rate, float)
    with pytest.raises(AttributeError):
        config.steps = 4  # type: ignore[misc]


def test_a_float_may_be_written_as_yaml_reads_exponents() -> None:
    assert resolve(Inner, {"rate": "1e-3"}) == Inner(1e-3)  # YAML 1.1: a string


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1, "nmae": "x"}, "unknown config key 'nmae'; did you mean 'name'?"),
        ({"steps": 1, "inner": {"rat": 1}}, "'inner.rat'; did you mean 'rate'?"),
        ({"steps": 1, "zzzzzz": 1}, "known keys: anything, extra, fast"),
        ({}, "lacks 'steps'"),
        ({"steps": "many"}, "steps is 'many'; give a int"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": True}, "steps is True"),
        ({"steps": 1, "fast": 1}, "fast is 1; give a bool"),
        ({"steps": 1, "fast": "yes"}, "fast is 'yes'"),
        ({"steps": 1, "name": 5}, "name is 5"),
        ({"steps": 1, "limit": "x"}, "limit is 'x'"),
        ({"steps": 1, "words": "ab"}, "words is 'ab'; give a list"),
        ({"steps": 1, "words": [1]}, "words[0] is 1"),
        ({"steps": 1, "extra": [1]}, "extra is [1]; give a mapping"),
        ({"steps": 1, "inner": 3}, "inner must be a mapping"),
        ({"steps": 1, "inner": {"rate": "fast"}}, "inner.rate is 'fast'"),
        ({"steps": 1, "inner": {"rate": False}}, "inner.rate is False"),
        ({"steps": 1, "inner": {"kind": "square"}}, "choose one of linear, cosine"),
        ({"steps": None}, "steps is None"),
    ],
)
def test_wrong_values_are_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(Outer, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_resolved_config_survives_yaml(tmp_path: Path) -> None:
    config = Outer(3, limit=None, words=("a",), folder=Path("x/y"), inner=Inner(1e-4, "cosine"))
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(to_plain(config)))
    assert resolve(Outer, load_yaml([path])) == config


@dataclass(frozen=True)
class Special:
    """A section whose default is not that of its class."""

    inner: Inner = field(default_factory=lambda: Inner(0.5, "cosine"))
    other: Literal["all"] | Inner = Inner(0.7, "cosine")
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("values", "inner"),
    [
        ({}, Inner(0.5, "cosine")),
        ({"inner": {}}, Inner(0.5, "cosine")),
        ({"inner": None}, Inner(0.5, "cosine")),
        ({"inner": {"rate": 1}}, Inner(1.0, "cosine")),
        ({"inner": {"kind": "linear"}}, Inner(0.5, "linear")),
    ],
)
def test_what_a_section_leaves_out_is_what_its_field_says(values: dict[str, Any], inner: Inner) -> None:
    assert resolve(Special, values) == Special(inner)


def test_a_section_of_a_union_or_of_none_keeps_what_it_leaves_out_too() -> None:
    assert resolve(Special, {"other": {"rate": 1}}).other == Inner(1.0, "cosine")
    assert resolve(Special, {"other": "all"}).other == "all"
    assert resolve(Special, {"maybe": {"rate": 1}}).maybe == Inner(1.0, "linear")
    assert resolve(Special, {"maybe": None}).maybe is None
    assert resolve(Outer, {"steps": 1, "extra": None}).extra == {}


# ------------------------------------------------------------------ import by name
@pytest.mark.usefixtures("of_this_file")
def test_instantiate_calls_the_target_with_its_params_and_extras() -> None:
    assert instantiate({"target": WIDGET, "params": {"width": 1}}, height=5).size == (1, 5)
    assert instantiate({"target": WIDGET, "params": {"width": 1}}).size == (1, 2)
    target = f"{__name__}.anything_goes"
    assert instantiate({"target": target, "params": {"x": 1}}) == {"x": 1}
    assert instantiate({"target": target, "params": None}) == {}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"target": WIDGET, "params": {"width": 1, "hieght": 2}}, "did you mean 'height'?"),
        ({"target": WIDGET, "params": {}}, "width"),
        ({"target": WIDGET, "params": {"width": -1}}, "cannot be built: a width"),
        ({"target": WIDGET, "params": {"width": "wide"}}, "cannot be built: '<' not supported"),
        ({"target": WIDGET, "parms": {}}, "did you mean 'params'?"),
        ({"params": {}}, "target"),
        ({"target": "ldm.models.unet.UNet"}, "did you mean 'ldm.models.unet.UNetModel'?"),
        ({"target": "os.system", "params": {"command": "true"}}, "'os.system' is refused"),
        ({"target": "ldm.config.load_yaml", "params": {"paths": []}}, "is refused"),
        ({"target": "ldm.nowhere.X"}, "ldm.nowhere.X"),
        ({"target": "Widget"}, "Widget"),
    ],
)
@pytest.mark.usefixtures("of_this_file")
def test_a_wrong_node_is_named_in_one_line(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        instantiate(node)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_locate_finds_what_a_config_may_build_and_nothing_else() -> None:
    from ldm.text.bert import BertConditioner

    assert locate("ldm.text.bert.BertConditioner") is BertConditioner
    for name in set(config.TARGETS) - {"ldm.text.clip.ClipConditioner", "ldm.text.clip.OpenClipConditioner"}:
        assert isinstance(locate(name), type)
    with pytest.raises(UserError, match="refused"):
        locate("ldm.config.locate")


@pytest.mark.slow
def test_a_list_of_thousands_is_read_and_aliases_that_blow_up_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("concepts:\n" + "".join(f"- {{name: <{i}>, images: p/{i}}}\n" for i in range(2500)))
    assert len(load_yaml([path])["concepts"]) == 2500
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="aliases"):
        load_yaml([path])


CONFIGS = Path(config.__file__).parents[1] / "configs"


def targets(node: Any) -> list[str]:
    """All ``target`` values at any depth."""
    if isinstance(node, dict):
        own = [node["target"]] if "target" in node else []
        return own + [name for value in node.values() for name in targets(value)]
    return [name for value in node for name in targets(value)] if isinstance(node, list) else []


#: of ours; a sweep has the form of W&B
OWN = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "sweeps")


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_what_the_configs_of_the_repository_name_can_be_built(path: Path) -> None:
    for name in targets(load_yaml([path])):
        assert isinstance(locate(name), type)
