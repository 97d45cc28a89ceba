"""Back-translation by tiny random models: what is translated, how often, and what a file keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from sft_augmentations import back_translation
from sft_augmentations.back_translation import (
    append,
    back_translate,
    known_texts,
    training_texts,
)
from sft_augmentations.paraphrases import read_wordings
from sft_augmentations.translation import load_translator, sentences, there_and_back
from sft_engine import DataError, OutputError, RecipeError, load_recipe, plugins
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_engine.testing.runs import TINY, run_recipe, tiny_plugins

WORDS = [*"abcdefghij", "translate"]
SPECIAL = ["<pad>", "</s>", "<unk>"]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=24,
    )


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    size = len(SPECIAL) + len(WORDS)
    config = MarianConfig(
        vocab_size=size,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=32,
        init_std=0.5,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    return saved(MarianMTModel(config), tmp_path_factory.mktemp("marian"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return saved(T5ForConditionalGeneration(config), tmp_path_factory.mktemp("t5"))


def saved(model, folder: Path) -> Path:
    model.generation_config.min_new_tokens = 3
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    """Let the verbs find the tiny components."""
    installed = tiny_plugins()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "load_plugins", lambda: installed)
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(f'{TINY}[[augmentation]]\nuse = "paraphrases"\npath = "{tmp_path}/new.jsonl"\n')
    return path


@pytest.fixture
def fill(recipe: Path, marian: Path, t5: Path):
    """Return a function that fills a file for the recipe."""

    def run(file: Path, **options):
        given = {"forward": str(marian), "backward": str(t5), "samples": 2, **options}
        return back_translate(recipe, output=file, **given)

    return run


# --- sentences -------------------------------------------------------------------------------------


def test_texts_are_cut_into_sentences() -> None:
    assert sentences("One. Two!  Three?\nFour, 4.5") == ["One.", "Two!", "Three?", "Four, 4.5"]
    assert sentences(" \n ") == []


@given(st.text())
def test_no_word_is_lost_or_changed(text: str) -> None:
    assert " ".join(sentences(text)).split() == text.split()


def test_sentences_come_back_to_their_texts() -> None:
    calls = []

    def shout(texts, seed):
        calls.append((tuple(texts), seed))
        return [text.upper() for text in texts]

    texts = ["a b. c.", "", "D."]
    assert there_and_back(texts, shout, shout, 3, 0) == [["A B. C."], [], []]
    assert len({seed for _, seed in calls}) == 6  # a seed of its own for each way of each sample
    assert calls[0][0] == ("a b.", "c.", "D.")
    again = there_and_back(texts, shout, shout, 3, 1)
    assert again == [["A B. C."], [], []]
    assert not {seed for _, seed in calls[:6]} & {seed for _, seed in calls[6:]}


# --- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["marian", "t5"])
def test_a_model_samples_by_seed_and_searches_without_temperature(which: str, request) -> None:
    folder = str(request.getfixturevalue(which))
    sampling = load_translator(folder, "--forward", batch_size=2)
    texts = ["abc", "a", "jihgf", "abcdefghij" * 9]
    assert sampling(texts, 1) == sampling(texts, 1)
    assert sampling(texts, 1) != sampling(texts, 2)
    search = load_translator(folder, "--forward", temperature=0.0)
    assert search(texts, 1) == search(texts, 2)
    assert search(texts[::-1], 1) == search(texts, 1)[::-1]


def test_a_search_is_what_the_model_itself_gives(marian: Path) -> None:
    model = MarianMTModel.from_pretrained(marian).eval()
    ids = tokenizer()("abc", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        tokens = model.generate(**ids, max_new_tokens=24, max_length=None)
    expected = tokenizer().batch_decode(tokens, skip_special_tokens=True)
    assert load_translator(str(marian), "--forward", temperature=0.0)(["abc"], 0) == expected


def test_a_prefix_is_put_before_each_sentence(t5: Path) -> None:
    plain = load_translator(str(t5), "--forward", temperature=0.0)
    prefixed = load_translator(str(t5), "--forward", prefix="ab", temperature=0.0)
    assert prefixed(["c", "d"], 0) == plain(["abc", "abd"], 0)


def test_a_model_that_cannot_be_had_is_one_sentence(tmp_path: Path, marian: Path) -> None:
    with pytest.raises(RecipeError, match=r"--forward .*nowhere .no folder here") as caught:
        load_translator(str(tmp_path / "nowhere"), "--forward")
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"--backward .* \(a folder\) cannot be loaded"):
        load_translator(str(tmp_path), "--backward")
    with pytest.raises(RecipeError, match="--device nothing cannot be used"):
        load_translator(str(marian), "--forward", device="nothing")


# --- the file --------------------------------------------------------------------------------------


def test_a_file_has_every_training_text_and_no_other(recipe, fill, tmp_path) -> None:
    file = tmp_path / "new.jsonl"
    filled = fill(file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    texts = training_texts(tiny_plan(recipe))
    assert [line["text"] for line in lines] == texts
    assert len(texts) == len(set(texts)) == filled.texts <= 48
    assert filled.wordings == sum(len(line["alternatives"]) for line in lines) > filled.texts
    assert filled.unchanged == sum(not line["alternatives"] for line in lines)
    assert all(len(line["alternatives"]) <= 2 for line in lines)
    run_recipe(tmp_path / "run", recipe.read_text(), ["train.steps=2"])  # `paraphrases` reads it


def tiny_plan(recipe: Path):
    from sft_engine import catalog

    return catalog.plan(load_recipe(recipe), tiny_plugins())


def test_a_stopped_one_goes_on_to_the_same_file(fill, tmp_path, monkeypatch) -> None:
    """Stopped by force behind the first group, in the middle of a line."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    fill(whole)
    real, calls = there_and_back, []

    def twice(*args):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(back_translation, "there_and_back", twice)
    with pytest.raises(KeyboardInterrupt):
        fill(cut)
    monkeypatch.undo()
    assert len(cut.read_text().splitlines()) == back_translation.GROUP
    assert whole.read_text().startswith(cut.read_text())
    for end in (b'{"text": "ab', b'{"te'):
        with cut.open("ab") as file:
            file.write(end)
        filled = fill(cut)
        assert cut.read_bytes() == whole.read_bytes()
    assert (filled.known, filled.wordings) == (filled.texts, 0)
    assert fill(whole, forward="nowhere").known == filled.texts  # no model is loaded for nothing


def test_what_is_there_is_left_as_it_is(recipe, fill, tmp_path) -> None:
    texts = training_texts(tiny_plan(recipe))
    whole, begun = tmp_path / "whole.jsonl", tmp_path / "begun.jsonl"
    fill(whole)
    own = json.dumps({"text": texts[3], "alternatives": ["mine"]})
    begun.write_text(own)  # no line end
    assert fill(begun).known == 1
    assert begun.read_text().splitlines()[0] == own
    ours, theirs = read_wordings(str(begun)), read_wordings(str(whole))
    assert ours.pop(texts[3]) == ("mine",)
    theirs.pop(texts[3], None)
    assert ours == theirs


def test_another_seed_gives_other_wordings(fill, tmp_path) -> None:
    fill(tmp_path / "one.jsonl")
    fill(tmp_path / "other.jsonl", seed=1)
    assert (tmp_path / "one.jsonl").read_text() != (tmp_path / "other.jsonl").read_text()


@pytest.mark.parametrize("content", ["no JSON", '{"text": 3}\n', '{"other": '])
def test_a_file_of_something_else_is_left_alone(content, fill, tmp_path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(DataError, match="line 1"):
        fill(file)
    assert file.read_text().rstrip("\n") == content.rstrip("\n")


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the same command goes on"):
        append(tmp_path / "file" / "below.jsonl", ["a"], [["b"]])
    assert known_texts(tmp_path / "nothing.jsonl") == set()


def test_one_search_gives_one_wording(fill, tmp_path) -> None:
    with pytest.raises(RecipeError, match="--samples 2 with --temperature 0"):
        fill(tmp_path / "new.jsonl", temperature=0.0)


def test_a_recipe_without_texts_is_refused(marian, t5, tmp_path) -> None:
    recipe = tmp_path / "recipe.toml"
    pictures = TINY.replace("text-classification", "image-classification")
    recipe.write_text(
        pictures.replace("tiny/texts", "tiny/pictures").replace("tiny/text", "tiny/image")
    )
    with pytest.raises(RecipeError, match="has no texts to translate"):
        back_translate(recipe, forward=str(marian), backward=str(t5), output=tmp_path / "f.jsonl")


def test_the_command_line(recipe, marian, t5, tmp_path, capsys) -> None:
    file = tmp_path / "new.jsonl"
    words = ["back-translate", str(recipe), "--forward", str(marian), "--backward", str(t5)]
    assert exit_code_of(cli, [*words, "-o", str(file), "--prefixes", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert "16 of " in shown
    assert f"{file}: " in shown
    assert "(0 were there" in shown
    assert exit_code_of(cli, [*words, "-o", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["known"] == found["texts"]
    assert exit_code_of(cli, [*words, "-o", str(tmp_path / "x"), "--backward", "nowhere"]) == 2
    assert "--backward nowhere" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
