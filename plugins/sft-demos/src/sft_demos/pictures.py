"""Pictures as rows of a data set: PNG bytes with a path, as Hugging Face `datasets` stores them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


def png(pixels: np.ndarray) -> bytes:
    """Return a grey picture (height, width) of bytes as PNG: nothing of it is lost."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels, mode=None).save(file, "PNG", compress_level=1)
    return file.getvalue()


def dataset(
    images: Sequence[bytes],
    paths: Sequence[str],
    columns: dict[str, list[Any]],
    *,
    about: str,
    license: str,  # noqa: A002 - the field's name in `datasets`
    citation: str = "",
) -> Dataset:
    """Return a data set with the column `image`, which `datasets` does not decode, and others of text.

    Args:
        images: Files, as bytes.
        paths: Their names, for messages.
        columns: Other columns by name.
        about: One sentence for model cards.
        license: Of the pictures.
        citation: Of who made them.
    """
    from datasets import Dataset, DatasetInfo, Features, Image, Value

    features = Features(
        {"image": Image(decode=False)} | {name: Value("string") for name in columns}
    )
    rows = [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]
    info = DatasetInfo(description=about, citation=citation, license=license, features=features)
    return Dataset.from_dict({"image": rows, **columns}, features=features, info=info)
