"""YAML as text: every string reads back as it was written, and what a stranger's file cannot do."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ldm.config import dump_yaml, load_yaml
from ldm.errors import UserError
from ldm.yaml_text import read_override

STRINGS = (
    "1e3 5e5 1e-3 1E+5 +1e3 .5e1 1. 1_000 0x1f 0b11 0o17 007 12:30 12:30:45.5 2024-01-01 "
    "2024-01-01T10:00:00Z no No yes on off true null ~ = << - ? : ! & * @ % | > # '# ' \" ' [ ] { } , .inf "
    "-.Inf .nan nan inf a:b a#b "
    "#ff0000 &a *a !!str !x %y @z `b` --- ... ${5} ${a} $ $${x} \\${5} \\\\${5} \\\\\\${x} ${ "
    "${oc.env:HOME} <cat> <cat-toy> S* é ñ 猫 🐈 \U0010ffff"
).split() + [
    "", " ", "a ", " a", "\t", "a\tb", "a\nb", "\na", "a\n", "a\r\nb", "\r", "\x85", "a\x85b", "\u2028",
    "\u2029", "\ufeff", "a\ufeff", "\xa0", "\x00", "\x1b[0m", "\x7f", "\x80", "a: b", "a #b", "key: [1, 2]",
    "- a", "? a", "x" * 300, "a  b " * 60, "${a} and ${b}", "\\", "a\\", "\\n", "'quoted'",
    '"quoted"', "true ", "e\u0301",
]  # fmt: skip


def back(value: Any, folder: Path) -> Any:
    path = folder / "config.yaml"
    path.write_bytes(dump_yaml({"a": value, "b": [value], "c": {"d": value}}).encode())
    values = load_yaml([path])
    assert values["a"] == values["b"][0] == values["c"]["d"]
    return values["a"]


@pytest.mark.parametrize("text", STRINGS, ids=ascii)
def test_a_string_reads_back_as_it_was_written(text: str, tmp_path: Path) -> None:
    assert back(text, tmp_path) == text
    if "${" not in text and text != "\ufeff":  # and another reader takes it for that text, too
        assert yaml.safe_load(dump_yaml({"a": text})) == {"a": text}


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@example({"a": {"1e3": "${x}"}, "1e3": None})
def test_any_plain_value_reads_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    assert back(value, tmp_path_factory.getbasetemp()) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#ff0000", "#ff0000"), ("red", "red"), ("a photo of {} #1", "a photo of {} #1"), ("*", "*"),
        ("S*", "S*"), ("<cat>", "<cat>"), ("a: b", "a: b"), ("- a", "- a"), ("&a", "&a"), ("!x", "!x"),
        ("@me", "@me"), ("%a", "%a"), ("=", "="), ("<<", "<<"), ("|", "|"), ("", None), ("null", None),
        ("3", 3), ("1e-3", 0.001), ("1e3", 1000.0), ("true", True), ("'3'", "3"), ('"#a"', "#a"),
        ("[1, #a]", UserError), ("[1, 'b']", [1, "b"]), ("{a: 1}", {"a": 1}), ("[", UserError),
        ("'a", UserError), ("[a {}]", UserError), ("2024-01-01", "2024-01-01"), ("~/pictures", "~/pictures"),
        ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_the_value_of_an_override(text: str, value: Any) -> None:
    if value is UserError:
        with pytest.raises(UserError, match=r"a\.b: .*not readable"):
            read_override(f"a.b={text}")
    else:
        found = read_override(f"a.b={text}")
        assert found == {"a": {"b": value}} and type(found["a"]["b"]) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: [1, 2\n", "line 3", "expected ',' or ']'"),
        ("a: 1\n b: 2\n", "line 2", "mapping values are not allowed"),
        ("a: 1\nb:\n\t- c\n", "line 3", "cannot start any token"),
        ("a: 1\nc: 2\na: 3\n", "line 3", "'a' is there twice"),
        ("a: 1\nb: *x\n", "line 2", "undefined alias"),
        ("a: 1\nb: !!python/name:os.system x\n", "line 2", "could not determine a constructor"),
        ("a: 'x\n", "line", "unexpected end of stream"),
    ],
)
def test_an_error_has_line_and_reason(tmp_path: Path, text: str, line: str, reason: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_yaml([tmp_path / "c.yaml"])
    said = str(caught.value)
    assert "c.yaml" in said and line in said and reason in said and "\n" not in said


# ------------------------------------------------------------------ what a stranger's file cannot do
def test_interpolation_names_keys_of_its_own_file_and_follows_overrides(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("x: {y: 3, z: '${.y}'}\nlist: [1, {k: v}]\ncopy: ${x.y}\ntext: is ${x.y}, ${list[1].k}\n"
                 "all: ${x}\nliteral: \\${x.y}\ntwice: ${copy}\nmine: secret\n")  # fmt: skip
    values = load_yaml([a], ["x.y=4", "w=${mine}"])
    assert values["x"] == values["all"] == {"y": 4, "z": 4}
    assert (values["copy"], values["twice"], values["text"]) == (4, 4, "is 4, v")
    assert values["literal"] == "${x.y}" and values["w"] == "secret"
    b.write_text("placeholder: ${mine}\n")
    for files in ([a, b], [b, a], [b]):
        with pytest.raises(UserError, match="names no key of its file"):
            load_yaml(files, ["mine=secret"])


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:SECRET}", "x ${oc.env:SECRET} y", "${oc.env:SECRET,none}", "${oc.decode:${oc.env:SECRET}}",
        "${oc.env:${b}}", "${env:SECRET}", "${SECRET}", "${oc.dict.keys:b}", "${a}", "${b", "${}", "${ }",
        "${..b}", "${b.c}", "${b[0]}",
    ],
)  # fmt: skip
def test_the_environment_functions_and_other_things_are_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"a": text, "b": "SECRET"}))
    with pytest.raises(UserError) as caught:
        load_yaml([path])
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError):
        load_yaml([], [f"a={text}", "b=SECRET"])


def _doubling(n: int, letter: str) -> str:
    return f"k0: '{letter}'\n" + "".join(f"k{i}: ${{k{i - 1}}}${{k{i - 1}}}\n" for i in range(1, n))


BOMBS = {
    "text": _doubling(28, "xxxxxxxx"),
    "empty text": _doubling(28, ""),
    "text ten times a level": "k0: xxxxxxxxxx\n" + "".join(
        f"k{i}: {f'${{k{i - 1}}}' * 10}\n" for i in range(1, 9)
    ),
    "lists": "k0: [x, x]\n" + "".join(f"k{i}: ['${{k{i - 1}}}', '${{k{i - 1}}}']\n" for i in range(1, 28)),
    "aliases": "k0: &k0 [x, x]\n" + "".join(f"k{i}: &k{i} [*k{i - 1}, *k{i - 1}]\n" for i in range(1, 28)),
    "merge keys": "k0: &k0 {x: 1}\n" + "".join(
        f"k{i}: &k{i} {{<<: [*k{i - 1}, *k{i - 1}]}}\n" for i in range(1, 28)
    ),
    "itself by alias": "k: &k [*k]\n",
    "itself": "k: ${k}\n",
    "each other": "k: ${j}x\nj: ${k}\n",
    "all of it": "k: {j: '${k}'}\n",
    "deep": "k: " + "[" * 2000 + "]" * 2000 + "\n",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_does_not_become_a_large_one(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BOMBS[bomb])
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            load_yaml([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and "c.yaml" in str(caught.value)
    assert peak < 100e6 and time.perf_counter() - started < 10
