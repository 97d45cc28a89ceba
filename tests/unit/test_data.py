from __future__ import annotations

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from sft_engine import DataError, RecipeError
from sft_engine.builtin.data import Csv, Function, HfDataset, JsonLines, Parquet, read_file

ROWS = {"text": ["good film", "bad, bad film"], "label": ["pos", "neg"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows_of(splits, name="train"):
    return splits[name].to_dict()


def sentence(source):
    with pytest.raises(DataError) as caught:
        source.load()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- csv -----------------------------------------------------------------------------------------


def test_csv_is_text_and_nothing_is_guessed(folder):
    content = 'text,label,id\nNA,None,007\n"a ""b"", c",null,1e5\n ,,+3\n"two\nlines",NaN,true\n'
    rows = rows_of(Csv(write(folder / "a.csv", content)).load())
    assert rows == {
        "text": ["NA", 'a "b", c', " ", "two\nlines"],
        "label": ["None", "null", "", "NaN"],
        "id": ["007", "1e5", "+3", "true"],
    }


def test_csv_dialects(folder):
    tabs = write(folder / "a.tsv", '1\the said "no\n\n2\té\n'.encode("latin-1"))
    source = Csv(tabs, delimiter="\t", encoding="latin-1", quote="", column_names=["id", "text"])
    assert rows_of(source.load()) == {"id": ["1", "2"], "text": ['he said "no', "é"]}


def test_csv_byte_order_mark_and_windows_line_ends(folder):
    path = write(folder / "a.csv", b"\xef\xbb\xbftext,label\r\na,b\r\n")
    assert rows_of(Csv(path).load()) == {"text": ["a"], "label": ["b"]}


def test_csv_with_a_file_a_split_and_a_very_long_text(folder):
    long = "x" * 300_000
    write(folder / "a.csv", f"text,label\n{long},b\n")
    write(folder / "b.csv", "text,label\nc,d\n")
    splits = Csv({"train": "a.csv", "test": "b.csv"}).load()
    assert rows_of(splits)["text"] == [long]
    assert rows_of(splits, "test") == {"text": ["c"], "label": ["d"]}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty"]),
        ("\n\n", ["blank lines"]),
        ("text,label\n", ["header (text, label) and no rows"]),
        ("text,label\na,b\nc\n", ["line 3", "1 fields where the header has 2", "text, label"]),
        ('text,label\n"a\nb",c\nd,e,f\n', ["line 4", "3 fields"]),
        ('text,label\na,b\n"c,d\ne,f\n', ["line 3", "unexpected end of data"]),
        ('text,label\na,"b"c\n', ["line 2", 'quote = ""']),
        (b"text,label\na,b\nc\xff,d\n", ["line 3", "byte 16 (0xff) is not utf-8", "latin-1"]),
        ("text,text\na,b\n", ["two columns 'text'"]),
        ("text,\na,b\n", ["a column without a name"]),
    ],
)
def test_broken_csv_files(folder, content, parts):
    message = sentence(Csv(write(folder / "a.csv", content)))
    for part in ["a.csv", *parts]:
        assert part in message


def test_missing_files(folder):
    write(folder / "reviews.csv", "text,label\na,b\n")
    message = sentence(Csv("review.csv"))
    assert f"looked in {folder}" in message
    assert "did you mean `reviews.csv`" in message
    assert "no folder 'nowhere' either" in sentence(Csv("nowhere/a.csv"))
    assert "is a folder" in sentence(Csv("."))
    with pytest.raises(RecipeError, match=r"data\.path names no file"):
        Csv({}).load()


def test_all_files_are_looked_for_before_one_is_read(folder):
    write(folder / "a.csv", b"\xff")
    assert "no file 'b.csv'" in sentence(Csv({"train": "a.csv", "test": "b.csv"}))


@pytest.mark.parametrize("options", [{"delimiter": ", "}, {"delimiter": ""}, {"quote": "''"}])
def test_csv_options_are_single_characters(options):
    with pytest.raises(RecipeError, match="allowed is one character"):
        Csv("a.csv", **options)


def test_unknown_encoding(folder):
    with pytest.raises(RecipeError, match="no encoding 'utf-9'"):
        Csv(write(folder / "a.csv", "a,b\n1,2\n"), encoding="utf-9").load()


# --- JSON lines and parquet ----------------------------------------------------------------------


def test_jsonl_keeps_types_and_fills_missing_keys(folder):
    path = write(
        folder / "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b\\u2028", "more": [1]}\n'
    )
    rows = rows_of(JsonLines(path).load())
    assert rows == {"text": ["a", "b\u2028"], "label": [1, None], "more": [None, [1]]}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"a": 1}\n{"a": }\n', ["line 2", "character 7"]),
        ('{"a": 1}\n[1]\n', ["line 2", "[1] is no object"]),
        ('[{"a": 1}]', ["JSON array", "jq"]),
        (b'{"a": "\xe9"}\n', ["line 1", "0xe9"]),
        ('{"a": 1}\n{"a": "x"}\n', ["'a'", "int, str"]),
        (" \n", ["blank lines"]),
        ("", ["is empty"]),
    ],
)
def test_broken_jsonl_files(folder, content, parts):
    message = sentence(JsonLines(write(folder / "a.jsonl", content)))
    for part in ["a.jsonl", *parts]:
        assert part in message


def test_parquet_keeps_types(folder):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet("a.parquet")
    assert Parquet("a.parquet").load()["train"].features["label"].names == ["neg", "pos"]
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["x", "y"])})
    frame.to_parquet("b.parquet")
    assert rows_of(Parquet("b.parquet").load()) == {"text": ["a", "b"], "label": ["x", "y"]}


def test_broken_parquet_files(folder):
    assert "no parquet file" in sentence(Parquet(write(folder / "a.parquet", "text,label\n")))
    table = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(table, folder / "b.parquet")
    assert "no rows" in sentence(Parquet("b.parquet"))
    pq.write_table(pa.table(ROWS), folder / "c.parquet")
    whole = (folder / "c.parquet").read_bytes()
    assert "damaged" in sentence(Parquet(write(folder / "d.parquet", whole[:-20])))


def test_one_file_by_its_name(folder):
    write(folder / "a.tsv", "text\tlabel\na\tb\n")
    assert read_file(folder / "a.tsv").to_dict() == {"text": ["a"], "label": ["b"]}
    write(folder / "a.jsonl", json.dumps({"text": "a"}))
    assert read_file(folder / "a.jsonl").to_dict() == {"text": ["a"]}
    with pytest.raises(DataError, match="cannot tell what"):
        read_file(folder / write(folder / "a.xls", "x"))


# --- Hugging Face --------------------------------------------------------------------------------


def test_what_save_to_disk_wrote(folder):
    rows = Dataset.from_dict(ROWS)
    DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk("both")
    rows.save_to_disk("one")
    splits = HfDataset("both").load()
    assert rows_of(splits) == ROWS
    assert rows_of(splits, "test")["label"] == ["neg"]
    assert rows_of(HfDataset("./one").load()) == ROWS


def test_a_folder_of_files(folder):
    (folder / "set").mkdir()
    Dataset.from_dict(ROWS).to_parquet("set/train.parquet")
    Dataset.from_dict(ROWS).select([0]).to_parquet("set/test.parquet")
    splits = HfDataset("set").load()
    assert rows_of(splits) == ROWS
    assert len(splits["test"]) == 1


def test_a_folder_of_csv_files_is_read_like_csv(folder):
    (folder / "set").mkdir()
    write(folder / "set" / "train.csv", "text,label\nNA,007\n")
    write(folder / "set" / "my_dev.csv", "text,label\nx,1\n")
    splits = HfDataset("set").load()
    assert rows_of(splits) == {"text": ["NA"], "label": ["007"]}
    assert rows_of(splits, "dev")["label"] == ["1"]
    write(folder / "set" / "more.csv", "text,label\nx,1\n")
    assert "cannot tell which split 'more.csv'" in sentence(HfDataset("set"))


def test_data_sets_that_are_not_there(folder):
    assert "no folder './nowhere'" in sentence(HfDataset("./nowhere"))
    (folder / "void").mkdir()
    assert "'void' is empty" in sentence(HfDataset("void"))
    message = sentence(HfDataset("nobody/nothing"))
    assert "cannot load the data set 'nobody/nothing'" in message
    assert "HF_HUB_OFFLINE is set" in message


# --- functions -----------------------------------------------------------------------------------


@pytest.fixture
def module(folder, request):
    name = f"my_data_{request.node.name.split('[')[0]}"
    write(
        folder / f"{name}.py",
        "import pandas as pd\n"
        "from datasets import Dataset\n"
        f"ROWS = {ROWS!r}\n"
        "def dataset(): return Dataset.from_dict(ROWS).with_format('numpy')\n"
        "def frame(): return pd.DataFrame(ROWS, index=[7, 8])\n"
        "def records(): return [{'text': 'good film', 'label': 'pos'},"
        " {'text': 'bad, bad film', 'label': 'neg'}]\n"
        "def splits(n=1): return {'train': dataset(), 'dev': records()[:n]}\n"
        "def number(): return 3\n"
        "def nothing(): return []\n"
        "def broken(): raise KeyError('x')\n"
        "constant = 3\n",
    )
    return name


@pytest.mark.parametrize("function", ["dataset", "frame", "records", "splits"])
def test_functions_may_return_what_people_have(module, function):
    assert rows_of(Function(f"{module}:{function}").load()) == ROWS


def test_options_are_passed_on(module):
    splits = Function(f"{module}:splits", {"n": 2}).load()
    assert len(splits["dev"]) == 2


@pytest.mark.parametrize("function", ["number", "nothing"])
def test_functions_that_return_something_else(module, function):
    assert "allowed are a Dataset" in sentence(Function(f"{module}:{function}"))


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("{module}:framee", "no function 'framee'; did you mean `frame`"),
        ("{module}:constant", "no function 'constant'"),
        ("no_such_module:f", "no module 'no_such_module' in"),
    ],
)
def test_functions_that_are_not_there(module, function, part):
    with pytest.raises(RecipeError, match=part):
        Function(function.format(module=module)).load()


def test_a_module_that_lacks_another_one(folder):
    write(folder / "needs_more.py", "import not_installed_here\n")
    with pytest.raises(RecipeError, match="needs the module not_installed_here"):
        Function("needs_more:load").load()


@pytest.mark.parametrize("function", ["load", "module:", ":load"])
def test_functions_are_named_with_their_module(function):
    with pytest.raises(RecipeError, match=r'allowed is "package\.module:function"'):
        Function(function)


def test_an_exception_of_the_function_is_its_own_and_says_where_it_was_called(module):
    with pytest.raises(KeyError) as caught:
        Function(f"{module}:broken").load()
    assert caught.value.__notes__ == [f"raised by data.function = '{module}:broken'"]
