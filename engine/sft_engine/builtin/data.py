"""Data sources: where examples come from."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine.builtin import readers
from sft_engine.columns import with_folder
from sft_engine.errors import DataError, RecipeError, SftError
from sft_engine.sentences import show_value, suggest

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT_WORDS = ("train", "validation", "valid", "val", "dev", "eval", "test")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Csv:
    """Read csv files; all columns are text, and nothing is guessed: "007" and "NA" stay.

    Args:
        path: A file, or one file a split: `{train = "train.csv", test = "test.csv"}`.
        delimiter: Character between fields, such as a tab for tsv files.
        encoding: Of the files, as Python names it.
        quote: Character around fields that hold a delimiter; empty if quotes are plain characters.
        column_names: Names of the columns, for files without a header line.
    """

    def __init__(
        self,
        path: str | dict[str, str],
        delimiter: str = ",",
        encoding: str = "utf-8",
        quote: str = '"',
        column_names: list[str] | None = None,
    ) -> None:
        for key, value in (("delimiter", delimiter), ("quote", quote or '"')):
            if len(value) != 1:
                raise RecipeError(f"data.{key} = {show_value(value)}: allowed is one character.")
        self.path = path
        self.delimiter = delimiter
        self.encoding = encoding
        self.quote = quote
        self.column_names = column_names or []

    def load(self) -> dict[str, Dataset]:
        """Read every file. Raises DataError with file and line of what is wrong."""

        def read(file: Path) -> Dataset:
            return readers.read_csv(
                file, self.delimiter, self.encoding, self.quote, self.column_names
            )

        return _by_split(self.path, read)


class JsonLines:
    """Read files with one JSON object a line.

    Args:
        path: A file, or one file a split: `{train = "train.jsonl", test = "test.jsonl"}`.
        encoding: Of the files, as Python names it.
    """

    def __init__(self, path: str | dict[str, str], encoding: str = "utf-8") -> None:
        self.path = path
        self.encoding = encoding

    def load(self) -> dict[str, Dataset]:
        """Read every file. Raises DataError with file and line of what is wrong."""
        return _by_split(self.path, lambda file: readers.read_jsonl(file, self.encoding))


class Parquet:
    """Read parquet files.

    Args:
        path: A file, or one file a split: `{train = "train.parquet", test = "test.parquet"}`.
    """

    def __init__(self, path: str | dict[str, str]) -> None:
        self.path = path

    def load(self) -> dict[str, Dataset]:
        """Read every file. Raises DataError with the file and what is wrong with it."""
        return _by_split(self.path, readers.read_parquet)


def _by_split(path: str | Mapping[str, str], read: Callable[[Path], Dataset]) -> dict[str, Dataset]:
    paths = {"train": path} if isinstance(path, str) else path
    if not paths:
        raise RecipeError("data.path names no file; give a file, or one file a split.")
    files = {split: readers.existing(each) for split, each in paths.items()}
    return {split: with_folder(read(file), file.parent) for split, file in files.items()}


def read_file(path: Path) -> Dataset:
    """Read one csv, tsv, jsonl or parquet file, by the end of its name.

    Raises:
        DataError: no such file, another kind of file, or a broken one.
    """
    file = readers.existing(str(path))
    return with_folder(_read_by_suffix(file, path), file.parent)


def _read_by_suffix(file: Path, path: Path) -> Dataset:
    if file.suffix in _DELIMITERS:
        return readers.read_csv(file, _DELIMITERS[file.suffix])
    if file.suffix in (".jsonl", ".ndjson"):
        return readers.read_jsonl(file)
    if file.suffix == ".parquet":
        return readers.read_parquet(file)
    raise DataError(
        f"cannot tell what '{path}' is: allowed are names that end in .csv, .tsv, .jsonl, .parquet."
    )


class HfDataset:
    """Load a Hugging Face data set: from the hub, or a local folder.

    A local folder may be what `save_to_disk` wrote, or hold files named after their splits
    (`train.parquet`, `test.jsonl`, ...); csv files in it are read like those of `csv`.

    Args:
        name: Hub id, such as `stanfordnlp/imdb`, or a folder.
        config: Name of the configuration, such as `sst2` of `nyu-mll/glue`; empty for the default.
        revision: Commit, tag or branch on the hub; empty for the newest. A commit makes it repeatable.
    """

    def __init__(self, name: str, config: str = "", revision: str = "") -> None:
        self.name = name
        self.config = config
        self.revision = revision

    def load(self) -> dict[str, Dataset]:
        """Load all splits.

        Raises:
            DataError: there is no such data set or configuration, or it cannot be reached or read.
        """
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return self._load_folder(folder)
        if folder.is_absolute() or self.name.startswith((".", "~")):
            raise DataError(f"[data] name: there is no folder '{self.name}'.")
        return self._load_dataset(self.name)

    def _load_folder(self, folder: Path) -> dict[str, Dataset]:
        if not any(folder.iterdir()):
            raise DataError(f"[data] name: the folder '{folder}' is empty.")
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            return self._load_from_disk(folder)
        tables = [file for file in sorted(folder.iterdir()) if file.suffix in _DELIMITERS]
        if tables:
            files = _split_files(folder, tables)
            return {
                split: with_folder(
                    readers.read_csv(readers.existing(str(f)), _DELIMITERS[f.suffix]), folder
                )
                for split, f in files.items()
            }
        return self._load_dataset(str(folder))

    def _load_from_disk(self, folder: Path) -> dict[str, Dataset]:
        from datasets import load_from_disk

        with _sentence(f"cannot load '{folder}'"):
            return _as_splits(load_from_disk(os.fspath(folder)), "[data] name")

    def _load_dataset(self, name: str) -> dict[str, Dataset]:
        from datasets import load_dataset

        with _sentence(f"cannot load the data set '{name}'"):
            loaded = load_dataset(name, self.config or None, revision=self.revision or None)
        return _as_splits(loaded, "[data] name")


def _split_files(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Return the file of each split, by the split's name in the file's name."""
    if len(files) == 1:
        return {"train": files[0]}
    found: dict[str, Path] = {}
    for file in files:
        words = [word for word in _SPLIT_WORDS if word in file.stem.lower()]
        if not words or words[0] in found:
            listing = ", ".join(each.name for each in files)
            raise DataError(
                f"[data] name: cannot tell which split '{file.name}' in '{folder}' is (files: "
                f'{listing}); use = "csv" with path = {{train = "...", test = "..."}} says it.'
            )
        found[words[0]] = file
    return found


@contextmanager
def _sentence(what: str) -> Iterator[None]:
    """Turn what `datasets` raises for a user's mistake into one sentence."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
        raise DataError(
            f"[data] name: {what}: {reason}; check name, config and revision"
            + (
                " (HF_HUB_OFFLINE is set: only what was loaded before is there)."
                if offline
                else "."
            )
        ) from error


class Function:
    """Call a function of yours that returns the data.

    It may return a Hugging Face `Dataset`, a list of dicts, a pandas frame (all: the split `train`),
    or a dict of these by split name. Modules in the current folder are found.

    Args:
        function: `package.module:function`.
        options: Passed to the function as keyword arguments.
    """

    def __init__(self, function: str, options: dict[str, Any] | None = None) -> None:
        module, colon, name = function.partition(":")
        if not (module and colon and name):
            raise RecipeError(
                f'data.function = {show_value(function)}: allowed is "package.module:function".'
            )
        self.function = function
        self.options = options or {}

    def load(self) -> dict[str, Dataset]:
        """Call the function.

        Raises:
            RecipeError: there is no such module or function.
            DataError: it returned something else than data.
        """
        function = self._find()
        try:
            result = function(**self.options)
        except SftError:
            raise
        except Exception as error:
            error.add_note(f"raised by data.function = {self.function!r}")
            raise
        return _as_splits(result, f"data.function: {self.function}")

    def _find(self) -> Callable[..., Any]:
        module_name, _, name = self.function.partition(":")
        with _current_folder_first():
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                    raise RecipeError(
                        f"data.function: {module_name} needs the module {error.name}, which is not "
                        "installed."
                    ) from error
                raise RecipeError(
                    f"data.function: there is no module '{module_name}' in {Path.cwd()} or among "
                    "the installed packages."
                ) from error
        function: Callable[..., Any] | None = getattr(module, name, None)
        if function is None or not callable(function):
            near = suggest(name, (n for n, value in vars(module).items() if callable(value)))
            raise RecipeError(
                f"data.function: '{module_name}' has no function '{name}'"
                f"{'; ' + near if near else '.'}"
            )
        return function


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """An installed command does not look into the current folder; `python -m` does."""
    here = os.fspath(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _as_splits(result: Any, where: str) -> dict[str, Dataset]:
    """Turn what was returned into splits by name."""
    if isinstance(result, Mapping):
        splits = {
            str(name): _as_dataset(rows, f"{where}, '{name}'") for name, rows in result.items()
        }
    else:
        splits = {"train": _as_dataset(result, where)}
    if not splits:
        raise DataError(f"{where} gives no splits.")
    return splits


def _as_dataset(rows: Any, where: str) -> Dataset:
    from datasets import Dataset

    if isinstance(rows, Dataset):
        return rows.with_format(None)
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return Dataset.from_pandas(rows, preserve_index=False)
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    what = "an empty list" if rows == [] else type(rows).__name__
    raise DataError(
        f"{where} gives {what}; allowed are a Dataset, a list of dicts, a pandas frame, or a dict of "
        "these by split."
    )
