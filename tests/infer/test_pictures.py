"""What counts as an image, and what as a mistake of the program."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infer.errors import InputError
from infer.pictures import iter_pictures

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLOUR = np.repeat(GREY[..., None], 3, axis=2)


def png(array=COLOUR):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer


@pytest.mark.parametrize(
    "image",
    [COLOUR, GREY, GREY[..., None], np.dstack([COLOUR, GREY]), Image.fromarray(COLOUR), png().getvalue(),
     bytearray(b"x"), memoryview(b"x")],
)  # fmt: skip
def test_one_image_alone_is_given_as_it_is(image):
    assert list(iter_pictures(image)) == [("image 0", image)]


@pytest.mark.parametrize("path", ["a/b.png", Path("a/b.png"), b"a/b.png"])
def test_paths_are_their_own_names(path):
    if isinstance(path, bytes):  # encoded pictures, however they look
        assert list(iter_pictures(path)) == [("image 0", path)]
    else:
        assert list(iter_pictures(path)) == [("a/b.png", "a/b.png")]


@pytest.mark.parametrize("wrap", [list, tuple, iter, lambda items: (item for item in items), lambda i: map(str, i)])
def test_several(wrap):
    assert [name for name, _ in iter_pictures(wrap(["a.png", "b.png"]))] == ["a.png", "b.png"]


def test_an_iterator_is_taken_as_it_goes():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield COLOUR

    pictures = iter_pictures(endless())
    assert [next(pictures)[0] for _ in range(3)] == ["image 0", "image 1", "image 2"]
    assert len(taken) == 3


def test_a_batch_is_its_images():
    batch = np.stack([COLOUR, 255 - COLOUR])
    found = list(iter_pictures(batch))
    assert [name for name, _ in found] == ["image 0", "image 1"]
    assert np.array_equal(found[1][1], 255 - COLOUR)
    assert list(iter_pictures(batch[:0])) == []


@pytest.mark.parametrize("file", ["memory", "disk"])
def test_binary_files_are_read(file, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png().getvalue())
    opened = png() if file == "memory" else path.open("rb")
    if file == "memory":
        opened.seek(0)
    with opened:
        assert list(iter_pictures([opened])) == [("image 0", path.read_bytes())]


class Closed:
    def read(self):
        raise OSError("gone")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "found NoneType"),
        ({"a.png"}, "found set"),
        ({"a.png": 1}, "found dict"),
        (3, "found int"),
        (np.float32(3), "found numpy.float32"),
        (COLOUR.astype(np.float32), r"found numpy.ndarray, float32 \[3, 4, 3\]"),
        (COLOUR.astype(np.int64), r"found numpy.ndarray, int64 \[3, 4, 3\]"),
        (np.zeros((3, 5, 6), np.uint8), r"\[3, 5, 6\]"),
        (np.zeros((2, 3, 4, 3), np.float32), r"^images: .*float32 \[2, 3, 4, 3\]"),
        (np.zeros((2, 3, 4, 4, 3), np.uint8), r"\[2, 3, 4, 4, 3\]"),
        (torch.zeros(3, 4, 3, dtype=torch.uint8), r"torch.Tensor, torch.uint8 \[3, 4, 3\]. Pass item.numpy\(\)"),
        (io.StringIO("text"), "binary mode, found str"),
        (Closed(), "cannot be read .gone."),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_mistakes_are_refused_where_they_stand(wrong, said, within):
    if within and isinstance(wrong, np.ndarray) and wrong.ndim == 4:
        said = r"^image 1: .*\[2, 3, 4, 3\]"
    with pytest.raises(InputError, match=said) as failure:
        list(iter_pictures([COLOUR, wrong] if within else wrong))
    assert str(failure.value).startswith("image 1: " if within else "image")
