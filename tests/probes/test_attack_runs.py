"""Attacks and corruptions in whole runs: what they promise, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from watching import COMPONENTS, RECIPES, Words

from sft_engine import RecipeError
from sft_engine.assemble import assemble
from sft_engine.evaluation import evaluate
from sft_engine.testing.runs import plan_recipe
from sft_engine.testing.tiny_images import TinyConvNet
from sft_probes.probing import probe

LEARNT = ["train.epochs=6", "optimizer.lr=0.02"]
PGD = '[[probe]]\nuse = "pgd"\nexamples = 0\nseverities = [4, 1, 24]\nsteps = 10\n'


def built(kind, *tables):
    made = assemble(plan_recipe(RECIPES[kind] + "".join(tables), (), COMPONENTS), Path("unused"))
    return made.run, made.precision


def the_probe(run):
    return next(a.component for a in run.active if a.planned.kind == "probe")


def test_accuracy_under_attack_falls_with_the_radius_and_the_checks_pass(
    carry_out, report_of
) -> None:
    tables = [PGD, PGD.replace("pgd", "fgsm").replace("steps = 10\n", "")]
    overrides = [*LEARNT, "data.test=24"]
    report = report_of(carry_out("image", *tables, overrides=overrides))
    for name in ("pgd", "fgsm"):
        facts = report["probes"][name]
        assert facts["severities"] == [0, 1, 4, 24]
        values = facts["values"]
        assert values[0] > 0.8
        assert values == sorted(values, reverse=True)
        assert all(check["passed"] for check in facts["checks"])
    assert len(report["probes"]["pgd"]["checks"]) == 5
    assert report["probes"]["pgd"]["values"][-1] <= 0.5
    for pgd, fgsm in zip(*(report["probes"][n]["values"] for n in ("pgd", "fgsm")), strict=True):
        assert pgd <= fgsm
    (section,) = [s for s in report["sections"] if s["id"] == "pgd"]
    rows = next(b for b in section["blocks"] if b["kind"] == "examples")["rows"]
    assert rows
    assert all(row["before"] == row["label"] != row["after"] for row in rows)
    assert all(row["image"].startswith("data:image/") for row in rows)
    again = carry_out("image", *tables, overrides=[*overrides, "evaluation.batch_size=5"], name="b")
    assert report_of(again)["probes"]["pgd"]["values"] == report["probes"]["pgd"]["values"]
    bare = carry_out("image", overrides=overrides, name="bare")
    assert bare.fingerprint == again.fingerprint


def test_pixels_stay_within_the_radius_before_the_normalisation() -> None:
    run, precision = built("image", PGD)
    pipeline, seen = run.backbone.pipeline, {}
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (pipeline.mean, pipeline.std))
    forward = run.backbone.forward

    def watch(model, inputs):
        if not torch.is_grad_enabled():
            seen.setdefault(run.backbone.view, []).append(inputs["image"] * std + mean)
        return forward(model, inputs)

    plain = run.splits["test"].examples.take(range(8))["image"] * std + mean
    (probe_of_run,) = [the_probe(run)]
    found = {r.view.name: r for r in evaluate(run, "test", precision, batch_size=8)}
    assert found["pgd@24"].values["accuracy"] <= found["pgd@1"].values["accuracy"]
    run.backbone.forward = watch
    right = found[""].predictions["logits"].argmax(1) == found[""].predictions["label"]
    for radius in (1.0, 4.0, 16.0):
        probe_of_run.fooled = dict.fromkeys((~right).nonzero().flatten().tolist(), 0.0)
        run.backbone.view = radius
        from sft_engine.feed import fetch

        batch = fetch(run.splits["test"], run.task, run.backbone, list(range(8)), (0,), [])
        before = batch.inputs["image"].clone()
        probe_of_run._within(radius)(run, batch)
        pixels = batch.inputs["image"] * std + mean
        away = (pixels - plain).abs().flatten(1).amax(dim=1)
        assert (away <= radius / 255 + 1e-5).all()
        assert (away[right] > 0.5 * radius / 255).all()
        assert pixels.min() >= -1e-5
        assert pixels.max() <= 1 + 1e-5
        assert torch.equal(batch.inputs["image"][~right], before[~right])
    assert not any(parameter.grad is not None for parameter in run.model.parameters())
    assert not run.model.training


def test_a_model_that_hides_its_gradients_is_found_out(carry_out, report_of, monkeypatch) -> None:
    """Rounded inputs have no gradient: PGD stays where it starts, and seems to fail."""
    forward = TinyConvNet.forward
    monkeypatch.setattr(TinyConvNet, "forward", lambda self, x: forward(self, (4 * x).round() / 4))
    report = report_of(carry_out("image", PGD, overrides=[*LEARNT, "data.test=24"]))
    failed = [c["name"] for c in report["probes"]["pgd"]["checks"] if not c["passed"]]
    assert "share of examples without a gradient: 0" in failed
    (section,) = [s for s in report["sections"] if s["id"] == "pgd"]
    (block,) = [b for b in section["blocks"] if b["kind"] == "findings"]
    assert block["findings"][0]["name"] == "masked gradients, or too weak an attack"


@pytest.mark.parametrize("name", ["embedding-fgsm", "embedding-pgd"])
def test_embeddings_move_within_their_radius_and_padding_stays(name) -> None:
    from sft_engine.feed import fetch

    run, precision = built("text", f'[[probe]]\nuse = "{name}"\nseverities = [0.1, 0.5]\n')
    found = {r.view.name: r.values for r in evaluate(run, "test", precision, batch_size=5)}
    accuracies = [found[view]["accuracy"] for view in ("", f"{name}@0.1", f"{name}@0.5")]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] < accuracies[0]
    attack = the_probe(run)
    attack.fooled = {1: 0.0}
    ids = list(range(6))
    batch = fetch(run.splits["test"], run.task, run.backbone, ids, (0,), [])
    attack._within(0.5)(run, batch)
    real = (batch.inputs["ids"] > 0).unsqueeze(-1)
    assert not real.all()
    embedded = run.model.embeddings(batch.inputs["ids"]).detach() * real
    shift = attack.moved.shift
    assert not (shift * ~real).any()
    share = shift.flatten(1).norm(dim=1) / embedded.flatten(1).norm(dim=1)
    assert not share[1]
    others = share[[i for i in ids if i != 1]]
    assert (others <= 0.5 + 1e-5).all()
    assert (others > 0.25).all()
    alone = fetch(run.splits["test"], run.task, run.backbone, [3], (0,), [])
    attack._within(0.5)(run, alone)  # padding and neighbours change nothing
    length = alone.inputs["ids"].shape[1]
    torch.testing.assert_close(attack.moved.shift[0], shift[3, :length], atol=1e-4, rtol=1e-3)


def test_autoattack_is_at_least_as_strong_as_pgd(carry_out, report_of) -> None:
    table = '[[probe]]\nuse = "autoattack"\nexamples = 0\nseverities = [4]\niterations = 8\nqueries = 20\n'
    outcome = carry_out("image", PGD.replace("[4, 1, 24]", "[4]"), table, overrides=LEARNT)
    probes = report_of(outcome)["probes"]
    assert probes["autoattack"]["values"][1] <= probes["pgd"]["values"][1]


CORRUPTIONS = '[[probe]]\nuse = "corruptions"\ncorruptions = ["fog", "contrast", "spatter"]\nseverities = [3, 5]\n'


@pytest.mark.usefixtures("tiny_catalog")
def test_a_model_against_itself_has_an_mce_of_100(carry_out, report_of, tmp_path) -> None:
    outcome = carry_out("image", CORRUPTIONS, overrides=[*LEARNT, "data.test=24"])
    facts = report_of(outcome)["probes"]["corruptions"]
    assert "mce" not in facts
    errors = facts["errors"]
    assert facts["clean_error"] == pytest.approx(1 - facts["values"][0])
    assert [errors[n][i] for i in (0, 1) for n in errors] == pytest.approx(
        [1 - value for value in facts["values"][1:]]
    )
    assert facts["mean_corrupted_error"] == pytest.approx(np.mean(list(errors.values())))
    drop = facts["mean_corrupted_error"] - facts["clean_error"]
    assert facts["clean_relative_drop"] == pytest.approx(drop)
    assert drop > 0

    reference = f'corruptions.reference="{outcome.folder}"'
    probed = probe(outcome.folder, ["corruptions"], overrides=[reference], output=tmp_path / "out")
    found = probed.probes["corruptions"]
    assert found["errors"] == errors
    assert found["mce"] == pytest.approx(100)
    assert found["relative_mce"] == pytest.approx(100)
    assert set(found["ce"]) == set(errors)
    other = [reference, "corruptions.seed=1"]
    with pytest.raises(RecipeError, match="was measured with seed = 0, this probe has 1"):
        probe(outcome.folder, ["corruptions"], overrides=other, output=tmp_path / "no")


@pytest.mark.parametrize(
    ("kind", "tables", "sentence"),
    [
        ("image", 'corruptions"\nreference = "alexnet', "holds for ImageNet and its 1000 classes"),
        ("image", 'corruptions"\nreference = "nowhere', "a folder whose report.json"),
        ("image", "embedding-pgd", "disturbs 'text', and the split 'test' has image"),
        ("number", "pgd", "disturbs 'image', and the split"),
        ("text", "speed", "disturbs 'audio', and the split"),
    ],
)
def test_what_cannot_be_attacked_is_said_before_training(kind, tables, sentence) -> None:
    with pytest.raises(RecipeError, match=sentence):
        built(kind, f'[[probe]]\nuse = "{tables}"\n')


CLASSES_ONLY = {
    "image": ("fgsm", "pgd", "autoattack", "corruptions"),
    "text": ("embedding-fgsm", "embedding-pgd", "word-substitution", "checklist", "ood"),
}


@pytest.mark.parametrize(
    ("kind", "name", "head"),
    [(kind, name, "multi-label") for kind, names in CLASSES_ONLY.items() for name in names]
    + [("text", name, "regression") for name in CLASSES_ONLY["text"]],
)
def test_what_needs_one_class_an_example_refuses_other_tasks(
    tmp_path, monkeypatch, kind, name, head
) -> None:
    """There is no regression on images."""
    path = tmp_path / "tests.toml"
    path.write_text('[[test]]\nname = "x"\ntype = "MFT"\nlabel = "a"\ntexts = ["aa"]\n')
    task = f'"{kind}-classification"'
    other = {"multi-label": f'{task}\nlabels = "multi"', "regression": '"text-regression"'}[head]
    monkeypatch.setitem(RECIPES, kind, RECIPES[kind].replace(task, other))
    if head == "regression":
        monkeypatch.setattr(Words, "load", in_numbers(Words.load))
    tests = f'path = "{path}"\n' if name == "checklist" else ""
    said = f"`{name}` (needs one class an example|is for classification), and the task is {head}: remove"
    with pytest.raises(RecipeError, match=said):
        built(kind, f'[[probe]]\nuse = "{name}"\n{tests}')


def in_numbers(load):
    """Return a source whose labels are numbers."""

    def loaded(self):
        return {
            name: Dataset.from_list([{**row, "label": float(row["label"] == "a")} for row in rows])
            for name, rows in load(self).items()
        }

    return loaded


def test_a_backbone_that_hides_its_normalisation_is_refused(monkeypatch) -> None:
    from sft_engine.testing.tiny_images import TinyImage

    monkeypatch.setattr(TinyImage, "pipeline", None, raising=False)
    opened = TinyImage.open

    def hidden(self, resolve):
        opened(self, resolve)
        self.hidden = self.__dict__.pop("pipeline")

    monkeypatch.setattr(TinyImage, "open", hidden)
    monkeypatch.setattr(TinyImage, "encode", lambda self, rows, task: rows)
    with pytest.raises(
        RecipeError, match=r"the backbone does not say how it does that \(`pipeline.mean`"
    ):
        built("image", PGD)


def test_autoattack_asks_for_its_library(monkeypatch) -> None:
    monkeypatch.setattr("sft_probes.auto_attack.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'sft-probes\[attacks\]'"):
        built("image", '[[probe]]\nuse = "autoattack"\n')
