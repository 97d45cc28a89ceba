"""The data source of recordings: a folder for each class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_engine.builtin.class_folders import FILES

if TYPE_CHECKING:
    from datasets import Dataset


class AudioFolder:
    """Read recordings from folders: the name of the folder is the class.

    Either `FOLDER/train/CLASS/*.wav`, `FOLDER/test/CLASS/*.wav` and so on, or `FOLDER/CLASS/*.wav`, of
    which splits are drawn. Folders inside a class belong to it; hidden files are left out, and files
    whose names are not those of recordings too, with a warning.

    Args:
        path: The folder, or one folder a split: `{train = "speech/a", test = "speech/b"}`.
    """

    def __init__(self, path: str | dict[str, str]) -> None:
        self.path = path

    def load(self) -> dict[str, Dataset]:
        """Return splits with the columns `audio` (a path) and `label` (the folder's name).

        Raises:
            DataError: no such folder, or no recordings in it.
            RecipeError: `path` names no folder.
        """
        return FILES["audio"].splits(self.path)
