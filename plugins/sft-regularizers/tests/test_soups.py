"""Soups: the mean of weights against closed forms, and of whole runs."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_engine import CheckpointError, OutputError, RecipeError, plugins, verbs
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_engine.testing.runs import TINY, run_recipe, tiny_plugins
from sft_regularizers.soup_verb import soup
from sft_regularizers.soups import average_files, by_value, greedy, mean_of_copies, shapes_of

QUICK = [
    "train.epochs=1",
    "optimizer.use=sgd",
    "optimizer.lr=0.5",
    "checkpoint.best=last",
    "checkpoint.every_epochs=0",
    "evaluation.every_epochs=0",
]
PICTURES = (
    TINY.replace("text-classification", "image-classification")
    .replace("tiny/texts", "tiny/pictures")
    .replace("tiny/text", "tiny/image")
)


# --- the mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_mean_of_copies_is_the_copy_bit_for_bit(dtype, count):
    torch.manual_seed(0)
    weight = (torch.randn(500, dtype=torch.float64) * 10.0 ** torch.randint(-6, 4, (500,))).to(
        dtype
    )
    weight[0] = -0.0
    mean = mean_of_copies([weight] * count)
    assert torch.equal(mean, weight)
    assert mean[0].signbit()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mean_is_the_mean_in_any_order(dtype):
    torch.manual_seed(0)
    members = [torch.randn(200, dtype=dtype) * 10.0**k for k in range(4)]
    means = [mean_of_copies(order) for order in itertools.permutations(members)]
    assert all(torch.equal(each, means[0]) for each in means)
    torch.testing.assert_close(means[0], torch.stack(members).mean(0))


def test_counters_are_not_averaged():
    assert mean_of_copies([torch.tensor(3), torch.tensor(8)]) == 8
    assert mean_of_copies([torch.tensor([True, False])] * 2).tolist() == [True, False]


def test_files_are_averaged_wherever_a_tensor_is(tmp_path):
    torch.manual_seed(0)
    first, second = ({name: torch.randn(3, 2) for name in "abc"} for _ in range(2))
    for name, parts in {
        "one": [{"a": first["a"]}, {"b": first["b"], "c": first["c"]}],
        "two": [second],
    }.items():
        (tmp_path / name).mkdir()
        for number, part in enumerate(parts):
            save_file(part, tmp_path / name / f"part-{number}.safetensors", {"format": "pt"})
    (tmp_path / "mean").mkdir()
    average_files([tmp_path / "one", tmp_path / "two"], tmp_path / "mean")
    files = sorted((tmp_path / "mean").iterdir())
    assert [file.name for file in files] == ["part-0.safetensors", "part-1.safetensors"]
    mean = load_file(files[0]) | load_file(files[1])
    for name in "abc":
        torch.testing.assert_close(mean[name], (first[name] + second[name]) / 2)
    assert shapes_of(tmp_path / "mean") == shapes_of(tmp_path / "two")


# --- greedy ----------------------------------------------------------------------------------------


def test_the_best_come_first_and_nan_last():
    assert by_value([0.1, float("nan"), 0.3, 0.3], "max") == [2, 3, 0, 1]
    assert by_value([0.1, float("nan"), 0.3, 0.3], "min") == [0, 2, 3, 1]


@pytest.mark.parametrize("direction", ["max", "min"])
def test_greedy_is_never_worse_than_the_best(direction):
    """Of all soups of four, with values drawn at random, against the recipe written out."""
    draws = torch.Generator().manual_seed(1)
    sign = 1 if direction == "max" else -1
    for _ in range(50):
        drawn = torch.rand(16, generator=draws).round(decimals=1).tolist()
        worth = lambda soup, d=drawn: sign * d[sum(1 << m for m in soup)]  # noqa: E731
        alone = [worth([m]) for m in range(4)]
        steps = list(greedy(alone, worth, direction))
        kept = [step.member for step in steps if step.kept]
        assert sign * worth(kept) >= max(sign * each for each in alone)
        chosen = []
        for member in sorted(range(4), key=lambda m: -sign * alone[m]):
            new = [*chosen, member]
            if not chosen or sign * worth(new) >= sign * worth(chosen):
                chosen = new
        assert kept == chosen


# --- whole runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    """Let the verbs find the tiny components."""
    installed = tiny_plugins()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "load_plugins", lambda: installed)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function: the folder of a run, trained once for all tests."""
    folders = {}

    def of(*overrides, text=TINY):
        key = (text, overrides)
        if key not in folders:
            folder = tmp_path_factory.mktemp("member") / f"run{len(folders)}"
            folders[key] = run_recipe(folder, text, [*QUICK, *overrides]).folder
        return folders[key]

    return of


@pytest.fixture
def three(trained):
    """Runs of one start and other orders."""
    return [trained(f"seeds.order={n}", f"optimizer.lr={n}") for n in (1, 2, 3)]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_a_soup_of_copies_is_the_copy(trained, tmp_path):
    one = trained()
    copies = [shutil.copytree(one, tmp_path / f"copy{n}") for n in range(3)]
    for method in ("uniform", "greedy"):
        made = soup([one, *copies], output=tmp_path / method, method=method)
        assert all(torch.equal(w, weights(one)[n]) for n, w in weights(made.folder).items())
        assert made.metrics == verbs.evaluate(one)
        assert all(each["chosen"] for each in made.members)


def test_a_uniform_soup_is_the_mean_in_any_order(three, tmp_path):
    made = soup(three, output=tmp_path / "soup")
    back = soup(three[::-1], output=tmp_path / "back")
    members = [weights(each) for each in three]
    for name, weight in weights(made.folder).items():
        assert torch.equal(weight, weights(back.folder)[name])
        torch.testing.assert_close(weight, sum(m[name] for m in members) / 3)
    assert made.value == back.value


def test_a_greedy_soup_is_at_least_as_good_as_the_best(three, tmp_path):
    for metric, better in (("accuracy", max), ("nll", min)):
        made = soup(three, output=tmp_path / metric, method="greedy", metric=metric)
        values = [each["value"] for each in made.members]
        assert better(made.value, better(values)) == made.value
        assert made.steps[0]["value"] == better(values)
        kept = [step["run"] for step in made.steps if step["kept"]]
        assert sorted(kept) == sorted(m["run"] for m in made.members if m["chosen"])
        assert made.value == [step["value"] for step in made.steps if step["kept"]][-1]
        alone = [verbs.evaluate(run, split="validation")[metric] for run in three]
        assert alone == values


def test_the_folder_is_like_that_of_a_run(three, tmp_path):
    made = soup(three, output=tmp_path / "soup", method="greedy")
    assert verbs.evaluate(made.folder) == made.metrics
    assert verbs.evaluate(made.folder, split="validation")[made.metric] == made.value
    (record,) = verbs.predict(made.folder, ["aab"])
    assert record["prediction"] in ("a", "b")
    about = json.loads((made.folder / "soup.json").read_text())
    assert about["steps"] == made.steps
    facts = json.loads((made.folder / "run.json").read_text())
    assert facts["soup"] == [each["run"] for each in about["members"] if each["chosen"]]
    assert facts["status"] == "done"
    assert json.loads((made.folder / "report.json").read_text())["metrics"] == made.metrics
    assert "greedy soup" in (made.folder / "model" / "README.md").read_text()
    assert not list(tmp_path.glob(".tmp-*")) + list(made.folder.glob(".tmp-*"))
    with pytest.raises(CheckpointError, match="has ended already"):
        verbs.resume(made.folder)


def test_an_adapter_of_one_run_is_not_taken_for_the_soups(three, tmp_path):
    run = shutil.copytree(three[0], tmp_path / "run")
    (run / "model" / "adapter").mkdir()
    shutil.copy(run / "model" / "model.safetensors", run / "model" / "adapter")
    (run / "model" / "notes").mkdir()
    (run / "model" / "notes" / "words.txt").write_text("a")
    made = soup([run, three[1]], output=tmp_path / "soup")
    assert sorted(path.name for path in (made.folder / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes",
    ]


def test_a_soup_is_exported(three, tmp_path):
    made = soup(three, output=tmp_path / "soup")
    assert verbs.export(made.folder, "torch-export").difference < 1e-5


def test_batch_norm_is_computed_anew_on_training_data(trained, tmp_path):
    runs = [trained(f"seeds.order={n}", text=PICTURES) for n in (1, 2)]
    made = soup(runs, output=tmp_path / "soup")
    kept = soup(runs, output=tmp_path / "kept", mean_statistics=True)
    assert (made.batch_norm, kept.batch_norm) == ("recomputed", "mean")
    ours, theirs = weights(made.folder), weights(kept.folder)
    members = [weights(run) for run in runs]
    for name in ours:
        if "running" in name:
            assert not torch.equal(ours[name], theirs[name])
        elif "num_batches" not in name:
            assert torch.equal(ours[name], theirs[name])
        if theirs[name].is_floating_point():
            torch.testing.assert_close(theirs[name], sum(m[name] for m in members) / 2)
    assert verbs.evaluate(made.folder) == made.metrics
    # A member alone keeps the statistics that it was trained with.
    best = soup(
        [*runs, trained("optimizer.lr=90", text=PICTURES)], output=tmp_path / "g", method="greedy"
    )
    assert best.members[2]["chosen"] or best.value >= max(m["value"] for m in best.members)


def test_the_command_line(three, tmp_path, capsys):
    runs = [str(run) for run in three]
    made = tmp_path / "soup"
    assert exit_code_of(cli, ["soup", *runs, "-o", str(made), "--method", "greedy"]) == 0
    shown = capsys.readouterr().out
    value = json.loads((made / "soup.json").read_text())["value"]
    assert "greedy soup of " in shown
    assert f"validation accuracy {value:.4g}" in shown
    assert shown.endswith(f"{made}\n")
    other = tmp_path / "other"
    assert exit_code_of(cli, ["soup", *runs, "--output", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["run"] for each in found["members"]] == runs
    assert found["folder"] == str(other)
    assert exit_code_of(cli, ["soup", runs[0], "--output", str(other), "--json"]) == 2
    assert "two runs or more" in json.loads(capsys.readouterr().out)["error"]


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["seeds.init=5"], "began with other heads: seeds.init is .* and 5"),
        (["backbone.dropout=0.1", "seeds.init=5"], "seeds.init"),
        (["backbone.width=4"], r"other architectures: \(.*\) and \(.*\) in blocks.0"),
        (["backbone.depth=1"], "other architectures"),
        (["data.validation=9"], "have other validation rows"),
        (["data.label_names=['b', 'a']"], "the same classes in another order"),
        (["regularizer=[{use='noisy-tune'}]"], "re-init or noisy-tune"),
    ],
)
def test_what_cannot_be_averaged_is_one_sentence(trained, tmp_path, overrides, says):
    with pytest.raises(RecipeError, match=says) as caught:
        soup([trained(), trained(*overrides)], output=tmp_path / "soup")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_head_may_be_asked_for(trained, tmp_path):
    other = trained("seeds.init=5")
    made = soup([trained(), other], output=tmp_path / "soup", different_start=True)
    assert made.members[1]["run"] == str(other)


def test_dropout_may_differ(trained, tmp_path):
    soup([trained(), trained("backbone.dropout=0.1")], output=tmp_path / "soup")


def test_it_takes_two_finished_runs_and_a_free_folder(trained, tmp_path):
    one = trained()
    for runs in ([], [one]):
        with pytest.raises(RecipeError, match="a soup is of two runs or more"):
            soup(runs, output=tmp_path / "soup")
    with pytest.raises(RecipeError, match="is named twice"):
        soup([one, one], output=tmp_path / "soup")
    unfinished = shutil.copytree(one, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "model")
    with pytest.raises(CheckpointError, match=r"has no model/ yet: `sft-engine resume"):
        soup([one, unfinished], output=tmp_path / "soup")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        soup([one, tmp_path], output=tmp_path / "soup")
    with pytest.raises(OutputError, match="is not empty"):
        soup([one, trained("seeds.order=1")], output=one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unfinished"]


def test_greedy_needs_a_validation_split_and_a_known_metric(trained, tmp_path):
    runs = [trained("data.validation=0", f"seeds.order={n}") for n in (1, 2)]
    with pytest.raises(RecipeError, match="the greedy soup chooses on the validation split"):
        soup(runs, output=tmp_path / "soup", method="greedy")
    made = soup(runs, output=tmp_path / "uniform")
    assert made.value is None
    assert made.split == "test"
    with pytest.raises(RecipeError, match="there is no metric 'acuracy'"):
        soup([trained(), trained("seeds.order=1")], output=tmp_path / "soup", metric="acuracy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["uniform"]
