"""Recipes and data files that are wrong, each in one way, and what the command line says about it.

As a script it prints the table: `python tests/engine/broken_inputs.py`. The test beside it runs the same
cases and checks exit code, words, and that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

RECIPE = """\
[task]
use = "text-classification"

[data]
use = "csv"
path = "reviews.csv"

[backbone]
use = "tiny/text"

[train]
device = "cpu"
precision = "fp32"
epochs = 1
"""
WORDS = (
    "bad",
    "good",
    "dull",
    "fine",
    "poor",
    "great",
)  # one alone would tell the label: a finding
ROWS = [(f"{WORDS[i % 6]} film number {i}", "pos" if i % 2 else "neg") for i in range(60)]
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
JSONL = "".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in ROWS)

Change = tuple[str, str]
Content = str | bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One thing that is wrong.

    Args:
        name: What.
        code: The exit code.
        words: What the sentence must hold.
        changes: Replacements in the recipe.
        more: Lines at the end of the recipe.
        files: Written beside the recipe, instead of or beside a good `reviews.csv`.
        arguments: After `sft-engine`.
        leaves: Whether a run folder is left: the run had begun.
    """

    name: str
    code: int
    words: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    more: str = ""
    files: tuple[tuple[str, Content], ...] = ()
    arguments: tuple[str, ...] = ("run", "recipe.toml", "--output", "out", "--quiet")
    leaves: bool = False


SOURCE = 'use = "csv"\npath = "reviews.csv"'


def source(use: str, path: str) -> tuple[Change, ...]:
    """Read other data."""
    return ((SOURCE, f'use = "{use}"\npath = "{path}"'),)


def options(lines: str) -> tuple[Change, ...]:
    """Add keys to `[data]`."""
    return ((SOURCE, f"{SOURCE}\n{lines}"),)


def files(**contents: Content) -> tuple[tuple[str, Content], ...]:
    """Name files; the underscore of a keyword stands for the dot."""
    return tuple((name.replace("_", ".", 1), content) for name, content in contents.items())


def half_a_parquet(path: Path) -> None:
    """Write a parquet file that was cut off."""
    parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:-100])


def parquet_without_rows(path: Path) -> None:
    parquet(path, [])


def parquet(path: Path, rows: list[tuple[str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    pq.write_table(pa.table(columns, schema=schema), path)


TEST_SPLIT = (('path = "reviews.csv"', 'path = {train = "reviews.csv", test = "test.csv"}'),)

RECIPES = [
    Case("no such recipe", 2, ("gone.toml",), arguments=("run", "gone.toml", "--output", "out")),
    Case(
        "TOML that does not close a quote",
        2,
        ("recipe.toml:5",),
        changes=(('use = "csv"', 'use = "csv'),),
    ),
    Case(
        "a key twice",
        2,
        ("recipe.toml:7", "found a second time"),
        changes=options('path = "other.csv"'),
    ),
    Case("an unknown table", 2, ("`trian`", "`train`"), changes=(("[train]", "[trian]"),)),
    Case("a missing table", 2, ("[backbone]",), changes=(('[backbone]\nuse = "tiny/text"\n', ""),)),
    Case(
        "an unknown key", 2, ("bach_size", "batch_size"), changes=(("epochs = 1", "bach_size = 8"),)
    ),
    Case("a text where a number belongs", 2, ("epochs", "three"), changes=(("= 1", '= "three"'),)),
    Case("a number out of range", 2, ("epochs", "-1"), changes=(("epochs = 1", "epochs = -1"),)),
    Case("a word that is no choice", 2, ("precision", "fp32"), changes=(('"fp32"', '"fp23"'),)),
    Case(
        "an unknown component", 2, ("tiny/txet", "tiny/text"), changes=(("tiny/text", "tiny/txet"),)
    ),
    Case("a component of another kind", 2, ("csv", "backbone"), changes=(("tiny/text", "csv"),)),
    Case(
        "an unknown option", 2, ("learning_rate", "lr"), more="[optimizer]\nlearning_rate = 0.1\n"
    ),
    Case("an option out of range", 2, ("lr", "-1"), more="[optimizer]\nlr = -1.0\n"),
    Case("a component without a name", 2, ("use",), changes=(('use = "tiny/text"', "width = 8"),)),
    Case("an optimizer that torch has not", 2, ("adamm",), more='[optimizer]\nuse = "adamm"\n'),
    Case(
        "`--set` of an unknown key",
        2,
        ("optimizer.lrr", "lr"),
        arguments=("run", "recipe.toml", "--output", "out", "--set", "optimizer.lrr=1"),
    ),
    Case("a device that is not there", 2, ("train.device",), changes=(('"cpu"', '"cuda"'),)),
    Case("a delimiter of two characters", 2, ("delimiter",), changes=options('delimiter = ";;"')),
    Case("an encoding that Python lacks", 2, ("utf-9",), changes=options('encoding = "utf-9"')),
    Case(
        "early stopping without validation",
        2,
        ("validation",),
        changes=options("validation = 0"),
        more='[[extension]]\nuse = "early-stopping"\n',
    ),
    Case(
        "a metric to select by that nobody has",
        2,
        ("f2", "accuracy"),
        more='[checkpoint]\nbest = "f2"\n',
        leaves=True,
    ),
    Case("an unknown metric", 2, ("accuraccy",), more='[evaluation]\nmetrics = ["accuraccy"]\n'),
]

DATA = [
    Case("no such file", 3, ("review.csv", "reviews.csv"), changes=source("csv", "review.csv")),
    Case("a folder instead of a file", 3, ("folder",), changes=source("csv", ".")),
    Case("an empty file", 3, ("reviews.csv", "empty"), files=files(reviews_csv="")),
    Case(
        "a header and no rows",
        3,
        ("reviews.csv", "no rows"),
        files=files(reviews_csv="text,label\n"),
    ),
    Case(
        "a missing column",
        3,
        ("label", "stars"),
        files=files(reviews_csv=CSV.replace("label", "stars", 1)),
    ),
    Case(
        "a column that is not there",
        3,
        ("txt", "text"),
        changes=options('columns = {text = "txt"}'),
    ),
    Case(
        "two columns of one name",
        3,
        ("line 1", "text"),
        files=files(reviews_csv="text,text\na,b\n"),
    ),
    Case("a ragged row", 3, ("line 62", "3 fields"), files=files(reviews_csv=CSV + "a,b,c\n")),
    Case("a quote that is not closed", 3, ("line 62",), files=files(reviews_csv=CSV + '"a,pos\n')),
    Case(
        "broken UTF-8",
        3,
        ("line 62", "0xe9", "utf-8"),
        files=files(reviews_csv=CSV.encode() + b"caf\xe9,pos\n"),
    ),
    Case(
        "a label in test that training lacks",
        3,
        ("test", "meh"),
        changes=TEST_SPLIT,
        files=files(test_csv="text,label\na,pos\nb,meh\n"),
    ),
    Case(
        "a label that label_names lacks",
        3,
        ("neg", "label_names"),
        changes=options('label_names = ["pos", "negative"]'),
    ),
    Case(
        "labels that are null",
        3,
        ("row 60", "label"),
        changes=source("jsonl", "reviews.jsonl"),
        files=files(reviews_jsonl=JSONL + '{"text": "a", "label": null}\n'),
    ),
    Case(
        "texts that are null",
        3,
        ("row 60", "text"),
        changes=source("jsonl", "reviews.jsonl"),
        files=files(reviews_jsonl=JSONL + '{"text": null, "label": "pos"}\n'),
    ),
    Case(
        "a single class",
        3,
        ("pos",),
        files=files(reviews_csv=CSV.replace(",neg", ",pos")),
    ),
    Case("a split too small", 3, ("test = 1 ", "2 classes"), changes=options("test = 1")),
    Case("a split larger than the data", 3, ("test = 1000", "60"), changes=options("test = 1000")),
    Case(
        "a split that is not there", 3, ("dev",), changes=options('splits = {validation = "dev"}')
    ),
    Case(
        "a line that is no JSON",
        3,
        ("line 61",),
        changes=source("jsonl", "reviews.jsonl"),
        files=files(reviews_jsonl=JSONL + '{"text": "a", "label": \n'),
    ),
    Case(
        "one JSON array",
        3,
        ("array",),
        changes=source("jsonl", "reviews.jsonl"),
        files=files(reviews_jsonl='[{"text": "a", "label": "pos"}]'),
    ),
    Case(
        "a key of two types",
        3,
        ("label", "types"),
        changes=source("jsonl", "reviews.jsonl"),
        files=files(reviews_jsonl=JSONL + '{"text": "a", "label": 1}\n'),
    ),
    Case(
        "a parquet file cut off",
        3,
        ("reviews.parquet", "damaged"),
        changes=source("parquet", "reviews.parquet"),
        files=files(reviews_parquet=half_a_parquet),
    ),
    Case(
        "a parquet file without rows",
        3,
        ("reviews.parquet", "no rows"),
        changes=source("parquet", "reviews.parquet"),
        files=files(reviews_parquet=parquet_without_rows),
    ),
    Case(
        "a csv file called parquet",
        3,
        ("reviews.parquet",),
        changes=source("parquet", "reviews.parquet"),
        files=files(reviews_parquet=CSV),
    ),
]


def run(*arguments: str) -> tuple[str, ...]:
    return ("run", "recipe.toml", "--quiet", *arguments)


OUTPUT = [
    Case(
        "an output folder that is not empty",
        1,
        ("not empty",),
        files=(("out/mine.txt", "mine"),),
    ),
    Case("an output that is a file", 1, ("is a file",), files=(("out", "mine"),)),
    Case(
        "an output below a file",
        1,
        ("is a file",),
        files=(("out", ""),),
        arguments=run("-o", "out/run"),
    ),
    Case(
        "an output where nothing can be made", 1, ("/proc/run",), arguments=run("-o", "/proc/run")
    ),
    Case("an output name too long", 1, ("too long",), arguments=run("-o", "x" * 300)),
]
CASES = [*RECIPES, *DATA, *OUTPUT]


@contextlib.contextmanager
def prepared(case: Case, folder: Path) -> Iterator[None]:
    """Write recipe and files into a folder and go there."""
    text = RECIPE
    for old, new in case.changes:
        assert old in text, (case.name, old)
        text = text.replace(old, new, 1)
    (folder / "recipe.toml").write_text(f"{text}\n{case.more}")
    (folder / "reviews.csv").write_text(CSV)
    for name, content in case.files:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with contextlib.chdir(folder):
        yield


def told(case: Case) -> tuple[int, str]:
    """Run a case in the current folder; return exit code and what was printed to standard error."""
    from sft_engine.cli import cli
    from sft_engine.cli.ending import exit_code_of

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = exit_code_of(cli, case.arguments)
    return code, said.getvalue().strip()


def main() -> None:
    """Print the table."""
    from sft_engine.testing import install_fake

    with tempfile.TemporaryDirectory() as scratch:
        install_fake(Path(scratch, "site"), "sft-victims", {}, entry_points={"victims": "victims"})
        sys.path[:0] = [str(HERE), str(Path(scratch, "site"))]
        os.environ["SFT_ENGINE_PLUGINS"] = "victims"
        for number, case in enumerate(CASES):
            folder = Path(scratch, str(number))
            folder.mkdir()
            with prepared(case, folder):
                code, sentence = told(case)
            sentence = sentence.replace(str(folder), "FOLDER").removeprefix("error: ")
            print(f"{case.name} → {code} →")
            print(textwrap.indent(textwrap.fill(sentence, 110), "    "))


if __name__ == "__main__":
    main()
