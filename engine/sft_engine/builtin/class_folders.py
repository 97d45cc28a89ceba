"""Folders of files in which the name of a folder is the class, whatever the files are."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sft_engine.columns import with_folder
from sft_engine.errors import DataError, RecipeError
from sft_engine.sentences import suggest

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_FOLDERS = frozenset(
    "train training validation valid val dev eval development test testing".split()
)
"""Names of folders that hold a split, in lower case."""

_SHOWN = 5
_log = logging.getLogger("sft_engine")


@dataclass(frozen=True)
class FileKind:
    """Files of a kind, and what messages call them.

    Args:
        column: That their paths become.
        one: Such as `image`.
        many: Such as `images`.
        pattern: Such as `*.jpg`.
        component: Name of the data component that reads folders of them.
        suffixes: How their names end, in lower case.
    """

    column: str
    one: str
    many: str
    pattern: str
    component: str
    suffixes: frozenset[str]

    def splits(self, path: str | dict[str, str]) -> dict[str, Dataset]:
        """Read `FOLDER/SPLIT/CLASS/*`, or `FOLDER/CLASS/*` as `train`, or one folder a split.

        Raises:
            DataError: no such folder, or no files of the kind in it.
            RecipeError: `path` names no folder.
        """
        if not isinstance(path, str):
            if not path:
                raise RecipeError("data.path names no folder; give one, or one a split.")
            return {split: self._classes(self._folder(each)) for split, each in path.items()}
        folder = self._folder(path)
        found = [each for each in _folders(folder) if each.name.lower() in SPLIT_FOLDERS]
        if not found:
            return {"train": self._classes(folder)}
        return {each.name: self._classes(each) for each in found}

    def read(self, path: str | Path, *, labels: bool = True) -> Dataset:
        """Return the files below a folder, `CLASS/*`; without labels, wherever they are below it.

        Raises:
            DataError: no such folder, or no files of the kind in it.
        """
        folder = self._folder(str(path))
        return self._classes(folder) if labels else self._table(folder, list(self.files(folder)))

    def files(self, folder: Path) -> Iterator[Path]:
        """Yield the files below a folder, by name, in the same order on every machine.

        Links to folders are followed, once each.
        """
        ignored: Counter[str] = Counter()
        for file in _files(folder, set()):
            if file.suffix.lower() in self.suffixes:
                yield file
            else:
                ignored[file.suffix.lower() or file.name] += 1
        if ignored:
            kinds = ", ".join(f"{kind} {count}" for kind, count in ignored.most_common(_SHOWN))
            _log.warning(
                "[data] '%s': %d files left out, their names are not those of %s (%s)",
                folder,
                ignored.total(),
                self.many,
                kinds,
            )

    def _folder(self, path: str) -> Path:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder
        if folder.exists():
            raise DataError(
                f"[data] path: '{path}' is a file; {self.component} needs a folder of classes."
            )
        relative = "" if folder.is_absolute() else f" (looked in {Path.cwd()})"
        near = ""
        if folder.parent.is_dir():
            near = suggest(folder.name, (each.name for each in folder.parent.iterdir()))
        raise DataError(
            f"[data] path: there is no folder '{path}'{relative}; {near or 'correct data.path.'}"
        )

    def _classes(self, folder: Path) -> Dataset:
        files: list[Path] = []
        labels: list[str] = []
        for each in _folders(folder):
            found = list(self.files(each))
            if not found:
                _log.warning("[data] '%s' holds no %s: it is no class", each, self.one)
            files += found
            labels += [each.name] * len(found)
        if not files:
            beside = sum(each.suffix.lower() in self.suffixes for each in folder.iterdir())
            found_here = f"{beside} {self.many}" if beside else f"no {self.one}"
            raise DataError(
                f"[data] path: '{folder}' has {found_here} and no folder with {self.many}; put each "
                f"class in a folder of its own, '{folder.name}/CLASS/{self.pattern}'."
            )
        return self._table(folder, files, labels)

    def _table(self, folder: Path, files: list[Path], labels: list[str] | None = None) -> Dataset:
        from datasets import Dataset, Features, Value

        columns = {self.column: [file.relative_to(folder).as_posix() for file in files]}
        if labels is not None:
            columns["label"] = labels
        features = Features({name: Value("string") for name in columns})
        return with_folder(Dataset.from_dict(columns, features=features), folder)


def _files(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for each in sorted(folder.iterdir()):
        if each.name.startswith("."):
            continue
        if each.is_dir():
            yield from _files(each, seen)
        else:
            yield each


def _folders(folder: Path) -> list[Path]:
    return sorted(
        each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )


FILES = {
    "image": FileKind(
        column="image",
        one="image",
        many="images",
        pattern="*.jpg",
        component="image-folder",
        suffixes=frozenset(
            ".avif .bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
        ),
    ),
    "audio": FileKind(
        column="audio",
        one="recording",
        many="recordings",
        pattern="*.wav",
        component="audio-folder",
        suffixes=frozenset(
            ".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .w64 .wav .wave".split()
        ),
    ),
}
"""By role: what pillow reads, and what soundfile reads."""
