"""Tokens against the tokenizer called one text at a time; the cache against every way to break it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors import safe_open

from sft_transformers import tokens as tokens_module
from sft_transformers.tokens import Tokenization, TokenizedExamples, Tokens, cache_folder

TEXTS = [
    "the film is very good",
    "",
    "The actor sleeps, then the quick brown fox jumps over the lazy dog!",
    "caf\u00e9 \u00e9 \U0001f600 \u4e2d\u6587 \u200b",
    "awful " * 40,
    "the plot [SEP] is bad",
    " \n\t ",
]
PAIRS = ["good", "bad", "", "the dog", "great " * 40, "it", "x"]


@pytest.fixture
def words(make_tokenizer):
    return make_tokenizer.words()


def rows_of(tokens):
    return [
        {name: values.tolist() for name, values in tokens[i].items()} for i in range(len(tokens))
    ]


@pytest.mark.parametrize("limit", [None, 8, 30])
@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_tokens_are_those_of_the_tokenizer(limit, pairs, words, make_tokenizer):
    tokens = Tokenization(words, limit=limit, token_types=True).tokenize(TEXTS, pairs)
    plain = make_tokenizer.words()
    for index, text in enumerate(TEXTS):
        # In lists of one: called with bare strings, an empty second text counts as none.
        pair = [pairs[index]] if pairs else None
        cut = {"truncation": True, "max_length": limit} if limit else {}
        expected = plain([text], pair, **cut)
        assert tokens[index]["input_ids"].tolist() == expected["input_ids"][0]
        assert tokens[index]["token_type_ids"].tolist() == expected["token_type_ids"][0]
        whole = len(plain([text], pair)["input_ids"][0])
        assert tokens.truncated[index] == (limit is not None and whole > limit)
    assert tokens.input_ids.dtype == np.int32
    assert tokens.truncated.any() == (limit is not None)


def test_examples_hold_lengths_targets_and_shares(words):
    tokens = Tokenization(words, limit=None, token_types=False).tokenize(
        ["the film", "a zebra zebra"], None
    )
    examples = TokenizedExamples(tokens, {"label": [1, 0]})
    assert len(examples) == 2
    assert examples.lengths.tolist() == [4, 5]
    assert examples.truncated.tolist() == [False, False]
    assert examples.unknown_share == 2 / 9
    second, first = examples.__getitems__([1, 0])
    assert second["input_ids"].tolist() == [2, 6, 1, 1, 3]
    assert (second["label"], first["label"]) == (0, 1)
    assert set(first) == {"input_ids", "label"}
    assert np.shares_memory(first["input_ids"], tokens.input_ids)


def test_many_portions_keep_the_order(words, monkeypatch):
    whole = Tokenization(words, limit=8, token_types=True).tokenize(TEXTS, PAIRS)
    monkeypatch.setattr(tokens_module, "_PORTION", 2)
    parts = Tokenization(words, limit=8, token_types=True).tokenize(TEXTS, PAIRS)
    assert rows_of(parts) == rows_of(whole)
    assert parts.truncated.tolist() == whole.truncated.tolist()


def test_no_texts_at_all(words):
    tokens = Tokenization(words, limit=8, token_types=True).tokenize([], None)
    assert len(tokens) == 0
    assert TokenizedExamples(tokens, {}).unknown_share == 0


def test_an_empty_text_of_a_decoder_is_one_token(make_tokenizer):
    tokenizer = make_tokenizer.bytes()
    tokens = Tokenization(tokenizer, limit=8, token_types=True).tokenize(["", "ab"], None)
    assert tokens[0]["input_ids"].tolist() == [tokenizer.eos_token_id]
    assert tokens[0]["token_type_ids"].tolist() == [0]
    # Bytes leave nothing unknown, though the token of that name is the end of text.
    assert tokens.unknown == 0


def test_names_of_special_tokens_may_be_taken_literally(words):
    plain = Tokenization(words, limit=None, token_types=False).tokenize(["film [SEP]"], None)
    literal = Tokenization(words, limit=None, token_types=False, literal=True).tokenize(
        ["film [SEP]"], None
    )
    assert plain[0]["input_ids"].tolist().count(3) == 2
    assert literal[0]["input_ids"].tolist().count(3) == 1


def test_a_tokenizer_in_python_gives_the_same_answers():
    tokenizer = transformers.ByT5Tokenizer()
    assert not tokenizer.is_fast
    tokenization = Tokenization(tokenizer, limit=6, token_types=False)
    tokens = tokenization.tokenize(["good", "much too long", "exact"], None)
    assert tokens.truncated.tolist() == [False, True, False]
    assert [len(tokens[i]["input_ids"]) for i in range(3)] == [5, 6, 6]
    assert tokens[1]["input_ids"].tolist() == tokenizer("much ")["input_ids"]
    assert tokenization.fingerprint(["a"], None) == Tokenization(
        transformers.ByT5Tokenizer(), limit=6, token_types=False
    ).fingerprint(["a"], None)
    assert Tokenization(tokenizer, limit=None, token_types=False).tokenize(["x"], None).unknown == 0


# --- The cache -----------------------------------------------------------------------------------


@pytest.fixture
def count(monkeypatch):
    """Count how often texts are tokenized in earnest."""
    calls = []
    real = Tokenization.tokenize

    def counted(self, texts, pairs):
        calls.append(len(texts))
        return real(self, texts, pairs)

    monkeypatch.setattr(Tokenization, "tokenize", counted)
    return calls


def equal(one: Tokens, other: Tokens) -> bool:
    names = ("input_ids", "token_type_ids", "offsets", "truncated")
    same = all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)
    dtypes = all(getattr(one, n).dtype == getattr(other, n).dtype for n in names)
    return same and dtypes and one.unknown == other.unknown


def test_the_second_run_reads_what_the_first_wrote(make_tokenizer, count):
    first, second = (
        Tokenization(make_tokenizer.words(), limit=8, token_types=True).cached(TEXTS, PAIRS)
        for _ in range(2)
    )
    assert count == [len(TEXTS)]
    assert equal(first, second)
    (file,) = cache_folder().iterdir()  # one file, nothing left beside it
    with safe_open(file, framework="numpy") as content:
        assert sorted(content.keys()) == ["input_ids", "offsets", "token_type_ids", "truncated"]


def test_tokens_without_segments_and_no_texts_come_back(words, count):
    tokenization = Tokenization(words, limit=8, token_types=False)
    for texts in (["the film"], []):
        made, read = tokenization.cached(texts, None), tokenization.cached(texts, None)
        assert read.token_type_ids is None
        assert np.array_equal(made.input_ids, read.input_ids)
        assert len(read) == len(texts)
    assert count == [1, 0]


def test_fingerprint_tells_apart_all_that_matters(make_tokenizer):
    def fingerprint(texts=("ab", "c"), pairs=None, limit=8, types=True, literal=False, **tokenizer):
        changed = make_tokenizer.words(**tokenizer)
        tokenization = Tokenization(changed, limit=limit, token_types=types, literal=literal)
        return tokenization.fingerprint(list(texts), pairs)

    assert fingerprint() == fingerprint()
    different = [
        fingerprint(),
        fingerprint(texts=("a", "bc")),
        fingerprint(texts=("ab", "c", "")),
        fingerprint(texts=("c", "ab")),
        fingerprint(pairs=["", ""]),
        fingerprint(texts=("ab",), pairs=["c"]),
        fingerprint(limit=9),
        fingerprint(limit=None),
        fingerprint(types=False),
        fingerprint(literal=True),
        fingerprint(special="$A [SEP]"),
        fingerprint(truncation_side="left"),
    ]
    assert len(set(different)) == len(different)


def test_fingerprint_survives_use_and_saving(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer.words()
    before = Tokenization(tokenizer, limit=8, token_types=True).fingerprint(TEXTS, None)
    tokenizer(TEXTS, truncation=True, max_length=3, padding=True)
    assert Tokenization(tokenizer, limit=8, token_types=True).fingerprint(TEXTS, None) == before
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenization(again, limit=8, token_types=True).fingerprint(TEXTS, None) == before


def damaged(how: str, path: Path) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
    elif how == "cut":
        del data[-10:]
    elif how == "empty":
        data.clear()
    elif how == "text":
        data[:] = b"not a safetensors file"
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "text"])
def test_a_damaged_file_is_made_again(how, words, count):
    tokenization = Tokenization(words, limit=8, token_types=True)
    first = tokenization.cached(TEXTS, None)
    (file,) = cache_folder().iterdir()
    damaged(how, file)
    assert equal(tokenization.cached(TEXTS, None), first)
    assert equal(tokenization.cached(TEXTS, None), first)
    assert count == [len(TEXTS)] * 2  # the third time it was read


def test_many_writers_at_once(words):
    tokenization = Tokenization(words, limit=8, token_types=True)
    expected, results = tokenization.tokenize(TEXTS, None), []
    threads = [
        threading.Thread(target=lambda: results.append(tokenization.cached(TEXTS, None)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(equal(result, expected) for result in results)
    assert len(list(cache_folder().iterdir())) == 1


def test_a_cache_that_cannot_be_written_stops_nothing(words, count, tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(blocked))
    tokenization = Tokenization(words, limit=8, token_types=True)
    with caplog.at_level(logging.WARNING, "sft_transformers"):
        assert len(tokenization.cached(TEXTS, None)) == len(TEXTS)
    assert "tokens are not cached" in caplog.text


def test_a_failed_write_leaves_nothing_behind(words, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens_module, "save_file", full)
    assert len(Tokenization(words, limit=8, token_types=True).cached(TEXTS, None)) == len(TEXTS)
    assert list(cache_folder().iterdir()) == []


# --- Threads and forks ---------------------------------------------------------------------------


def test_a_fork_after_encoding_works_and_is_silent(words, monkeypatch, capfd):
    """Workers of a loader are forks; the tokenizer's thread pool does not exist in them."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    tokenization = Tokenization(words, limit=8, token_types=True)
    expected = rows_of(tokenization.tokenize(TEXTS * 50, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 distrusts any fork
        child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that hangs
        same = rows_of(tokenization.tokenize(TEXTS * 50, None)) == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert capfd.readouterr().err == ""


def test_the_users_choice_of_parallelism_stays(words, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    Tokenization(words, limit=8, token_types=True).tokenize(TEXTS, None)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
