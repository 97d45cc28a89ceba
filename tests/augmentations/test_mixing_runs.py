"""mixup, CutMix and cut-off in whole runs: with every task, with losses, and computed twice."""

from __future__ import annotations

import math

import observers
import pytest
import torch
from observers import COMPONENTS, RECIPES

from sft_augmentations.mixing import Cutmix, Mixup
from sft_engine import Batch, RecipeError
from sft_engine.assemble import assemble
from sft_engine.testing.runs import plan_recipe

MIXUP = '[[augmentation]]\nuse = "mixup"\nalpha = 1.0\n'
CUTMIX = '[[augmentation]]\nuse = "cutmix"\nshare = 1.0\n'
AGAIN = '[[extension]]\nuse = "test/again"\n'
NOTES = '[[extension]]\nuse = "test/notes"\n'
DROPOUT = ["backbone.dropout=0.1"]


@pytest.fixture
def built(tmp_path):
    """Return a function that assembles a recipe."""

    def make(kind, *tables, overrides=()):
        plan = plan_recipe(RECIPES[kind] + "".join(tables), overrides, COMPONENTS)
        return assemble(plan, tmp_path / "run")

    return make


def window_of(built):
    return built.feed.window(0)[0]


def test_targets_are_mixed_as_inputs_are(built) -> None:
    """For a linear mixture, inputs and targets solve to the same shares."""
    made = built("number")
    batch, before = window_of(made), window_of(made)
    torch.manual_seed(3)
    Mixup(alpha=1.0, per="example").sft_batch(made.run, batch)
    hot = torch.nn.functional.one_hot(before.targets["label"], 3).float()
    torch.manual_seed(3)
    kept = torch.distributions.Beta(1.0, 1.0).sample((16,))
    torch.rand(16)
    partner = torch.randperm(16)
    for found, plain in (
        (batch.inputs["features"], before.inputs["features"]),
        (batch.targets["label"], hot),
    ):
        share = kept.to(plain.dtype).unsqueeze(1)
        torch.testing.assert_close(found, share * plain + (1 - share) * plain[partner])
    assert ((batch.targets["label"] > 0) & (batch.targets["label"] < 1)).any()


def test_cutmix_targets_are_the_areas(built) -> None:
    made = built("picture")
    batch, before = window_of(made), window_of(made)
    torch.manual_seed(1)
    Cutmix(share=1.0, per="example").sft_batch(made.run, batch)
    changed = (batch.inputs["image"] != before.inputs["image"]).any(dim=1).double()
    label = before.targets["label"]
    own = batch.targets["label"][torch.arange(16), label]
    seen = changed.mean(dim=(1, 2))
    mixed = own < 1
    assert mixed.sum() > 2
    torch.testing.assert_close(own[mixed].double(), 1 - seen[mixed], atol=0.01, rtol=0)


@pytest.mark.parametrize("augmentation", [Mixup(alpha=1.0), Cutmix(share=1.0)])
def test_a_window_that_is_seen_again_is_not_mixed_again(built, augmentation) -> None:
    made = built("picture")
    batch, fresh = window_of(made), window_of(made)
    results = []
    for each in (batch, batch, fresh):
        torch.manual_seed(0)
        augmentation.sft_batch(made.run, each)
        results.append((each.inputs["image"], each.targets["label"], torch.rand(3)))
    (image, label, draws), *others = results
    for other_image, other_label, other_draws in others:
        assert torch.equal(other_image, image)
        assert torch.equal(other_label, label)
        assert torch.equal(other_draws, draws)


def test_a_window_that_was_restored_is_mixed_again(built) -> None:
    """Should the engine put the tensors back before it shows a window again."""
    made, augmentation = built("picture"), Mixup(alpha=1.0)
    batch = window_of(made)
    image, label = batch.inputs["image"], batch.targets["label"]
    torch.manual_seed(0)
    augmentation.sft_batch(made.run, batch)
    first = batch.inputs["image"]
    batch.inputs["image"], batch.targets["label"] = image, label
    torch.manual_seed(0)
    augmentation.sft_batch(made.run, batch)
    assert torch.equal(batch.inputs["image"], first)
    assert not torch.equal(first, image)


@pytest.mark.parametrize("tables", [MIXUP, MIXUP + CUTMIX], ids=["mixup", "both"])
def test_gradients_computed_twice_are_the_same(carry_out, tables) -> None:
    """`test/again` compares them, bit for bit, under dropout."""
    overrides = [*DROPOUT, "train.micro_batch_size=8", "train.epochs=1"]
    carry_out("picture", tables, AGAIN, overrides=overrides)


def test_a_run_that_computes_gradients_twice_ends_alike(carry_out) -> None:
    once = carry_out("number", MIXUP, overrides=DROPOUT, name="once")
    twice = carry_out("number", MIXUP, AGAIN, overrides=DROPOUT, name="twice")
    assert twice.fingerprint == once.fingerprint


def test_examples_without_a_label_neither_mix_nor_count(built) -> None:
    made = built("number")
    batch = window_of(made)
    label = batch.targets["label"].clone()
    label[::2] = -100
    batch.targets["label"] = label
    features = batch.inputs["features"].clone()
    torch.manual_seed(0)
    Mixup(alpha=1.0).sft_batch(made.run, batch)
    torch.testing.assert_close(batch.inputs["features"][::2], features[::2])
    assert (batch.targets["label"][::2] == 0).all()
    torch.testing.assert_close(batch.targets["label"][1::2].sum(dim=1), torch.ones(8))
    outputs = torch.randn(16, 3)
    outputs[::2] *= float("1e3")
    value = made.run.task.loss(outputs, batch).value
    rest = Batch({}, {"label": batch.targets["label"][1::2]}, [0] * 8)
    torch.testing.assert_close(value, made.run.task.loss(outputs[1::2], rest).value)


def test_soft_targets_with_class_weights_keep_their_divisor(built) -> None:
    """The loss is divided by the weights of the labels as they were; mixing pairs moves their sum not."""
    made = built("number", overrides=["task.class_weights='balanced'"])
    batch = window_of(made)
    units = made.run.task.units(batch)["weight"]
    torch.manual_seed(0)
    Mixup(alpha=1.0).sft_batch(made.run, batch)
    weight = made.run.task._weight
    assert float((batch.targets["label"].double() * weight).sum()) == pytest.approx(units)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task.labels='multi'", "task.separator=';'", "data.label='many'"],
        ["task.use='tabular-regression'", "data.label='number'"],
        ["task.class_weights='balanced'", "task.label_smoothing=0.1"],
        ["train.precision='bf16'"],
        ["train.micro_batch_size=5"],
    ],
    ids=["multi-label", "regression", "weights and smoothing", "bf16", "accumulation"],
)
def test_it_trains_with_every_task_and_loss(carry_out, overrides) -> None:
    outcome = carry_out("number", MIXUP, overrides=[*overrides, "train.epochs=1"])
    numbers = [value for value in outcome.metrics.values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    assert outcome.reason == "all steps done"


def test_flags_and_numbers_are_averaged(seen) -> None:
    many = ["task.labels='multi'", "task.separator=';'", "data.label='many'"]
    found = seen("number", MIXUP, overrides=many)
    values = {value for _, label in found.values() for value in label}
    assert any(0 < value < 1 for value in values)
    assert all(0 <= value <= 1 for value in values)
    assert observers.SEEN


def test_smoothing_with_missing_labels_is_refused(built) -> None:
    made = built("number", overrides=["task.label_smoothing=0.1"])
    made.run.task.masked = True
    with pytest.raises(RecipeError, match=r"task\.label_smoothing = 0"):
        Mixup().sft_batch(made.run, window_of(made))


# --- cut-off ---------------------------------------------------------------------------------------


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] aa ab ba bb cc".split()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return the folder of a tiny BERT with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("mode", ["token", pytest.param("span", marks=pytest.mark.slow)])
def test_hidden_tokens_cannot_be_seen(carry_out, seen, bert, mode) -> None:
    overrides = ["backbone.use='transformers'", f"backbone.name='{bert}'"]
    table = (
        f'[[augmentation]]\nuse = "cutoff"\nrate = 0.3\nshare = 1.0\nmode = "{mode}"\nuntil = 0.5\n'
    )
    plain = seen("text", overrides=overrides, name="plain")
    cut = seen("text", table, overrides=overrides, name="cut")
    hidden = 0
    for key, tensors in cut.items():
        for (old_id, new_id), (old_mask, new_mask) in _token_pairs(plain[key], tensors):
            if old_mask == new_mask:
                assert old_id == new_id
            else:
                hidden += 1
                assert (new_id, new_mask) == (WORDS.index("[MASK]"), 0)
                assert old_id not in (0, 2, 3)
                assert key[0] == 0  # from half of the run on it is off
    assert hidden > 20
    fingerprints = {
        carry_out("text", t, *more, overrides=overrides, name=name).fingerprint
        for name, t, more in (
            ("a", table, ()),
            ("b", table, (AGAIN,)),
        )
    }
    assert len(fingerprints) == 1


def _token_pairs(plain, cut):
    """Yield ids and masks of each token, before and after."""
    first, mask = _ids_and_mask(plain), _ids_and_mask(cut)
    return zip(
        zip(first[0], mask[0], strict=True), zip(first[1], mask[1], strict=True), strict=True
    )


def _ids_and_mask(tensors):
    rows = [row for row in tensors if isinstance(row, list)]
    mask = next(row for row in rows if set(row) <= {0, 1} and row[0] == 1)
    ids = next(row for row in rows if row[0] == 2)
    return ids, mask


def test_without_strength_cutoff_is_not_there(carry_out, bert) -> None:
    overrides = ["backbone.use='transformers'", f"backbone.name='{bert}'", "train.epochs=1"]
    plain = carry_out("text", overrides=overrides, name="plain")
    for name, option in (("rate", "rate = 0"), ("share", "share = 0")):
        table = f'[[augmentation]]\nuse = "cutoff"\n{option}\n'
        assert carry_out("text", table, overrides=overrides, name=name).fingerprint == (
            plain.fingerprint
        )
