"""Which word each token is of, for tokenizers that cut words in different ways."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_transformers.tokens import Tokenization


def words_of(tokenizer, texts, pairs=None, limit=None):
    """Return for each input the text of each token's word; None where it has none."""
    tokenization = Tokenization(tokenizer, limit=limit, token_types=False)
    both = [texts, pairs or []]
    found = tokenization.word_spans(texts, pairs)
    tokens = tokenization.tokenize(texts, pairs)
    assert [len(each) for each in found] == [len(tokens[i]["input_ids"]) for i in range(len(texts))]
    return [
        [span and both[span[0]][place][span[1] : span[2]] for span in each]
        for place, each in enumerate(found)
    ]


def test_wordpieces_are_of_the_word_that_they_came_from(make_tokenizer) -> None:
    (found,) = words_of(make_tokenizer.words(), ["The jumping, jumps  dog."])
    assert found == [
        None,
        "The",
        "jumping",
        "jumping",
        ",",
        "jumps",
        "jumps",
        "dog",
        ".",
        None,
    ]


def test_bytes_of_a_word_are_one_word_without_the_space_before_it(make_tokenizer) -> None:
    (found,) = words_of(make_tokenizer.bytes(), ["a caf\u00e9, \U0001f600 ok"])
    # a · c a f é(2 bytes) , · 😀(4 bytes) · o k: one token a byte.
    assert found[:2] == ["a", None]  # a token of the mere space
    assert found[2:7] == ["caf\u00e9"] * 5
    assert found[7] == ","
    assert [word for word in found[8:] if word is not None] == ["\U0001f600"] * 4 + ["ok"] * 2


def test_byte_pairs_with_the_space_inside_of_a_token() -> None:
    space = "\u0120"
    merges = [(space, "o"), (f"{space}o", "k")]
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), f"{space}o", f"{space}ok"]
    backend = Tokenizer(models.BPE({each: i for i, each in enumerate(letters)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert words_of(tokenizer, ["k ok"]) == [["k", "ok"]]


def test_a_tokenizer_that_cuts_nowhere_first_is_cut_at_spaces() -> None:
    pieces = [("<unk>", 0.0), ("\u2581", -1.0), *((letter, -1.0) for letter in "abc")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    (found,) = words_of(tokenizer, ["ab c"])
    assert [word for word in found if word is not None] == ["ab", "ab", "c"]


def test_pairs_and_cuts(make_tokenizer) -> None:
    (found,) = words_of(make_tokenizer.words(), ["The dog"], ["the dog sleeps"])
    assert found[:5] == [None, "The", "dog", None, "the"]
    assert found[5] == "dog"
    assert set(found[6:-1]) == {"sleeps"}
    (cut,) = words_of(make_tokenizer.words(), ["the dog the dog"], limit=4)
    assert cut == [None, "the", "dog", None]


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_words_has_none(make_tokenizer, text) -> None:
    for tokenizer in (make_tokenizer.words(), make_tokenizer.bytes()):
        assert {word for each in words_of(tokenizer, [text]) for word in each} == {None}


def test_a_tokenizer_in_python_does_not_know() -> None:
    class Slow:
        bos_token_id = eos_token_id = cls_token_id = pad_token_id = unk_token_id = None

        def __call__(self, texts, pairs, **options):
            class Encoded(dict):
                encodings = None

            return Encoded(input_ids=[[1]] * len(texts))

    assert Tokenization(Slow(), limit=None, token_types=False).word_spans(["a"], None) is None
