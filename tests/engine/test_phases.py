"""Phases and streams: the objective, the order, the learning rate, resuming, what is recorded."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sft_engine import DataError, Interrupted, LossTerm, RecipeError, hookimpl, order, proof
from sft_engine.flow import Clock, Phase
from sft_engine.loop import Interval
from sft_engine.recipe import parse_recipe
from sft_engine.streams import Streams
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe
from sft_engine.testing.tiny import TinyTexts

PHASES = """
[[stream]]
name = "source"
use = "tiny/texts"
examples = 21
seed = 5
batch_size = 6

[[phase]]
name = "pretrain"
epochs = 1.5
streams = {source = 1.0}
[[phase]]
name = "fine-tune"
epochs = 1.4
lr = 0.002
[[phase]]
name = "joint"
steps = 7
streams = {source = 1.0, data = 0.5}
"""
TEXT = TINY + PHASES + '[[extension]]\nuse = "test/watch"\n'
LENGTHS = {"pretrain": 6, "fine-tune": 4, "joint": 7}
"""Steps: 21 of `source` are 4 windows of 6, the last of 3; 48 of `data` are 3 windows of 16."""

EXACT = [
    "backbone.dtype=float64",
    "train.length_buckets=false",
    "train.clip_norm=0",
    "optimizer.lr=0.01",
    "optimizer.weight_decay=0.1",
    "schedule.warmup=0",
    "checkpoint.best=last",
]
COMPONENTS = {
    (kind, f"test/{name.lower()}"): f"{__name__}:{name}"
    for kind, name in (("extension", "Watch"), ("extension", "Pull"), ("data", "Other"))
}


class Watch:
    """Shows the test the run, and notes where the clock is."""

    run = None
    noted: list = []  # noqa: RUF012 (a component is constructed by the engine)

    @hookimpl
    def sft_setup(self, run):
        Watch.run, Watch.noted = run, []
        Watch.start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}

    @hookimpl
    def sft_phase_start(self, run):
        self.note(run, "phase_start")

    @hookimpl
    def sft_phase_end(self, run):
        self.note(run, "phase_end")

    @hookimpl
    def sft_epoch_start(self, run):
        self.note(run, "epoch_start")

    @hookimpl
    def sft_epoch_end(self, run):
        self.note(run, "epoch_end")

    @hookimpl
    def sft_batch(self, run, batch):
        Watch.noted.append(("batch", run.clock.step, batch.split, tuple(batch.ids)))

    def note(self, run, event):
        Watch.noted.append((event, run.phase.name, run.clock.step, run.clock.epoch))


class Pull:
    """A term that counts once a window, and one that counts per item."""

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        size = sum(p.square().sum() for p in run.model.parameters())
        yield LossTerm("pull", size, weight=0.01, per="step")
        yield LossTerm("height", outputs.square().sum(), weight=0.1)


class Other(TinyTexts):
    """Texts with labels of another name.

    Args:
        name: Of the labels.
        examples: How many.
    """

    def __init__(self, name: str = "x", examples: int = 12) -> None:
        super().__init__(examples)
        self.label = name

    def load(self):
        rows = super().load()["train"]
        labels = [f"{self.label}{label}" for label in rows["label"]]
        return {"train": rows.remove_columns("label").add_column("label", labels)}


def train(folder, *overrides, text=TEXT, **options):
    return run_recipe(folder, text, [*EXACT, *overrides], COMPONENTS, **options)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def records(folder, kind="train"):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def largest_difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


# --- the objective ---------------------------------------------------------------------------------


def by_hand(run, start):
    """Train the same phases with torch alone: no engine beyond who sees which example when."""
    backbone = run.backbone
    net = backbone.build(run.task)
    net.load_state_dict(start)
    small = [p for p in net.parameters() if p.ndim < 2]
    large = [p for p in net.parameters() if p.ndim >= 2]
    groups = [{"params": large, "weight_decay": 0.1}, {"params": small, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    seeds = {
        "data": run.seeds.order,
        "source": order.mix(run.seeds.order, order.name_key("source")),
    }
    sizes, split = {"data": 16, "source": 6}, {"data": "train", "source": "source"}
    passes = dict.fromkeys(sizes, 0)
    losses = []
    for streams, steps, rate in (
        ({"source": 1.0}, 6, 0.01),
        ({"data": 1.0}, 4, 0.002),
        ({"source": 1.0, "data": 0.5}, 7, 0.01),
    ):
        waiting = {name: [] for name in streams}
        for step in range(steps):
            total = 0.0
            for name, weight in streams.items():
                rows = run.splits[split[name]].rows
                if not waiting[name]:
                    ids = order.permutation(len(rows), seeds[name], passes[name]).tolist()
                    waiting[name] = [
                        ids[i : i + sizes[name]] for i in range(0, len(ids), sizes[name])
                    ]
                    passes[name] += 1
                chosen = [rows[i] for i in waiting[name].pop(0)]
                inputs = backbone.collate(backbone.encode_rows(chosen, run.task))
                labels = torch.tensor([row["label"] for row in chosen])
                total = total + weight * nn.functional.cross_entropy(net(inputs["ids"]), labels)
            for group in optimizer.param_groups:
                group["lr"] = rate * (steps - step) / steps
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
    return net.state_dict(), losses


@pytest.mark.parametrize("extra", [[], ["train.micro_batch_size=4"], ["train.workers=1"]])
def test_the_objective_is_that_of_a_loop_written_by_hand(tmp_path, extra):
    train(tmp_path / "run", *extra)
    expected, losses = by_hand(Watch.run, Watch.start)
    assert largest_difference(weights(tmp_path / "run"), expected) < 1e-11
    assert [r["loss"] for r in records(tmp_path / "run")] == pytest.approx(losses, rel=1e-11)
    assert largest_difference(Watch.start, expected) > 1e-3


def test_terms_of_a_stream_are_named_after_it_and_add_up(tmp_path):
    text = TEXT + '[[extension]]\nuse = "test/pull"\n'
    train(tmp_path / "run", "train.micro_batch_size=4", text=text)
    found = {}
    for record in records(tmp_path / "run"):
        terms = {key: value for key, value in record.items() if key.startswith("loss/")}
        assert record["loss"] == pytest.approx(sum(terms.values()), rel=1e-12)
        found.setdefault(record["phase"], set()).add(tuple(sorted(terms)))
    source = ("loss/source/height", "loss/source/task")
    assert found == {
        "pretrain": {("loss/pull", *source)},
        "fine-tune": {("loss/height", "loss/pull", "loss/task")},
        "joint": {("loss/height", "loss/pull", *source, "loss/task")},
    }


def test_a_term_that_counts_once_a_window_does_so_with_several_streams(tmp_path):
    """Before the first step of a phase the weights are known: their squares are the term."""
    text = TEXT + '[[extension]]\nuse = "test/pull"\n'
    train(tmp_path / "run", "phase.0.steps=1", "phase.0.streams={source=2.0,data=3.0}", text=text)
    first = records(tmp_path / "run")[0]
    squares = sum(w.square().sum().item() for w in Watch.start.values())
    assert first["loss/pull"] == pytest.approx(0.01 * squares, rel=1e-12)


def test_a_window_is_cut_in_any_way_without_changing_the_result(tmp_path):
    text = TEXT + '[[extension]]\nuse = "test/pull"\n'
    train(tmp_path / "whole", text=text)
    train(tmp_path / "parts", "train.micro_batch_size=5", text=text)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) < 1e-11


# --- who sees what when ----------------------------------------------------------------------------


def batches(split):
    return [(step, ids) for kind, step, where, ids in only("batch") if where == split]


def only(*kinds):
    return [event for event in Watch.noted if event[0] in kinds]


def test_streams_go_round_in_their_own_order(tmp_path):
    train(tmp_path / "run")
    source = batches("source")
    assert [step for step, _ in source] == [*range(6), *range(10, 17)]
    passes = [source[0:4], source[4:6], source[6:10], source[10:13]]
    whole = [sum((ids for _, ids in each), ()) for each in passes]
    for each in (whole[0], whole[2]):
        assert sorted(each) == list(range(21))
    assert whole[0] != whole[2]  # a later phase does not repeat the order of an earlier one
    assert len(set(whole[1])) == 12
    data = batches("train")
    assert [step for step, _ in data] == list(range(6, 17))
    first = sum((ids for _, ids in data[:3]), ())
    assert first == tuple(order.permutation(48, Watch.run.seeds.order, 0).tolist())


def test_events_of_phases_and_epochs(tmp_path):
    train(tmp_path / "run")
    assert only("phase_start", "phase_end", "epoch_start", "epoch_end") == [
        ("phase_start", "pretrain", 0, 0),
        ("epoch_start", "pretrain", 0, 0),
        ("epoch_end", "pretrain", 4, 0),
        ("epoch_start", "pretrain", 4, 1),
        ("phase_end", "pretrain", 6, 1),
        ("phase_start", "fine-tune", 6, 2),
        ("epoch_start", "fine-tune", 6, 2),
        ("epoch_end", "fine-tune", 9, 2),
        ("epoch_start", "fine-tune", 9, 3),
        ("phase_end", "fine-tune", 10, 3),
        ("phase_start", "joint", 10, 4),
        ("epoch_start", "joint", 10, 4),
        ("epoch_end", "joint", 13, 4),
        ("epoch_start", "joint", 13, 5),
        ("epoch_end", "joint", 16, 5),
        ("epoch_start", "joint", 16, 6),
        ("phase_end", "joint", 17, 6),
    ]


def test_rates_begin_anew_in_each_phase(tmp_path):
    train(tmp_path / "run")
    expected = [
        rate * (steps - step) / steps
        for rate, steps in ((0.01, 6), (0.002, 4), (0.01, 7))
        for step in range(steps)
    ]
    assert [r["lr"] for r in records(tmp_path / "run")] == pytest.approx(expected)


def test_plateau_begins_anew_in_each_phase(tmp_path):
    plateau = ["schedule.use=plateau", "schedule.patience=0", "schedule.metric=nll"]
    plateau += ["schedule.threshold=1e9", "schedule.threshold_mode=abs", "evaluation.every_steps=1"]
    train(tmp_path / "run", *plateau, "schedule.gamma=0.5")
    rates = [r["lr"] for r in records(tmp_path / "run")]
    assert rates[0] == rates[1] == 0.01
    assert rates[6] == rates[7] == 0.002
    assert rates[10] == 0.01
    assert rates[5] < 0.01


def test_evaluation_and_checkpoints_follow_the_epochs_of_the_phase(tmp_path):
    train(tmp_path / "run")
    evaluated = [r["step"] for r in records(tmp_path / "run", "evaluation")]
    # Windows of `source` until step 6, of `data` afterwards; the last two are the end.
    assert evaluated == [4, 9, 13, 16, 17, 17]
    clock = Clock(total_steps=17, steps_per_epoch=4, phase_start=6, phase_steps=9)
    assert Interval(epochs=0.5).within(clock) == (2, 6)
    assert Interval(steps=5, epochs=1).within(clock) == (5, 0)
    assert not Interval()


def test_a_recipe_without_phases_is_one_phase(tmp_path):
    text = TINY + '[[extension]]\nuse = "test/watch"\n'
    train(tmp_path / "run", text=text)
    assert only("phase_start", "phase_end") == [
        ("phase_start", "train", 0, 0),
        ("phase_end", "train", 6, 2),
    ]
    assert not any("phase" in record for record in records(tmp_path / "run"))
    same = '[[phase]]\nname = "all"\nepochs = 2\n'
    one = train(tmp_path / "implicit", text=text)
    other = train(tmp_path / "explicit", text=text + same)
    assert one.fingerprint == other.fingerprint


def test_stopping_early_ends_the_run(tmp_path):
    class Stop:
        @hookimpl
        def sft_step_end(self, run):
            if run.clock.step == 2:
                run.control.stop = "enough"

    sys.modules[__name__].Stop = Stop
    components = {**COMPONENTS, ("extension", "test/stop"): f"{__name__}:Stop"}
    text = TEXT + '[[extension]]\nuse = "test/stop"\n'
    outcome = run_recipe(tmp_path / "run", text, EXACT, components)
    assert outcome.reason == "enough"
    assert only("phase_start", "phase_end")[-1] == ("phase_end", "pretrain", 3, 0)


# --- resuming --------------------------------------------------------------------------------------

NOISY = ["backbone.dropout=0.3", "train.micro_batch_size=4", "evaluation.every_steps=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(folder, *NOISY)


@pytest.mark.parametrize("stop", [2, 4, 6, 8, 9, 10, 13, 15])
def test_resumed_runs_are_bit_equal(tmp_path, whole, stop):
    """In the middle of each phase and epoch, and at the borders of both."""
    with pytest.raises(Interrupted):
        train(tmp_path / "run", *NOISY, stop_after=stop)
    torch.manual_seed(99)
    again = train(tmp_path / "run", *NOISY, resume=True)
    assert again.fingerprint == whole.fingerprint
    phase = next(
        name for name, end in (("pretrain", 6), ("fine-tune", 10), ("joint", 17)) if stop < end
    )
    assert only("phase_start")[0][1] == phase
    losses = [[r["loss"] for r in records(f)] for f in (whole.folder, tmp_path / "run")]
    assert losses[0] == losses[1]


def test_resuming_at_the_saved_end_of_a_phase(tmp_path, whole):
    """The checkpoint of the last step of a phase is within it: its end still has to happen."""
    saving = [*NOISY, "checkpoint.every_steps=6", "checkpoint.keep=3"]
    with pytest.raises(Interrupted):
        train(tmp_path / "run", *saving, stop_after=8)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000008")
    again = train(tmp_path / "run", *saving, resume=True)
    assert again.fingerprint == whole.fingerprint
    assert only("phase_start", "phase_end")[:3] == [
        ("phase_start", "pretrain", 6, 1),
        ("phase_end", "pretrain", 6, 1),
        ("phase_start", "fine-tune", 6, 2),
    ]


def test_verify_resume_and_trace_share_their_steps_among_phases():
    text = TINY.replace('"tiny/texts"', '"csv"\npath = "x.csv"')
    text = text.replace('"tiny/text"', '"transformers"\nname = "x"')
    recipe = parse_recipe(text + '[[phase]]\nname = "a"\n[[phase]]\nname = "b"\nepochs = 2\n')
    short = proof.check_short(recipe, ["train.batch_size=3"], 11)
    assert [phase.steps for phase in short.phases] == [6, 6]
    assert (short.train.log_every, short.train.batch_size) == (1, 3)


# --- labels and data -------------------------------------------------------------------------------

OTHER = """
[[stream]]
name = "other"
use = "test/other"
data = {name = "%s"}
[[phase]]
name = "both"
steps = 2
streams = {data = 1.0, other = 1.0}
[[extension]]
use = "test/watch"
"""


def test_labels_are_those_of_all_streams(tmp_path):
    train(tmp_path / "run", text=TINY + OTHER % "x")
    assert Watch.run.task.head.names == ("a", "b", "xa", "xb")
    assert set(Watch.run.splits["other"].rows["label"]) == {2, 3}
    findings = [r["message"] for r in records(tmp_path / "run", "preflight")]
    apart = [m for m in findings if "no label in common" in m]
    assert apart[0].startswith(
        "the stream 'other' ('xa', 'xb') and the training split ('a', 'b') have no label in common: "
        "the head has 4 outputs"
    )


def test_labels_in_common_share_an_output(tmp_path):
    train(tmp_path / "run", text=TINY + OTHER % "")
    assert Watch.run.task.head.names == ("a", "b")
    findings = [r["message"] for r in records(tmp_path / "run", "preflight")]
    assert not [m for m in findings if "in common" in m or "distributed" in m]


def test_given_names_are_the_names(tmp_path):
    train(tmp_path / "run", 'data.label_names=["xb","b","a","xa"]', text=TINY + OTHER % "x")
    assert Watch.run.task.head.names == ("xb", "b", "a", "xa")
    with pytest.raises(DataError, match=r"split 'other', row 0.* the label 'x[ab]' is not among"):
        train(tmp_path / "bad", 'data.label_names=["a","b"]', text=TINY + OTHER % "x")


def test_the_stream_is_named_in_problems_of_its_data(tmp_path):
    with pytest.raises(DataError) as raised:
        train(tmp_path / "run", "stream.0.columns.label=lable", text=TINY + OTHER % "x")
    message = str(raised.value)
    assert message.startswith(
        "[[stream]] \"other\" columns.label = 'lable': the split 'train' has no"
    )
    with pytest.raises(DataError, match=r'\[\[stream\]\] "other" splits.train = \'trian\''):
        train(tmp_path / "again", "stream.0.splits.train=trian", text=TINY + OTHER % "x")


def test_subset_of_a_stream(tmp_path):
    train(tmp_path / "run", "stream.0.subset=5", text=TINY + OTHER % "x")
    assert len(Watch.run.splits["other"]) == 5


# --- recipes ---------------------------------------------------------------------------------------


def test_resolved_recipes_load_back():
    planned = plan_recipe(TEXT, EXACT, COMPONENTS)
    again = plan_recipe(planned.resolved().to_toml(), (), COMPONENTS)
    assert again.phases == planned.phases
    assert again.streams == planned.streams
    assert again.resolved() == planned.resolved()
    assert again.all("stream")[0].options == planned.all("stream")[0].options
    assert [p.key for p in again.all("data")] == ["data"]
    named = plan_recipe(TINY + OTHER % "x", (), COMPONENTS)
    table = named.resolved().tables["stream"][0]
    assert (table["name"], table["data"]) == ("other", {"name": "x"})
    assert "phase" not in plan_recipe(TINY).resolved().tables


ONE = '[[phase]]\nname = "one"\nsteps = 1\n'
STREAM = '[[stream]]\nname = "source"\nuse = "tiny/texts"\n'
USED = '[[phase]]\nname = "one"\nsteps = 1\nstreams = {source = 1.0}\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[[phase]]\nname = "one"\nepoch = 1\n',
            (
                "recipe.toml:18: `phase[0].epoch`: `[[phase]]` has no such option; did you mean `epochs`? "
                "Allowed: `name`, `epochs`, `steps`, `streams`, `lr`."
            ),
        ),
        ("[[phase]]\nsteps = 1\n", "recipe.toml:16: `phase[0].name`: missing, needed: a string"),
        (
            ONE + ONE,
            'recipe.toml:17: `phase[0].name`: more than one phase is called "one"; choose another.',
        ),
        (
            '[phase]\nname = "one"\n',
            (
                "recipe.toml:16: `phase`: found one table, `[phase]`, allowed: a list of them, each "
                "written `[[phase]]`."
            ),
        ),
        (
            STREAM + '[[phase]]\nname = "one"\nstreams = {sauce = 1.0, source = 1}\n',
            (
                "recipe.toml:21: `phase[0].streams.sauce`: the recipe has no such stream, allowed: `data`, "
                "`source`; did you mean `source`?"
            ),
        ),
        (
            STREAM + '[[phase]]\nname = "one"\nstreams = {source = 0}\n',
            (
                'recipe.toml:21: `phase[0].streams`: found {"source": 0}, allowed: a table of numbers, '
                "each greater than 0."
            ),
        ),
        (
            STREAM + ONE,
            (
                'recipe.toml:16: `stream[0]`: no phase trains on "source"; a `[[phase]]` needs `streams = '
                "{source = 1.0}`."
            ),
        ),
        (
            STREAM.replace("source", "test") + USED.replace("source", "test"),
            'recipe.toml:17: `stream[0].name`: found "test", which is part of `[data]`; choose another.',
        ),
        (
            STREAM + "bach_size = 3\n" + USED,
            (
                'recipe.toml:19: `stream[0].bach_size`: data "tiny/texts" has no such option; did you mean '
                "`batch_size`? Allowed: `examples`, `longest`, `seed`, and the engine's `name`, "
                "`batch_size`, `data`, `columns`, `splits`, `stratify`, `subset`, `resample`, `on_error`."
            ),
        ),
        (
            STREAM.replace("tiny/texts", "tiny/txts") + USED,
            (
                'recipe.toml:18: `stream[0].use`: found "tiny/txts", which no installed plugin offers as '
                "data; did you mean `tiny/texts`?"
            ),
        ),
        (
            STREAM.replace('use = "tiny/texts"\n', "") + USED,
            (
                "recipe.toml:16: `stream[0]`: `use` is missing, it names the data; `sft-engine plugins` "
                "lists each data that is installed."
            ),
        ),
        (
            STREAM.replace("tiny/texts", "hf-dataset") + USED,
            (
                "recipe.toml:16: `stream[0].data.name`: missing, needed: a string; write it as `data = "
                "{name = ...}`, because `name` itself is the stream's."
            ),
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence(text, expected):
    with pytest.raises(RecipeError) as raised:
        plan_recipe(TINY + text)
    assert str(raised.value).startswith(expected)


def test_streams_are_a_function_of_the_position():
    """Windows from any index on are those of the whole phase; no state is carried."""
    train_phases = (
        Phase("a", {"data": 1.0}, steps=5, steps_per_epoch=3),
        Phase("b", {"data": 1.0}, steps=7, steps_per_epoch=3, start=5, first_epoch=2),
    )

    class Three:
        windows_per_epoch, workers, world, rank, micro_batch_size = 3, 0, 1, 0, 2

        def window(self, epoch, index):
            return [(epoch, index)]

    streams = Streams({"data": Three()}, train_phases, phase=1)
    assert [streams.window(i) for i in range(4)] == [[(2, 0)], [(2, 1)], [(2, 2)], [(3, 0)]]
    assert [list(streams.epoch(i)) for i in (1, 6)] == [[[(2, 1)], [(2, 2)]], [[(4, 0)]]]
