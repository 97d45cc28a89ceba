"""The component as the engine uses it: data in, batches out, and a sentence for every mistake."""

from __future__ import annotations

import json
import re
import resource
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from sft_engine import DataError, RecipeError, logits_of
from sft_transformers.backbone import Transformers

ROWS = Dataset.from_dict(
    {
        "text": [
            "the film is very good",
            "awful",
            "",
            "the quick brown fox jumps over the lazy dog",
        ],
        "label": [1, 0, 0, 1],
        "stars": [4.5, 1.0, 2.0, 3.0],
    }
)


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


# --- Examples and batches ------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
def test_a_split_and_single_rows_are_encoded_alike(cache, checkpoint, opened, make_task):
    task, backbone = make_task(), opened(checkpoint("bert"), cache=cache)
    split = backbone.encode(ROWS, task).__getitems__(range(4))
    rows = backbone.encode_rows(ROWS.to_list(), task)
    assert all(same(one, other) for one, other in zip(split, rows, strict=True))
    assert [example["label"] for example in split] == [1, 0, 0, 1]
    assert set(split[0]) == {"input_ids", "token_type_ids", "label"}


def test_a_selection_of_rows_is_encoded_in_its_order(checkpoint, opened, make_task):
    task, backbone = make_task(), opened(checkpoint("bert"))
    whole = backbone.encode(ROWS, task).__getitems__([3, 1])
    part = backbone.encode(ROWS.select([3, 1]), task).__getitems__([0, 1])
    assert all(same(one, other) for one, other in zip(whole, part, strict=True))


def test_targets_may_be_missing_or_lists(checkpoint, opened, make_task):
    task, backbone = make_task(), opened(checkpoint("bert"))
    assert "label" not in backbone.encode(ROWS.remove_columns("label"), task).__getitems__([0])[0]
    assert "label" not in backbone.encode_rows([{"text": "good"}], task)[0]
    assert backbone.encode_rows([], task) == []
    many = Dataset.from_dict({"text": ["a", "the"], "label": [[1.0, 0.0], [0.0, 1.0]]})
    assert backbone.encode(many, task).__getitems__([1])[0]["label"] == [0.0, 1.0]


def test_pairs(checkpoint, opened, make_task):
    task, backbone = make_task(), opened(checkpoint("bert"))
    rows = [{"text": "good", "text_pair": "bad", "label": 0}]
    (example,) = backbone.encode_rows(rows, task)
    assert example["input_ids"].tolist() == [2, 12, 3, 13, 3]
    assert example["token_type_ids"].tolist() == [0, 0, 0, 1, 1]
    split = backbone.encode(Dataset.from_list(rows), task)
    assert same(split.__getitems__([0])[0], example)
    task.inputs = {"text": True}  # a task for single texts leaves the other column alone
    assert backbone.encode_rows(rows, task)[0]["input_ids"].tolist() == [2, 12, 3]


def test_collate_pads_to_the_longest(checkpoint, opened, make_task):
    task, backbone = make_task(), opened(checkpoint("bert"))
    batch = backbone.collate(backbone.encode(ROWS, task).__getitems__([1, 0]))
    assert batch["input_ids"].tolist() == [[2, 15, 3, 0, 0, 0, 0], [2, 5, 7, 8, 10, 12, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0], [1] * 7]
    assert batch["token_type_ids"].tolist() == [[0] * 7] * 2
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert list(batch) == ["input_ids", "token_type_ids", "attention_mask"]


def test_collate_gives_what_the_tokenizer_pads(checkpoint, opened, make_task, make_tokenizer):
    for architecture in ("bert", "xlnet"):
        task, backbone = make_task(), opened(checkpoint(architecture))
        batch = backbone.collate(backbone.encode_rows(ROWS.to_list(), task))
        expected = make_tokenizer.of(architecture)(
            ROWS["text"][:], padding=True, return_tensors="pt"
        )
        assert same(batch, expected), architecture


def test_a_model_gets_only_what_it_takes(checkpoint, opened, make_task):
    """The tokenizer offers segments; DistilBERT takes none."""
    task, backbone = make_task(), opened(checkpoint("distilbert"))
    assert set(backbone.encode_rows([{"text": "good"}], task)[0]) == {"input_ids"}


def test_text_beyond_the_limit_is_flagged(checkpoint, opened, make_task):
    examples = opened(checkpoint("bert"), max_length=6).encode(ROWS, make_task())
    assert examples.lengths.tolist() == [6, 3, 2, 6]
    assert examples.truncated.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("positions", "known", "asked", "limit"),
    [
        (64, None, 256, 64),  # the model's table ends earlier than the recipe asks
        (64, 32, 256, 32),  # so does the tokenizer
        (64, 32, 16, 16),
        (66, None, 0, 64),  # as in RoBERTa: two rows stand for no position
        (64, None, 0, 64),
    ],
)
def test_limit(positions, known, asked, limit, checkpoint, opened, make_tokenizer):
    options = {"model_max_length": known} if known else {}
    folder = checkpoint("bert", make_tokenizer.words(**options), max_position_embeddings=positions)
    assert opened(folder, max_length=asked).tokenization.limit == limit


def test_no_limit_where_the_model_has_none(checkpoint, opened):
    assert opened(checkpoint("t5"), max_length=0).tokenization.limit is None


def test_texts_of_the_greatest_length_fit_the_model(checkpoint, opened, make_task):
    task, long = make_task(), [{"text": "good " * 500}]
    for architecture in ("bert", "roberta", "gpt2", "mpnet", "bart", "opt"):
        backbone = opened(checkpoint(architecture), max_length=0)
        model = backbone.build(task).eval()
        logits = logits_of(model(**backbone.collate(backbone.encode_rows(long, task))))
        assert torch.isfinite(logits).all(), architecture


# --- Padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("head", ["auto", "own"])
@pytest.mark.parametrize(
    "architecture", ["gpt2", "llama", "opt", "gpt_neox", "bert", "roberta", "xlnet", "t5"]
)
def test_padding_changes_no_logits(
    architecture, head, left, checkpoint, opened, make_task, make_tokenizer
):
    """Whatever side the tokenizer pads on; absolute positions and a last token included."""
    tokenizer = make_tokenizer.of(architecture)
    if architecture != "xlnet":
        tokenizer.padding_side = "left" if left else "right"
    task, backbone = make_task(), opened(checkpoint(architecture, tokenizer), head=head)
    model = backbone.build(task).eval()
    examples = backbone.encode_rows(ROWS.to_list(), task)
    together = logits_of(backbone.forward(model, backbone.collate(examples)))
    for row, example in zip(together, examples, strict=True):
        alone = logits_of(backbone.forward(model, backbone.collate([example])))
        torch.testing.assert_close(alone[0], row, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("left", [True, False])
def test_a_decoder_without_a_padding_token(
    left, checkpoint, opened, make_task, make_tokenizer, tmp_path
):
    folder = checkpoint("gpt2", make_tokenizer.bytes(left=left), vocab_size=257, pad_token_id=None)
    task, backbone = make_task(), opened(folder)
    end = backbone.tokenizer.eos_token_id
    assert backbone.config.pad_token_id == backbone.tokenizer.pad_token_id == end
    model = backbone.build(task).eval()
    examples = backbone.encode_rows(ROWS.to_list(), task)
    batch = backbone.collate(examples)
    assert batch["input_ids"][1, -1] == end
    together = logits_of(model(**batch))
    for row, example in zip(together, examples, strict=True):
        torch.testing.assert_close(
            logits_of(model(**backbone.collate([example])))[0], row, atol=2e-6, rtol=1e-5
        )

    backbone.save(model, tmp_path / "model", task)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs.config.pad_token_id == end
    texts = [text for text in ROWS["text"][:] if text]
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    ours = logits_of(
        model(**backbone.collate(backbone.encode_rows([{"text": t} for t in texts], task)))
    )
    torch.testing.assert_close(theirs(**padded).logits, ours, atol=2e-6, rtol=1e-5)


# --- Mistakes ------------------------------------------------------------------------------------


def complaint(call, kind=RecipeError):
    """Return the message; it must be one sentence that says what to do."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert message.startswith("[")
    return message


def test_no_such_folder(opened):
    assert 'name = "./nowhere" is no folder' in complaint(lambda: opened("./nowhere"))


def test_no_such_model_offline(opened):
    message = complaint(lambda: opened("google-bert/bert-base-uncased"))
    assert "neither a local folder nor could it be had from the hub: We couldn't connect" in message
    assert "give a local folder" in message


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put a folder into a hub cache, as if it had been downloaded, and return its id."""

    def put(folder):
        place = tmp_path / "hub" / "models--acme--tiny"
        commit = "0123456789" * 4
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        return "acme/tiny"

    return put


@pytest.mark.parametrize("head", ["auto", "own"])
def test_a_downloaded_model_works_offline(head, hub, checkpoint, opened, make_task):
    folder = checkpoint("bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    backbone = opened(hub(folder), head=head)
    model = backbone.build(make_task())
    assert getattr(model, "pooling", "none") == ("mean" if head == "own" else "none")
    assert backbone.encode(ROWS, make_task()).lengths.tolist() == [7, 3, 2, 12]


def test_a_revision_that_is_not_there(hub, checkpoint, opened):
    name = hub(checkpoint("bert"))
    message = complaint(lambda: opened(name, revision="v2"))
    assert (
        'name = "acme/tiny" is neither a local folder nor could it be had from the hub' in message
    )


def test_a_downloaded_pickle_is_refused(hub, checkpoint, opened, make_task):
    folder = checkpoint("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    backbone = opened(hub(folder))
    message = complaint(lambda: backbone.build(make_task()))
    assert "has no *.safetensors file, so that its weights are a pickle" in message


def test_the_resolved_place_is_said(tmp_path):
    backbone = Transformers(name="demo:small")
    message = complaint(lambda: backbone.open(lambda name: str(tmp_path)))
    assert f'name = "demo:small" ({tmp_path}) has no config.json' in message


def test_folder_without_weights(checkpoint, opened):
    folder = checkpoint("bert")
    (folder / "model.safetensors").unlink()
    assert "holds no weights (*.safetensors)" in complaint(lambda: opened(folder))


def test_pickled_weights(checkpoint, opened):
    folder = checkpoint("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = complaint(lambda: opened(folder))
    assert "its weights in pytorch_model.bin, a pickle" in message
    assert "save_pretrained writes safetensors" in message


def test_folder_without_tokenizer(checkpoint, opened):
    for architecture in ("bert", "gpt2", "t5", "llama"):
        folder = checkpoint(architecture)
        for file in folder.glob("*token*"):
            file.unlink()
        assert "has no tokenizer: add the tokenizer.json" in complaint(lambda f=folder: opened(f))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{ nope", "has a config.json that transformers cannot read"),
        (
            "config.json",
            '{"a": 1}',
            "has a config.json that transformers cannot read: Unrecognized",
        ),
        ("config.json", '{"model_type": "no-such"}', "model type `no-such`"),
        ("tokenizer.json", "{ nope", "has a tokenizer that transformers cannot read"),
        ("tokenizer.json", "{}", "has a tokenizer that transformers cannot read"),
    ],
)
def test_unreadable_files(file, content, said, checkpoint, opened):
    folder = checkpoint("bert")
    (folder / file).write_text(content)
    assert said in complaint(lambda: opened(folder))


def test_damaged_weights(checkpoint, opened, make_task):
    folder = checkpoint("bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = complaint(lambda: opened(folder).build(make_task()))
    assert "has a checkpoint (*.safetensors) that transformers cannot read" in message


def test_code_of_the_model_is_not_run_unasked(checkpoint, opened, tmp_path):
    folder = checkpoint("bert")
    auto_map = {"AutoConfig": "mine.Config"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "set trust_remote_code = true, or choose another model" in complaint(
        lambda: opened(folder)
    )
    assert not (tmp_path / "ran").exists()


def test_tokenizer_of_another_model(checkpoint, opened, make_task):
    backbone = opened(checkpoint("bert", vocab_size=20))
    message = complaint(lambda: backbone.encode(ROWS, make_task()))
    assert re.search(
        r"tokenizer that does not belong to it: it made token \d+, the model knows 20", message
    )


def test_no_room_for_text(checkpoint, opened):
    message = complaint(lambda: opened(checkpoint("bert"), max_length=3))
    assert "max_length = 3 leaves no room for text" in message


def test_more_text_than_positions(checkpoint, opened, make_task):
    """A table of 64 rows, two of which RoBERTa never uses."""
    folder = checkpoint("roberta", max_position_embeddings=64)
    message = complaint(lambda: opened(folder, max_length=0).build(make_task()))
    assert "has 63 positions: set max_length = 63 or less" in message
    opened(folder, max_length=63).build(make_task())


def test_no_token_to_pad_with(checkpoint, opened, make_tokenizer):
    tokenizer = make_tokenizer.bytes()
    folder = checkpoint("gpt2", tokenizer, vocab_size=257, pad_token_id=None)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for name in ("bos_token", "eos_token", "unk_token"):
        settings.pop(name)
    path.write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert "has no token to pad with" in complaint(lambda: opened(folder))


@pytest.mark.parametrize("value", [None, 7, ["a"]])
def test_a_row_without_text(value, checkpoint, opened, make_task):
    backbone = opened(checkpoint("bert"))
    rows = [{"text": "good"}, {"text": value}]
    message = complaint(lambda: backbone.encode_rows(rows, make_task()), DataError)
    assert f'row 1, role "text": found {value!r} where a text is needed' in message


def test_a_missing_second_text_is_empty(checkpoint, opened, make_task):
    backbone, task = opened(checkpoint("bert")), make_task()
    missing, empty = backbone.encode_rows(
        [{"text": "good", "text_pair": None}, {"text": "good", "text_pair": ""}], task
    )
    assert same(missing, empty)
    assert missing["input_ids"].tolist() == [2, 12, 3, 3]


def test_a_full_disk_is_an_os_error(checkpoint, opened, make_task, tmp_path):
    backbone = opened(checkpoint("bert"))
    model = backbone.build(make_task())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError, match=r"(?i)file too large"):
            backbone.save(model, tmp_path / "model", make_task())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_column_of_text(checkpoint, opened, make_task):
    message = complaint(
        lambda: opened(checkpoint("bert")).encode(ROWS.remove_columns("text"), make_task()),
        DataError,
    )
    assert "no column for the role \"text\" among ['label', 'stars']" in message


def test_a_task_that_needs_something_else(checkpoint, opened, make_task):
    task = make_task()
    task.inputs = {"image": True}
    message = complaint(lambda: opened(checkpoint("bert")).encode(ROWS, task))
    assert "needs ['image']" in message


def test_a_text_that_is_no_unicode(checkpoint, opened, make_task):
    """A lone surrogate, as a terminal may hand it over, is encoded as a question mark is."""
    backbone, task = opened(checkpoint("bert")), make_task()
    odd, mark = backbone.encode_rows([{"text": "good \ud800"}, {"text": "good ?"}], task)
    assert same(odd, mark)


def test_a_typed_end_token_stops_no_encoder_decoder(checkpoint, opened, make_task):
    """T5 counts end tokens, and refuses a batch in which the counts differ."""
    task = make_task()
    for architecture in ("t5", "bart"):
        backbone = opened(checkpoint(architecture))
        rows = [{"text": "good [SEP] film"}, {"text": "bad"}]
        model = backbone.build(task)
        assert logits_of(model(**backbone.collate(backbone.encode_rows(rows, task)))).shape == (
            2,
            3,
        )


def test_a_home_folder_may_be_meant(checkpoint, opened, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.move(checkpoint("bert"), tmp_path / "mine")
    assert opened("~/mine").config.model_type == "bert"
