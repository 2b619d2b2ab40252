"""Pictures given in Python: every kind is the same tensor as the file, or one line says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.inversion.concept import concept_of

SIZE = 16


@pytest.fixture
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))


def kinds(picture: Image.Image, path: Path) -> dict[str, Any]:
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return {
        "a file": path,
        "the name of a file": str(path),
        "a list of files": [path],
        "a PIL picture": picture,
        "a list of PIL pictures": [picture],
        "a generator": (one for one in [picture]),
        "an array": array,
        "a list of arrays": [array],
        "a batch of arrays": array[None],
        "an array, colours first": array.transpose(2, 0, 1),
        "an array with a full alpha": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "a tensor of bytes": tensor,
        "a batch of bytes": tensor[None],
        "a list of tensors": [tensor],
        "arrays and PIL pictures": [array, picture],
    }


def test_every_kind_is_what_the_file_is(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture.save(path)
    folder = concept_of(tmp_path, SIZE).images
    for kind, given in kinds(picture, path).items():
        found = concept_of(given, SIZE)
        assert len(found) == (2 if kind == "arrays and PIL pictures" else 1), kind
        assert all(torch.equal(image, folder[0]) for image in found.images), kind
    square = concept_of(tmp_path, SIZE).images
    for floats in (square, square[0], [square[0]], square.numpy(), square.double(), list(square.numpy())):
        assert torch.equal(concept_of(floats, SIZE).images, square)
    grey = np.array(picture.convert("L"))
    expected = concept_of(picture.convert("L"), SIZE).images
    for given in (grey, grey[..., None], torch.from_numpy(grey)[None], [torch.from_numpy(grey)]):
        assert torch.equal(concept_of(given, SIZE).images, expected)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no pictures"),
        (None, "cannot be a NoneType"),
        (3, "cannot be a int"),
        ([None], "cannot be a NoneType"),
        (torch.zeros(0, 3, SIZE, SIZE), "no pictures"),
        (torch.zeros(2, 3, 8, 8), r"give \(3, 16, 16\)"),
        (torch.full((1, 3, SIZE, SIZE), 200.0), "from 200 to 200"),
        (torch.full((1, 3, SIZE, SIZE), float("nan")), "nan"),
        (torch.zeros(3, SIZE, SIZE, dtype=torch.int64), "int64"),
        (np.zeros((SIZE, SIZE, 3), bool), "bool"),
        (np.zeros((SIZE, SIZE, 2), np.uint8), "no picture's shape"),
        (np.zeros((2, 3, 4, 5, 6), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((SIZE, SIZE)), "three colours"),
        ([np.zeros((4, 4, 3), np.uint8), torch.zeros(3, SIZE, SIZE)], "mixed"),
        ([np.zeros((4, 4, 3), np.uint8), "a.png"], "mixed"),
    ],
)
def test_anything_else_is_one_line(given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        concept_of(given, SIZE)
    assert "\n" not in str(caught.value)


def test_floats_from_0_to_1_are_said(caplog: pytest.LogCaptureFixture) -> None:
    concept_of(torch.rand(1, 3, SIZE, SIZE), SIZE)
    assert "not in [0, 1]" in caplog.text
