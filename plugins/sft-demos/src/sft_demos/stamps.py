"""466 small photos of seven kinds of things: the stamps of the drawing program Tux Paint.

They are cut-outs with a transparent background, which the engine's decoder puts on white. Animals,
food, household and plants are mostly photos; town and vehicles mix photos and drawings.

Source: the Debian package tuxpaint-stamps-default 2022.06.04-1 (GPL-2, many authors): it is fetched by
whoever wants it, and is not a part of this distribution.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from shutil import copyfileobj, rmtree
from typing import TYPE_CHECKING

from sft_demos.apt import fetch_deb, files_of
from sft_demos.cache import cache_folder, exclusive, scratch
from sft_engine import DataError

if TYPE_CHECKING:
    from datasets import Dataset

ROOT = PurePosixPath("usr/share/tuxpaint/stamps")
PHOTOS = {
    "animals": 146,
    "food": 67,
    "household": 34,
    "plants": 39,
    "seasonal": 63,
    "town": 79,
    "vehicles": 38,
}
"""The folders with 30 pictures or more, but for the symbols, which are no photos; and how many."""


class PhotoStamps:
    """Small photos of animals, food, household things, plants, seasonal things, towns, vehicles.

    Args:
        classes: Which of the seven to load, at least two; empty for all.
    """

    def __init__(self, classes: list[str] | None = None) -> None:
        self.classes = sorted(set(classes or PHOTOS))
        unknown = [name for name in self.classes if name not in PHOTOS]
        if unknown or len(self.classes) < 2:  # noqa: PLR2004 - a class alone is nothing to tell apart
            found = f"'{unknown[0]}'" if unknown else "one class"
            raise ValueError(
                f"data.classes: found {found}, allowed are two or more of {', '.join(PHOTOS)}."
            )

    def load(self) -> dict[str, Dataset]:
        """Return the one split `train`: columns `image`, `label` (the class) and `kind`.

        Images are PNG bytes as published, with their path as `CLASS/KIND/NAME.png`; kind is the folder
        in the class, such as `birds`. Rows are in the order of their paths.

        Raises:
            DataError: the package cannot be fetched, as where there is no apt.
        """
        from sft_demos.pictures import dataset

        folder = unpack_photos()
        files = sorted(file for name in self.classes for file in (folder / name).rglob("*.png"))
        paths = [file.relative_to(folder).as_posix() for file in files]
        return {
            "train": dataset(
                [file.read_bytes() for file in files],
                paths,
                {
                    "label": [path.split("/")[0] for path in paths],
                    "kind": [path.split("/")[1] for path in paths],
                },
                about="Photo stamps of Tux Paint by kind of thing.",
                license="GPL-2.0",
            )
        }


def unpack_photos() -> Path:
    """Return the folder with one folder a class, made from the package if need be.

    Raises:
        DataError: the package cannot be fetched or holds other pictures.
    """
    target = cache_folder() / "tuxpaint-stamps"
    if not _is_complete(target):
        deb = fetch_deb(
            "tuxpaint-stamps-default",
            "2022.06.04-1",
            "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            megabytes=160.9,
        )
        with exclusive(target):
            if not _is_complete(target):
                _unpack(deb, target)
    return target


def _is_complete(folder: Path) -> bool:
    return all(len(list((folder / name).rglob("*.png"))) == n for name, n in PHOTOS.items())


def _unpack(deb: Path, target: Path) -> None:
    """Write the photos beside the target, then put them in place in one move."""
    with scratch(target) as folder, files_of(deb) as opened:
        files = folder / "files"
        for member in opened:
            path = _photo(member.name)
            content = opened.extractfile(member) if path and member.isfile() else None
            if path and content:
                (files / path).parent.mkdir(parents=True, exist_ok=True)
                with (files / path).open("wb") as file:
                    copyfileobj(content, file)
        if not _is_complete(files):
            raise DataError(f"{deb} holds other pictures than it should: delete it.")
        if target.exists():
            rmtree(target)
        files.replace(target)


def _photo(name: str) -> PurePosixPath | None:
    """Return where a photo of a class goes, `CLASS/KIND/NAME.png`; None for all other files."""
    path = PurePosixPath(name)
    if path.suffix != ".png" or ".." in path.parts or not path.is_relative_to(ROOT):
        return None
    inside = path.relative_to(ROOT)
    return inside if inside.parts[0] in PHOTOS else None
