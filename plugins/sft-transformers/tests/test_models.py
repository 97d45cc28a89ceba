"""Building, saving and reading back, for many architectures."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification

from sft_engine import RecipeError, logits_of
from sft_transformers.first_use import first_use
from sft_transformers.heads import EncoderWithHead, pool

CLASSIFIERS = [
    "albert", "bart", "bert", "big_bird", "canine", "deberta-v2", "distilbert", "funnel", "gemma",
    "gpt2", "llama", "modernbert", "mpnet", "opt", "qwen2", "roberta", "roformer", "t5", "xlm", "xlnet",
]  # fmt: skip
ROWS = [
    {"text": "the film is very good", "label": 1},
    {"text": "awful", "label": 0},
    {"text": "the actor is great, but the plot was not good and they jumps over it", "label": 2},
]


def batch_of(backbone, task, rows=ROWS):
    return backbone.collate(backbone.encode_rows(rows, task))


def logits(backbone, model, inputs):
    with torch.no_grad():
        return logits_of(backbone.forward(model.eval(), inputs))


def same_state(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_saved_model_is_read_by_transformers_and_by_us(
    architecture, checkpoint, opened, make_task, tmp_path
):
    task, saved = make_task(), tmp_path / "run" / "model"
    backbone = opened(checkpoint(architecture))
    model = backbone.build(task)
    inputs = batch_of(backbone, task)
    ours = logits(backbone, model, inputs)
    assert ours.shape == (3, 3)

    backbone.save(model, saved, task)
    theirs = AutoModelForSequenceClassification.from_pretrained(saved)
    with torch.no_grad():
        assert torch.equal(theirs(**inputs).logits, ours)
    assert theirs.config.id2label == {0: "neg", 1: "pos", 2: "none"}

    again = opened(saved)
    rebuilt = again.build(task)
    assert same_state(model, rebuilt)
    assert list(dict(model.named_parameters())) == list(dict(rebuilt.named_parameters()))
    assert torch.equal(logits(again, rebuilt, batch_of(again, task)), ours)


@pytest.mark.parametrize("architecture", [*CLASSIFIERS, "mixtral", "pegasus"])
@pytest.mark.parametrize("head", ["auto", "own"])
def test_every_parameter_gets_a_gradient(architecture, head, checkpoint, opened, make_task):
    """What DDP asks for, without `find_unused_parameters`."""
    task = make_task()
    backbone = opened(checkpoint(architecture), head=head)
    model = backbone.build(task).train()
    logits_of(backbone.forward(model, batch_of(backbone, task))).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "pegasus", "distilbert", "xlnet", "t5"])
def test_own_head_survives_saving(architecture, checkpoint, opened, make_task, tmp_path):
    task, saved = make_task(), tmp_path / "model"
    backbone = opened(checkpoint(architecture), head="own")
    model = backbone.build(task)
    assert isinstance(model, EncoderWithHead)
    inputs = batch_of(backbone, task)
    ours = logits(backbone, model, inputs)
    backbone.save(model, saved, task)

    again = opened(saved)  # `auto` sees the head in the folder
    rebuilt = again.build(task)
    assert same_state(model, rebuilt)
    assert torch.equal(logits(again, rebuilt, inputs), ours)
    encoder = AutoModel.from_pretrained(saved)
    assert encoder.config.id2label[1] == "pos"
    assert set(encoder.state_dict()) == set(model.encoder.state_dict())


def test_own_head_has_groups(checkpoint, opened, make_task):
    backbone = opened(checkpoint("bert"), head="own")
    model = backbone.build(make_task())
    groups = {g.name: g.parameters for g in backbone.layer_groups(model)}
    assert list(groups) == ["embeddings", "block.0", "block.1", "head"]
    assert groups["head"] == ("head.weight", "head.bias")
    assert "encoder.pooler.dense.weight" in dict(model.named_buffers())


def test_an_architecture_without_a_classifier_gets_ours(checkpoint, opened, make_task):
    folder = checkpoint("pegasus")
    backbone = opened(folder)
    model = backbone.build(make_task())
    assert isinstance(model, EncoderWithHead)
    assert not any("decoder" in name for name, _ in model.named_parameters())
    assert [g.name for g in backbone.layer_groups(model)] == [
        "embeddings",
        "block.0",
        "block.1",
        "head",
    ]
    with pytest.raises(
        RecipeError, match=r'"pegasus", for which .* no classifier: set head = "own"'
    ):
        opened(folder, head="model")


@pytest.mark.parametrize("head", ["model", "own"])
def test_new_weights_depend_on_the_seed_alone(head, checkpoint, opened, make_task):
    task, backbone = make_task(), opened(checkpoint("bert"), head=head)

    def build(seed):
        torch.manual_seed(seed)
        return backbone.build(task)

    first, same, other = build(5), build(5), build(6)
    assert same_state(first, same)
    different = {
        n for n, p in first.state_dict().items() if not torch.equal(p, other.state_dict()[n])
    }
    assert different == {"head.weight"} if head == "own" else {"classifier.weight"}


@pytest.mark.parametrize(
    ("kind", "names", "problem"),
    [
        ("classification", ("a", "b"), "single_label_classification"),
        ("multi-label", ("x", "y", "z", "w"), "multi_label_classification"),
        ("regression", ("stars",), "regression"),
    ],
)
def test_head_follows_the_task(kind, names, problem, checkpoint, opened, make_task, tmp_path):
    task = make_task(kind, names)
    backbone = opened(checkpoint("distilbert"))
    model = backbone.build(task)
    assert logits(backbone, model, batch_of(backbone, task)).shape == (3, len(names))
    backbone.save(model, tmp_path / "model", task)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == list(names)
    assert config["problem_type"] == problem


def test_a_head_of_the_right_size_is_kept_and_another_one_starts_new(
    checkpoint, opened, make_task, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "sft_transformers")
    backbone = opened(checkpoint("roberta"))
    model = backbone.build(make_task())
    backbone.save(model, tmp_path / "three", make_task())
    assert caplog.messages == []

    kept = opened(tmp_path / "three").build(make_task(names=("x", "y", "z")))
    assert same_state(kept, model)
    assert kept.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert "were named ['neg', 'pos', 'none'], now ['x', 'y', 'z']" in caplog.text
    caplog.clear()

    fresh = opened(tmp_path / "three").build(make_task(names=("x", "y")))
    assert fresh.classifier.out_proj.weight.shape == (2, 16)
    assert torch.equal(fresh.classifier.dense.weight, model.classifier.dense.weight)
    assert "the head starts new: classifier.out_proj.weight has shape (3, 16)" in caplog.text


def test_own_head_of_another_size_starts_new(checkpoint, opened, make_task, tmp_path, caplog):
    backbone = opened(checkpoint("bert"), head="own")
    backbone.save(backbone.build(make_task()), tmp_path / "three", make_task())
    fresh = opened(tmp_path / "three").build(make_task(names=("x", "y")))
    assert fresh.head.weight.shape == (2, 16)
    assert "the head starts new" in caplog.text


def test_building_prints_nothing(checkpoint, opened, make_task, capfd, caplog, tmp_path):
    """Neither the loading report nor a bar; what is new is there for who asks."""
    caplog.set_level(logging.DEBUG, "sft_transformers")
    level = transformers.utils.logging.get_verbosity()
    backbone = opened(checkpoint("bert"))
    capfd.readouterr()
    backbone.save(backbone.build(make_task()), tmp_path / "model", make_task())
    assert capfd.readouterr() == ("", "")
    assert "new: classifier.bias, classifier.weight" in caplog.text
    assert transformers.utils.logging.get_verbosity() == level
    AutoModel.from_pretrained(tmp_path / "model")
    assert "Loading weights" in capfd.readouterr().err  # others keep their bars


def test_blocks_missing_from_the_checkpoint_are_named(checkpoint, opened, make_task, caplog):
    folder = checkpoint("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    opened(folder).build(make_task())
    assert "lacks bert.encoder.layer.2.attention.output.LayerNorm.bias" in caplog.text
    assert "they start random" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(checkpoint, opened, make_task, config_of):
    folder = checkpoint("gpt2", vocab_size=300)
    config_of("bert").save_pretrained(folder)
    with pytest.raises(RecipeError, match=r"holds 0 of the \d+ tensors of a BertForSequence"):
        opened(folder).build(make_task())


def test_weights_of_another_shape_are_refused(checkpoint, opened, make_task, config_of):
    folder = checkpoint("bert")
    config_of("bert", intermediate_size=48).save_pretrained(folder)
    with pytest.raises(
        RecipeError, match=r"shape does not fit its config.json \(bert.encoder.layer"
    ):
        opened(folder).build(make_task())


def test_precision_and_attention(checkpoint, opened, make_task):
    folder = checkpoint("bert")
    assert {p.dtype for p in opened(folder).build(make_task()).parameters()} == {torch.float32}
    low = opened(folder, dtype="bfloat16", attention="eager").build(make_task())
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert low.config._attn_implementation == "eager"
    with pytest.raises(RecipeError, match=r"cannot (read|run)"):
        opened(folder, attention="no-such-thing").build(make_task())


@pytest.mark.parametrize("head", ["model", "own"])
def test_activation_checkpointing_gives_the_same_gradients(head, checkpoint, opened, make_task):
    task, backbone = make_task(), opened(checkpoint("bert"), head=head)
    inputs = batch_of(backbone, task)

    def gradients(*, recompute):
        torch.manual_seed(0)
        model = backbone.build(task).train()
        if recompute:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        logits_of(backbone.forward(model, inputs)).sum().backward()
        assert (
            any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == recompute
        )
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain, recomputed = gradients(recompute=False), gradients(recompute=True)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_the_old_name_of_checkpointing_works_on_our_head(checkpoint, opened, make_task):
    model = opened(checkpoint("bert"), head="own").build(make_task())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert any(getattr(m, "gradient_checkpointing", False) for m in model.encoder.modules())


def test_groups_are_read_after_a_change_of_the_model(checkpoint, opened, make_task):
    """A plugin may put another head on the model before layer groups are read."""
    backbone = opened(checkpoint("bert"))
    model = backbone.build(make_task())
    model.classifier = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 3))
    groups = {g.name: len(g.parameters) for g in backbone.layer_groups(model)}
    assert groups == {"embeddings": 5, "block.0": 16, "block.1": 16, "head": 6}


@pytest.mark.parametrize("head", ["model", "own"])
def test_groups_are_the_same_when_activations_are_recomputed(head, checkpoint, opened, make_task):
    backbone = opened(checkpoint("bert"), head=head)
    model = backbone.build(make_task())
    before = backbone.layer_groups(model)
    model.activation_checkpointing_enable()
    assert backbone.layer_groups(model.train()) == before


def test_first_use_is_in_the_order_of_the_forward_pass(checkpoint, opened, make_task):
    backbone = opened(checkpoint("bert"))
    uses = first_use(backbone.build(make_task()), backbone._probe)
    order = sorted(uses, key=lambda name: uses[name])
    assert order[0].startswith("bert.embeddings.")
    assert order.index("bert.pooler.dense.weight") < order.index("classifier.weight")


def brute_pool(states, mask, how):
    rows = []
    for vectors, real in zip(states, mask, strict=True):
        kept = [v for v, r in zip(vectors, real.tolist(), strict=True) if r]
        pick = {"first": kept[0], "last": kept[-1], "mean": sum(kept) / len(kept)}
        rows.append(pick[how])
    return torch.stack(rows)


@pytest.mark.parametrize("how", ["first", "mean", "last"])
def test_pooling_sees_real_tokens_only(how):
    torch.manual_seed(0)
    states = torch.randn(4, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    assert torch.allclose(pool(states, mask, how), brute_pool(states, mask, how), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "pooling"), [("bert", "first"), ("llama", "last"), ("t5", "mean")]
)
def test_pooling_fits_the_model(architecture, pooling, checkpoint, opened, make_task):
    backbone = opened(checkpoint(architecture), head="own")
    assert backbone.build(make_task()).pooling == pooling


def test_pooling_of_sentence_transformers_is_taken(checkpoint, opened, make_task, tmp_path):
    folder = checkpoint("bert")
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    backbone = opened(folder, head="own")
    model = backbone.build(make_task())
    assert model.pooling == "mean"
    backbone.save(model, tmp_path / "model", make_task())
    assert opened(tmp_path / "model").build(make_task()).pooling == "mean"
    assert opened(folder, head="own", pooling="last").build(make_task()).pooling == "last"


def test_dropout_of_our_head(checkpoint, opened, make_task):
    task = make_task()
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = checkpoint("bert", **off)
    for share, moves in ((0.5, True), (0.0, False)):
        backbone = opened(folder, head="own", head_dropout=share)
        model = backbone.build(task).train()
        first, second = (backbone.forward(model, batch_of(backbone, task)).logits for _ in range(2))
        assert torch.equal(first, second) != moves


def test_a_model_that_cannot_run_is_a_sentence(checkpoint, opened, make_task):
    folder = checkpoint("bert", max_position_embeddings=8)
    backbone = opened(folder, max_length=0)
    backbone.tokenization.limit = None
    with pytest.raises(RecipeError, match=r"cannot run on a short text: RuntimeError: The size"):
        backbone.build(make_task())
