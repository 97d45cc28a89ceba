"""What stops a run once it has begun: numbers that are none, no memory, no room."""

from __future__ import annotations

import json
import math

import children
import pytest
import torch
from safetensors.torch import load_file
from test_kill import RECIPE, leftovers, newest_is_complete, reports
from victims import COMPONENTS

from sft_engine import DivergedError, Interrupted, OutOfMemoryError
from sft_engine.checkpoint import Keeper
from sft_engine.feed import Feed
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe
from sft_engine.training import train

EVERY_STEP = ["checkpoint.every_steps=1", "checkpoint.keep=9", "train.epochs=3"]


def with_extension(*lines):
    """Return the tiny recipe with extensions, each given as TOML lines."""
    return TINY + "".join(f"[[extension]]\nuse = {line}\n" for line in lines)


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def checkpoints(folder):
    keeper = Keeper(folder / "checkpoints")
    return {step: keeper.read(step)["model"] for step in keeper.steps()}


def all_finite(weights):
    return all(weight.isfinite().all() for weight in weights.values())


# --- numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, value, log_every):
    text = with_extension(f'"test/poison"\nat = 3\nvalue = {value}')
    with pytest.raises(
        DivergedError, match=r"the gradient is (nan|inf) at step 3 \(examples \d+, \d+"
    ) as e:
        run_recipe(
            tmp_path / "run", text, [*EVERY_STEP, f"train.log_every={log_every}"], COMPONENTS
        )
    assert e.value.exit_code == 4
    assert "optimizer.lr" in str(e.value)
    last = records(tmp_path / "run", "train")[-1]
    assert not math.isfinite(last["loss"])
    assert not math.isfinite(last["loss/poison"])
    assert math.isfinite(last["loss/task"])
    saved = checkpoints(tmp_path / "run")
    assert list(saved) == [1, 2, 3]
    assert all(map(all_finite, saved.values()))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_the_examples_named_are_those_of_the_step(tmp_path):
    seen = []
    text = with_extension('"test/poison"\nat = 3')
    with pytest.raises(DivergedError) as error:
        run_recipe(tmp_path / "run", text, EVERY_STEP, COMPONENTS)
    plan = plan_recipe(with_extension('"test/poison"\nat = 99'), EVERY_STEP, COMPONENTS)
    window = Feed.window

    def watched(self, epoch, index):
        seen.append(self.windows(epoch)[index].tolist())
        return window(self, epoch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "window", watched)
        train(plan, tmp_path / "whole")
    named = str(error.value).partition("(examples ")[2].partition(" …")[0]
    assert named == ", ".join(map(str, seen[3][:8]))


@pytest.mark.parametrize("every", [1, 0])
def test_a_weight_that_is_no_number_is_never_saved(tmp_path, every):
    """A step may overflow though its gradient was finite."""
    text = with_extension('"test/poison"\nwhat = "weight"\nat = 5')
    overrides = [
        "checkpoint.keep=9",
        f"checkpoint.every_steps={every}",
        "checkpoint.every_epochs=0",
    ]
    with pytest.raises(
        DivergedError, match=r"weights are no longer finite after step 6 \(`head.bias`"
    ):
        run_recipe(tmp_path / "run", text, [*overrides, "checkpoint.best=last"], COMPONENTS)
    saved = checkpoints(tmp_path / "run")
    assert list(saved) == ([1, 2, 3, 4, 5] if every else [])
    assert all(map(all_finite, saved.values()))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("action", ["ROLL_BACK", "SKIP"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_component_that_heals_keeps_the_run_going(tmp_path, action, precision):
    text = with_extension('"test/poison"\nat = 3\nuntil = 5', f'"test/healer"\naction = "{action}"')
    overrides = [*EVERY_STEP, f"train.precision={precision}"]
    outcome = run_recipe(tmp_path / "run", text, overrides, COMPONENTS)
    verdicts = records(tmp_path / "run", "verdict")
    assert [v["step"] for v in verdicts] == [3, 4]
    assert all(
        v["reason"] == "the gradient is not finite" and len(v["examples"]) == 16 for v in verdicts
    )
    assert all(map(all_finite, checkpoints(tmp_path / "run").values()))
    losses = {r["step"]: r["loss"] for r in records(tmp_path / "run", "train")}
    assert [step for step, loss in losses.items() if math.isnan(loss)] == [4, 5]  # and not hidden
    assert outcome.reason == "all steps done"


def test_fp16_goes_on_after_an_overflow(tmp_path):
    text = with_extension('"test/poison"\nat = 2\nuntil = 5\nvalue = inf')
    overrides = [*EVERY_STEP, "train.precision=fp16"]
    run_recipe(tmp_path / "run", text, overrides, COMPONENTS)
    saved = checkpoints(tmp_path / "run")
    assert all(map(all_finite, saved.values()))
    still = [all(torch.equal(saved[s][n], saved[s + 1][n]) for n in saved[s]) for s in range(1, 9)]
    assert still == [False, True, True, True, False, False, False, False]


def test_fp16_stops_if_the_scale_does_not_help(tmp_path):
    """Halved at each overflow, the scale would reach 0, and no step would ever be taken again."""
    text = with_extension('"test/poison"\nat = 2\nuntil = 999\nvalue = inf')
    overrides = [*EVERY_STEP, "train.precision=fp16", "train.epochs=30"]
    with pytest.raises(DivergedError, match=r"even at a loss scale of 6\.10352e-05 at step 32"):
        run_recipe(tmp_path / "run", text, overrides, COMPONENTS)
    losses = [r["loss"] for r in records(tmp_path / "run", "train")]
    assert losses[2:] == [math.inf] * 30
    assert all(map(all_finite, checkpoints(tmp_path / "run").values()))


def test_fp16_resumes_with_its_scale(tmp_path):
    overflow = with_extension('"test/poison"\nat = 1\nuntil = 3\nvalue = inf')
    overrides = ["train.precision=fp16", "train.epochs=3"]
    whole = run_recipe(tmp_path / "whole", overflow, overrides, COMPONENTS)
    with pytest.raises(Interrupted):
        run_recipe(tmp_path / "run", overflow, overrides, COMPONENTS, stop_after=4)
    saved = Keeper(tmp_path / "run" / "checkpoints").read(4)["extra"]["scaler"]
    assert saved["scale"] == 65536 / 4
    assert saved["_growth_tracker"] == 1
    resumed = train(plan_recipe(overflow, overrides, COMPONENTS), tmp_path / "run", resume=True)
    assert resumed.fingerprint == whole.fingerprint


# --- no memory ------------------------------------------------------------------------------------

FLOAT64 = ["backbone.dtype=float64", "optimizer.use=adamw", "optimizer.lr=0.01", "train.epochs=3"]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(
    ("where", "error", "workers"),
    [
        ("forward", "cpu", 0),
        ("backward", "device", 0),
        ("forward", "device", 2),
        ("backward", "cpu", 2),
    ],
)
def test_micro_batches_are_halved_and_nothing_else_changes(tmp_path, where, error, workers):
    text = with_extension(f'"test/hungry"\nat = 4\nwhere = "{where}"\nerror = "{error}"')
    overrides = [*FLOAT64, f"train.workers={workers}"]
    run_recipe(tmp_path / "roomy", TINY, FLOAT64)
    run_recipe(tmp_path / "run", text, overrides, COMPONENTS)
    assert difference(weights(tmp_path / "run"), weights(tmp_path / "roomy")) < 1e-11
    notices = records(tmp_path / "run", "notice")
    assert [(n["step"], n["message"].partition(":")[0]) for n in notices] == [
        (4, "out of memory")
    ] * 2
    assert [n["message"].split()[6] for n in notices] == ["8", "4"]
    losses = [[r["loss"] for r in records(tmp_path / run, "train")] for run in ("run", "roomy")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)


def test_halved_micro_batches_stay_halved_on_resume(tmp_path):
    text = with_extension('"test/hungry"\nat = 2')
    whole = run_recipe(tmp_path / "whole", text, FLOAT64, COMPONENTS)
    with pytest.raises(Interrupted):
        run_recipe(tmp_path / "run", text, FLOAT64, COMPONENTS, stop_after=5)
    resumed = train(plan_recipe(text, FLOAT64, COMPONENTS), tmp_path / "run", resume=True)
    assert resumed.fingerprint == whole.fingerprint
    assert len(records(tmp_path / "run", "notice")) == 2


def test_no_room_for_one_example_is_a_sentence(tmp_path):
    text = with_extension('"test/hungry"\nexamples = 0\nat = 2')
    with pytest.raises(
        OutOfMemoryError, match=r"micro-batches of 1 at step 2 .*can't allocate"
    ) as error:
        run_recipe(tmp_path / "run", text, EVERY_STEP, COMPONENTS)
    assert error.value.exit_code == 1
    assert "train.gradient_checkpointing" in str(error.value)
    assert list(checkpoints(tmp_path / "run")) == [1, 2]
    roomy = plan_recipe(
        with_extension('"test/hungry"\nexamples = 1\nat = 2'), EVERY_STEP, COMPONENTS
    )
    assert train(roomy, tmp_path / "run", resume=True).reason == "all steps done"


def predictions(folder):
    lines = (folder / "predictions" / "test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_evaluation_batches_are_halved(tmp_path):
    text = with_extension('"test/hungry"\nexamples = 3\nwhere = "evaluation"')
    roomy = run_recipe(tmp_path / "roomy", TINY, FLOAT64)
    outcome = run_recipe(tmp_path / "run", text, FLOAT64, COMPONENTS)
    assert outcome.metrics["nll"] == pytest.approx(roomy.metrics["nll"], rel=1e-11)
    notices = [n["message"] for n in records(tmp_path / "run", "notice")]
    assert notices == [  # once, and remembered for the evaluations that follow
        f"out of memory: evaluation batches now have {n} examples" for n in (16, 8, 4, 2)
    ]
    mine, theirs = predictions(tmp_path / "run"), predictions(tmp_path / "roomy")
    for one, other in zip(mine, theirs, strict=True):
        assert one.pop("probabilities") == pytest.approx(other.pop("probabilities"), rel=1e-11)
        assert one == other


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('examples = 0\nwhere = "evaluation"', "can't allocate"),
        ('where = "setup"\nerror = "host"', "MemoryError"),
        ('where = "setup"\nerror = "device"', "CUDA out of memory"),
    ],
)
def test_no_memory_elsewhere_is_a_sentence(tmp_path, lines, sentence):
    with pytest.raises(OutOfMemoryError, match=rf"the memory does not suffice \(.*{sentence}"):
        run_recipe(tmp_path / "run", with_extension(f'"test/hungry"\n{lines}'), [], COMPONENTS)


# --- no room on the disk --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE.format(steps=6, workers=0))
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "r.toml").write_text(RECIPE.format(steps=6, workers=0))
    assert children.call(folder, *RUN).wait() == 0
    return reports(folder / "run")


RUN = ("run", "r.toml", "--output", "run", "--quiet")


@pytest.mark.parametrize("stage", ["start", "save", "final"])
def test_a_full_disk_is_a_sentence(folder, undisturbed, stage):
    """The disk is full from one operation on, then from a later one; with room, the run goes on."""
    for at in range(0, 100, 2):
        arguments = ("resume", "run", "--quiet") if (folder / "run").exists() else RUN
        full = children.Trap(stage, at, folder / f"log-{at}", full=True)
        child = children.call(folder, *arguments, trap=full)
        if child.wait() == 0:
            break
        last = child.text.splitlines()[-1]
        assert child.wait() == 1, child.text
        assert last.startswith("error: cannot "), child.text
        assert "the disk is full; make room" in last
        assert leftovers(folder / "run") == []
        newest_is_complete(folder)
    assert at > 5
    assert reports(folder / "run") == undisturbed


def test_a_limit_on_the_size_of_files(folder, undisturbed):
    """The system itself refuses to write: works for any user, on any disk."""
    child = children.call(folder, *RUN, largest_file=6000)
    assert child.wait() == 1
    assert (
        "cannot write the checkpoint of step 1 in run/checkpoints: the file would be larger"
        in child.text
    )
    assert leftovers(folder / "run") == []
    assert list((folder / "run" / "checkpoints").iterdir()) == []
    child = children.call(folder, "resume", "run", "--quiet")
    assert child.wait() == 0, child.text
    assert reports(folder / "run") == undisturbed
