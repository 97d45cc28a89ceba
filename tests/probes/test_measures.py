"""Runs with the probes that disturb nothing: their figures are those of predictions/, and cost nothing more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import watching
from watching import COMPONENTS, RECIPES

from sft_engine import DataError, RecipeError, evaluation
from sft_engine.assemble import assemble
from sft_engine.testing.runs import plan_recipe
from sft_probes.calibration_figures import fit_temperature
from sft_probes.features import said
from sft_probes.label_noise import confident
from sft_probes.measures import known
from sft_probes.ood import ALL
from sft_probes.probing import probe
from sft_probes.selective import aurc

FREE = "".join(
    f'[[probe]]\nuse = "{name}"\n' for name in ("calibration", "selective", "label-noise")
)
LEARNT = ["train.epochs=6", "train.batch_size=8"]


def records_of(folder, split="test"):
    lines = (folder / "predictions" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def shares_of(records):
    return np.array([list(each["probabilities"].values()) for each in records])


@pytest.fixture
def passes(monkeypatch):
    """Return the names of the splits of which a batch was evaluated, in order."""
    seen = []
    forward = evaluation._forward

    def counted(run, view, batch, *args, **options):
        seen.append(batch.split)
        return forward(run, view, batch, *args, **options)

    monkeypatch.setattr(evaluation, "_forward", counted)
    return seen


@pytest.mark.usefixtures("tiny_catalog")
@pytest.mark.parametrize("best", ["auto", "last"])
def test_they_are_what_predictions_say_and_cost_no_pass(
    carry_out, report_of, passes, tmp_path, best
) -> None:
    overrides = [*LEARNT, f"checkpoint.best='{best}'"]
    carry_out("text", overrides=overrides, name="bare")
    bare = passes.copy()
    passes.clear()
    outcome = carry_out("text", FREE, overrides=overrides)
    assert passes == bare
    report = report_of(outcome)
    records = records_of(outcome.folder)
    shares = shares_of(records)
    right = np.array([each["prediction"] == each["label"] for each in records])

    facts = report["probes"]["calibration"]
    assert facts["ece"] == pytest.approx(report["calibration"]["ece"], abs=1e-6)
    assert facts["nll"] == pytest.approx(report["metrics"]["nll"], rel=1e-5)
    assert facts["fitted_on"] == 8
    only = [each for each in report["sections"] if each["id"] == "calibration"]
    titles = [block["title"] for section in only for block in section["blocks"]]
    assert titles.count("Reliability diagram") == 1

    selective = report["probes"]["selective"]
    assert selective["accuracy"] == pytest.approx(report["metrics"]["accuracy"])
    assert selective["aurc"] == pytest.approx(aurc(shares.max(axis=1), 1.0 - right))

    labels = np.array([list(records[0]["probabilities"]).index(r["label"]) for r in records])
    found = confident(shares, labels)
    suspects = {
        r["row"]
        for r, s, y in zip(records, found.suggested, labels, strict=True)
        if s not in (-1, y)
    }
    noise = report["probes"]["label-noise"]
    assert {each["row"] for each in noise["first"]} == suspects
    assert noise["suspects"] == len(suspects)
    # Of the weights that were kept, not of the last ones.
    # With another probe first, that needs no validation split.
    again = probe(outcome.folder, ["selective", "calibration"], output=tmp_path / "again")
    assert again.probes["calibration"]["temperature"] == pytest.approx(
        facts["temperature"], rel=1e-4
    )
    by_hand = records_of(tmp_path / "again", "validation")
    truth = np.array([[c == r["label"] for c in r["probabilities"]] for r in by_hand], dtype=float)
    expected = fit_temperature(np.log(shares_of(by_hand)), truth)
    assert facts["temperature"] == pytest.approx(expected, rel=1e-3)
    assert facts["after"]["nll"] != facts["nll"]


def test_several_labels(carry_out, report_of) -> None:
    task = 'tabular-classification"\nlabels = "multi"\nseparator = ";'
    text = RECIPES["number"].replace("tabular-classification", task)
    watching.RECIPES["many"] = text.replace(
        'use = "test/numbers"', 'use = "test/numbers"\nlabel = "many"'
    )
    more = (
        '[[probe]]\nuse = "sensitivity"\n[[probe]]\nuse = "groups"\ncolumn = "row"\nsmallest = 1\n'
    )
    report = report_of(carry_out("many", FREE, more, overrides=["train.epochs=1"]))
    found = report["probes"]
    assert found["calibration"]["nll"] == pytest.approx(report["metrics"]["nll"], rel=1e-4)
    assert 0 <= found["calibration"]["brier"] <= 1
    assert found["groups"]["accuracy"] == found["selective"]["accuracy"]
    assert found["sensitivity"]["symmetric-kl"][0] is None
    assert found["sensitivity"]["symmetric-kl"][-1] > found["sensitivity"]["symmetric-kl"][1] > 0


def test_groups_are_those_of_the_column(carry_out, report_of) -> None:
    tables = '[[probe]]\nuse = "groups"\ncolumn = "label"\nsmallest = 5\n'
    outcome = carry_out("text", tables, overrides=LEARNT)
    records = records_of(outcome.folder)
    facts = report_of(outcome)["probes"]["groups"]
    for group in facts["groups"]:
        own = [r["prediction"] == r["label"] for r in records if r["label"] == group["name"]]
        assert (group["examples"], group["accuracy"]) == (len(own), pytest.approx(np.mean(own)))
        assert group["low"] <= group["accuracy"] <= group["high"]
    shares = [group["accuracy"] for group in facts["groups"]]
    assert facts["gap"] == pytest.approx(max(shares) - min(shares))
    assert facts["worst_accuracy"] == min(shares)


def test_the_validation_split_is_predicted_where_its_answers_are_not_at_hand(passes) -> None:
    made = built(RECIPES["text"] + '[[probe]]\nuse = "calibration"\n')
    run, (component,) = (
        made.run,
        [a.component for a in made.run.active if a.planned.kind == "probe"],
    )
    evaluation.evaluate(run, "validation", made.precision, batch_size=4)
    evaluation.evaluate(run, "test", made.precision, batch_size=40)
    assert (passes.count("validation"), passes.count("test")) == (2, 1)
    assert "edge of what was searched" in component._note()  # the model is worse than chance
    with torch.no_grad():
        run.model.head.weight.neg_()
        run.model.head.bias.neg_()
    evaluation.evaluate(run, "test", made.precision, batch_size=40)
    assert passes.count("validation") == 3
    now = evaluation.predict_split(run, "validation", made.precision, batch_size=8)
    on = known(now, run.task.head)
    assert component.temperature == pytest.approx(fit_temperature(on.logits, on.truth), rel=1e-4)
    assert component.temperature < 400


# --- out of distribution, sensitivity -------------------------------------------------------------


def test_numbers_far_from_training_are_told_apart(carry_out, report_of, tmp_path) -> None:
    rows = ["a,b,c,label"] + [f"{40 + i},-{30 + i},{20 - i},unheard" for i in range(12)]
    (tmp_path / "far.csv").write_text("\n".join(rows) + "\n")
    tables = f'[[probe]]\nuse = "ood"\ndata = "{tmp_path}/far.csv"\n[[probe]]\nuse = "ood"\n'
    facts = report_of(carry_out("number", tables, overrides=LEARNT))["probes"]
    assert facts["ood"]["outside_examples"] == 12
    assert facts["ood"]["scores"]["mahalanobis"]["auroc"] == 1
    assert facts["ood"]["outside"].endswith("far.csv")
    assert facts["ood-2"]["outside"].startswith("features each drawn")
    for figures in facts["ood-2"]["scores"].values():
        assert all(0 <= value <= 1 for value in figures.values())


def built(text, overrides=()):
    return assemble(plan_recipe(text, overrides, COMPONENTS), Path("unused"))


def test_features_are_what_enters_the_head() -> None:
    run = built(RECIPES["text"] + '[[probe]]\nuse = "ood"\n').run
    rows = run.splits["test"].rows.select(range(5)).to_list()
    found = said(run, rows, "ood")
    head = run.model.head
    expected = torch.nn.functional.linear(
        torch.from_numpy(found.features), head.weight.double(), head.bias.double()
    )
    assert found.logits == pytest.approx(expected.detach().numpy(), abs=1e-5)


def test_noise_in_embeddings_is_that_of_a_pass_by_hand() -> None:
    made = built(
        RECIPES["text"] + '[[probe]]\nuse = "sensitivity"\nseverities = [0.3]\nexamples = 6\n'
    )
    run = made.run
    one = evaluation.evaluate(run, "test", made.precision, batch_size=6)
    other = evaluation.evaluate(run, "test", made.precision, batch_size=1)
    for name in ("symmetric-kl", "lipschitz", "lipschitz-max"):
        assert one[1].values[name] == pytest.approx(other[1].values[name], rel=1e-4)
    assert one[1].values["symmetric-kl"] > 0
    assert not run.model.embeddings._forward_hooks
    plain = evaluation.evaluate(run, "test", made.precision, batch_size=6, only_plain=True)
    assert torch.equal(plain[0].predictions["logits"], one[0].predictions["logits"])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["calibration", "selective", "ood", "label-noise", "sensitivity", "groups"]
)
def test_regression_is_refused(name) -> None:
    text = RECIPES["number"].replace("tabular-classification", "tabular-regression")
    text = text.replace('use = "test/numbers"', 'use = "test/numbers"\nlabel = "number"')
    column = 'column = "row"\n' if name == "groups" else ""
    with pytest.raises(
        RecipeError, match=f"`{name}` is for .*, and the task is regression: remove"
    ):
        built(text + f'[[probe]]\nuse = "{name}"\n{column}')


@pytest.mark.parametrize(
    ("table", "error", "sentence"),
    [
        (
            '"groups"\ncolumn = "lable"',
            RecipeError,
            "column 'lable', which the split 'test' lacks; did you mean `label`",
        ),
        ('"label-noise"\nsplit = "train"', RecipeError, "not trained on: set its `split`"),
        ('"ood"\ndata = "nowhere.csv"', DataError, "`data` of the probe `ood`: .*nowhere.csv"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(table, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        built(RECIPES["text"] + f"[[probe]]\nuse = {table}\n")


def test_on_the_validation_split_there_is_no_temperature(carry_out, report_of) -> None:
    table = '[[probe]]\nuse = "calibration"\nsplit = "validation"\n'
    report = report_of(carry_out("text", table, overrides=["train.epochs=1"]))
    assert report["probes"]["calibration"]["temperature"] is None
    (section,) = [each for each in report["sections"] if each["id"] == "calibration"]
    assert "the very examples that it is judged on" in section["blocks"][-1]["note"]


def test_images(carry_out, report_of) -> None:
    text = RECIPES["text"].replace("text-classification", "image-classification")
    text = text.replace("test/words", "tiny/pictures").replace("tiny/text", "tiny/image")
    watching.RECIPES["pictures"] = text
    tables = (
        '[[probe]]\nuse = "ood"\n[[probe]]\nuse = "sensitivity"\n[[probe]]\nuse = "label-noise"\n'
    )
    report = report_of(carry_out("pictures", tables, overrides=["train.epochs=1"]))
    found = report["probes"]
    assert found["ood"]["outside"].startswith("uniform noise")
    assert set(found["ood"]["scores"]) == {*ALL}
    kl = found["sensitivity"]["symmetric-kl"][1:]
    assert kl == sorted(kl)
    assert kl[0] > 0
