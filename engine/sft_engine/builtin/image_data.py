"""Data sources of images: folders, and arrays in numpy files."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import BadZipFile

import numpy as np
from annotated_types import Ge

from sft_engine.builtin.class_folders import FILES, SPLIT_FOLDERS
from sft_engine.builtin.readers import existing
from sft_engine.errors import DataError, RecipeError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

_TOP = 255
_PICTURE, _WITH_CHANNELS = 3, 4
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, BadZipFile, zlib.error)


class ImageFolder:
    """Read images from folders: the name of the folder is the class.

    Either `FOLDER/train/CLASS/*.jpg`, `FOLDER/test/CLASS/*.jpg` and so on, or `FOLDER/CLASS/*.jpg`, of
    which splits are drawn. Folders inside a class belong to it; hidden files are left out, and files
    whose names are not those of images too, with a warning.

    Args:
        path: The folder, or one folder a split: `{train = "photos/a", test = "photos/b"}`.
    """

    def __init__(self, path: str | dict[str, str]) -> None:
        self.path = path

    def load(self) -> dict[str, Dataset]:
        """Return splits with the columns `image` (a path) and `label` (the folder's name).

        Raises:
            DataError: no such folder, or no images in it.
            RecipeError: `path` names no folder.
        """
        return FILES["image"].splits(self.path)


def read_folder(path: str | Path, *, labels: bool = True) -> Dataset:
    """Return the images below a folder, `CLASS/*.jpg`; without labels, wherever they are below it.

    Raises:
        DataError: no such folder, or no images in it.
    """
    return FILES["image"].read(path, labels=labels)


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, by name, in the same order on every machine.

    Links to folders are followed, once each.
    """
    return FILES["image"].files(folder)


class Arrays:
    """Read images and labels from numpy files (`.npz`).

    A file holds `X` and `y`, or a pair for each split: `X_train`, `y_train`, `X_test`, `y_test`. Images
    are (n, height, width) or (n, height, width, channels).

    Args:
        path: A file, or one file a split: `{train = "train.npz", test = "test.npz"}`.
        images: Name of the array of images, without the split; case does not count.
        labels: Name of the array of labels, the same.
        shape: Height, width and, if there are several, channels, where images are stored as flat rows.
        white: Value that is white; 0 means 255 for whole numbers and 1 for others.
    """

    def __init__(
        self,
        path: str | dict[str, str],
        images: str = "X",
        labels: str = "y",
        shape: list[int] | None = None,
        white: Annotated[float, Ge(0)] = 0,
    ) -> None:
        self.path = path
        self.images, self.labels = images, labels
        self.shape = tuple(shape or ())
        self.white = white

    def load(self) -> dict[str, Dataset]:
        """Return splits with the columns `image` (the bytes of a PNG file) and `label`.

        Raises:
            DataError: no such file or array, or arrays that are not images and their labels.
            RecipeError: `path` names no file.
        """
        if isinstance(self.path, str):
            return self._read(existing(self.path), None)
        if not self.path:
            raise RecipeError("data.path names no file; give a file, or one file a split.")
        splits: dict[str, Dataset] = {}
        for split, path in self.path.items():
            splits |= self._read(existing(path), split)
        return splits

    def _read(self, file: Path, split: str | None) -> dict[str, Dataset]:
        arrays = _load_npz(file)
        found = _pairs(arrays, self.images, self.labels, split)
        if not found:
            raise DataError(
                f"'{file}' has no array '{self.images}' (found: {', '.join(arrays) or 'none'}); name it "
                'in [data]: images = "...", labels = "...".'
            )
        return {name: self._table(file, *pair) for name, pair in found.items()}

    def _table(self, file: Path, images: NDArray[Any], labels: NDArray[Any] | None) -> Dataset:
        from datasets import Dataset

        if labels is not None and len(labels) != len(images):
            raise DataError(f"'{file}' has {len(images)} images and {len(labels)} labels.")
        pixels = self._pixels(file, images)
        columns: dict[str, Any] = {"image": [_png(each) for each in pixels]}
        if labels is not None:
            columns["label"] = labels.tolist()
        return Dataset.from_dict(columns)

    def _pixels(self, file: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
        """Return images as uint8 (n, h, w) or (n, h, w, c)."""
        if self.shape and images.ndim == 1 + 1 and images.shape[1] == np.prod(self.shape):
            images = images.reshape(-1, *self.shape)
        grey = images.ndim == _PICTURE
        if not grey and not (images.ndim == _WITH_CHANNELS and images.shape[3] in (1, 3, 4)):
            raise DataError(
                f"'{file}': the array of images has the shape {images.shape}; images have (n, height, "
                "width) or (n, height, width, 1, 3 or 4): set shape in [data] if they are flat rows; a "
                "table of numbers is no image."
            )
        if images.dtype.kind not in "uifb":
            raise DataError(f"'{file}': the array of images holds {images.dtype}, not numbers.")
        return self._scaled(file, images)

    def _scaled(self, file: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
        if images.dtype == np.uint8 and self.white in (0, _TOP):
            return images
        white = self.white or (1.0 if images.dtype.kind in "fb" else float(_TOP))
        if images.size and not (images.min() >= 0 and images.max() <= white):
            raise DataError(
                f"'{file}': pixels reach from {images.min():g} to {images.max():g}, and white is "
                f"{white:g}; say in [data] which value is white: white = {images.max():g}."
            )
        return np.rint(images * (_TOP / white)).astype(np.uint8)


def _load_npz(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with file.open("rb") as stream:  # ours to close: numpy forgets it when a file is damaged
            loaded = np.load(stream, allow_pickle=False)
            arrays = {name: loaded[name] for name in getattr(loaded, "files", ())}
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"'{file}' is no .npz file of plain arrays, or it is damaged ({reason}); write it again with "
            "numpy.savez_compressed(file, X=images, y=labels)."
        ) from error
    if isinstance(loaded, np.ndarray):
        raise DataError(f"'{file}' is one array; arrays needs a .npz file of two, X and y.")
    return arrays


def _pairs(
    arrays: Mapping[str, NDArray[Any]], images: str, labels: str, split: str | None
) -> dict[str, tuple[NDArray[Any], NDArray[Any] | None]]:
    """Return images and labels by split, found by their names."""
    by_name = {name.lower(): array for name, array in arrays.items()}
    images, labels = images.lower(), labels.lower()
    if images in by_name:
        return {split or "train": (by_name[images], by_name.get(labels))}
    found = {}
    for name, array in by_name.items():
        start, _, end = name.rpartition("_")
        if start == images and end in SPLIT_FOLDERS and split in (None, end):
            found[end] = (array, by_name.get(f"{labels}_{end}"))
    return found


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.squeeze(pixels, axis=2) if pixels.shape[2:] == (1,) else pixels)
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()
