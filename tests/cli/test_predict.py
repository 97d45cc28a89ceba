"""`predict`: texts, files or standard input to records, row by row."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from sft_engine.cli.rows import flat, read_lines
from sft_engine.errors import DataError

TEXTS = ["aaab", "bbb, b", 'say "a"']


def predictions(ended):
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


@pytest.fixture
def expected(sft, trained):
    """Predictions of the three texts, given as arguments."""
    return predictions(sft("predict", trained, *TEXTS))


def test_texts_become_records_with_probabilities(expected):
    assert [record["text"] for record in expected] == TEXTS
    for record in expected:
        shares = record["probabilities"]
        assert set(shares) == {"a", "b"}
        assert sum(shares.values()) == pytest.approx(1)
        assert record["prediction"] == max(shares, key=shares.get)


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_standard_input_has_a_text_a_line(sft, trained, expected, dash):
    stdin = "\n\n".join(TEXTS).encode() + b"\n\n"
    assert predictions(sft("predict", trained, *dash, stdin=stdin)) == expected


def test_standard_input_may_hold_objects_and_their_columns_are_kept(sft, trained, expected):
    rows = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
    stdin = "\n".join(map(json.dumps, rows)).encode()
    found = predictions(sft("predict", trained, stdin=stdin))
    assert found == [{"id": n, **record} for n, record in enumerate(expected)]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_do_not_matter(sft, trained, expected, batch_size):
    found = predictions(sft("predict", trained, *TEXTS, "--batch-size", batch_size))
    for one, other in zip(found, expected, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["probabilities"] == pytest.approx(other["probabilities"])


def write_rows(name):
    if name.endswith(".txt"):
        Path(name).write_text("\n".join(TEXTS))
    elif name.endswith(".jsonl"):
        Path(name).write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    else:
        with Path(name).open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *[[text] for text in TEXTS]])


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.txt"])
def test_a_file(sft, trained, expected, name):
    write_rows(name)
    assert predictions(sft("predict", trained, "--file", name)) == expected


def test_columns_may_have_the_names_of_the_recipe(sft, trained, expected):
    Path("rows.jsonl").write_text("\n".join(json.dumps({"review": text}) for text in TEXTS))
    found = predictions(
        sft("predict", trained, "-f", "rows.jsonl", "--set", "data.columns.text=review")
    )
    assert [f["probabilities"] for f in found] == [e["probabilities"] for e in expected]
    assert [f["review"] for f in found] == TEXTS


@pytest.mark.parametrize("arguments", [["--format", "csv"], ["--output", "p.csv"]])
def test_csv_has_a_column_for_each_probability(sft, trained, expected, arguments):
    ended = sft("predict", trained, *TEXTS, *arguments)
    assert ended.code == 0
    written = Path("p.csv").read_text() if "--output" in arguments else ended.out
    rows = list(csv.DictReader(io.StringIO(written)))
    assert list(rows[0]) == ["text", "prediction", "p(a)", "p(b)"]
    assert [row["text"] for row in rows] == TEXTS
    assert [float(row["p(a)"]) for row in rows] == [e["probabilities"]["a"] for e in expected]


def test_the_output_file_is_replaced_whole(sft, trained, expected):
    Path("p.jsonl").write_text("old")
    assert sft("predict", trained, *TEXTS, "-o", "p.jsonl").out == ""
    assert [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()] == expected


def test_a_failure_leaves_the_old_output_and_no_other_file(sft, trained, folder):
    Path("p.jsonl").write_text("old")
    rows = [{"text": "ab"}] * 3 + [{"txt": "ab"}]
    stdin = "\n".join(map(json.dumps, rows)).encode()
    ended = sft("predict", trained, "-o", "p.jsonl", "--batch-size", "1", stdin=stdin)
    assert ended.code == 3
    assert "has no 'text', found: txt" in ended.err
    assert Path("p.jsonl").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["p.jsonl", "tiny.toml"]


def test_rows_go_through_one_by_one_until_the_reader_leaves(start, trained):
    process = start("predict", trained, "--batch-size", "1")
    for text in TEXTS:
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    process.stdout.close()
    process.stdin.write("aab\n" * 1000)
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["text", "--file", "rows.csv"], 2, "not both"),
        (["--file", "absent.csv"], 3, "there is no file 'absent.csv'."),
        (["--file", "rwos.csv"], 3, "did you mean `rows.csv`?"),
        (["--file", "nowhere/rows.csv"], 3, "no folder 'nowhere'"),
        (["--file", "."], 3, "is a folder"),
        (["--file", "empty.txt"], 3, "'empty.txt' is empty."),
        (["--file", "bytes.txt"], 3, "bytes.txt, line 2: found the byte 0xff, allowed: UTF-8"),
        (["--file", "tiny.toml"], 3, "cannot tell what 'tiny.toml' is"),
        (["text", "-o", "nowhere/p.csv"], 1, "nowhere/p.csv cannot be written: No such file"),
        (["text", "-o", "/dev/full"], 1, "/dev/full cannot be written: No space left"),
        (["text", "--format", "xml"], 2, "'xml' is not one of 'jsonl', 'csv'"),
        ([], 3, "there is nothing to predict"),
    ],
)
def test_what_is_wrong_is_one_sentence(sft, trained, arguments, code, sentence):
    Path("rows.csv").write_text("text\nab\n")
    Path("empty.txt").touch()
    Path("bytes.txt").write_bytes(b"fine\n\xff\n")
    ended = sft("predict", trained, *arguments)
    assert ended.code == code
    assert sentence in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


def test_a_terminal_is_not_waited_for(sft, trained):
    ended = sft("predict", trained, terminal=True)
    assert ended.code == 2
    assert "give a TEXT, --file FILE, or pipe texts in" in ended.err


def test_predict_wants_a_finished_run(sft):
    ended = sft("predict", "absent", "text")
    assert ended.code == 1
    assert "absent is not a run folder" in ended.err


# --- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        ([b"one\n", b"  \n", b"two"], ["one", "two"]),
        ([b"\xef\xbb\xbfone\n"], ["one"]),  # a byte order mark
        ([b'{"a": 1}\n', b"\n", b'{"a": 2}'], [{"a": 1}, {"a": 2}]),
        ([b"{no object}\n", b'{"a": 1}'], ["{no object}", '{"a": 1}']),
        (["Größe\r\n".encode()], ["Größe"]),
    ],
)
def test_lines_are_texts_or_objects(lines, rows):
    assert list(read_lines(lines, "it")) == rows


def test_an_object_is_followed_by_objects():
    with pytest.raises(DataError, match="it, line 3: found 'text', allowed: a JSON object"):
        list(read_lines([b'{"a": 1}\n', b'{"a": 2}\n', b"text\n"], "it"))


def test_lines_are_read_as_they_are_asked_for():
    taken = iter([b"one\n", b"two\n"])
    rows = read_lines(taken, "it")
    assert next(rows) == "one"
    assert list(taken) == [b"two\n"]


def test_nested_values_become_columns():
    record = {"text": "x", "prediction": ["a", "b"], "probabilities": {"a": 0.9}, "other": {"k": 1}}
    assert flat(record) == {"text": "x", "prediction": '["a", "b"]', "p(a)": 0.9, "other(k)": 1}


def test_csv_refuses_a_column_that_appears_later(sft, trained):
    stdin = b'{"text": "a"}\n{"text": "a", "id": 1}\n'
    ended = sft("predict", trained, "--format", "csv", stdin=stdin)
    assert ended.code == 3
    assert "the column 'id', which the first row lacks; use --format jsonl" in ended.err


def test_dev_null_stays_a_device(sft, trained):
    assert sft("predict", trained, "text", "-o", os.devnull).code == 0
    assert not Path(os.devnull).is_file()
