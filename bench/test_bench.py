"""The benchmarks' own arithmetic and checks. Nothing here depends on a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench import frozen, overhead, paired, step_cost, vision, vision_variants
from bench.measurement import Result, Timer, readable
from bench.overhead_variants import Variant, by_hand, loader_of
from bench.overhead_work import OverheadWork
from bench.text_work import FAMILY_END, pad, sentences
from bench.vision_work import label


def rounds_of(*pairs: tuple[float, float]) -> paired.Rounds:
    """Rounds of two variants, a and b, with these seconds."""
    return [{"a": Result("x", "a", a), "b": Result("x", "b", b)} for a, b in pairs]


def test_ratio_is_taken_within_each_round() -> None:
    # The machine is four times slower in the second round: times mislead, the ratio does not.
    rounds = rounds_of((1.0, 2.0), (4.0, 8.0), (2.0, 5.0))
    assert paired.ratios(rounds, "b", "a") == [2.0, 2.0, 2.5]
    assert paired.summary(rounds, "a")["b"]["ratio"]["median"] == 2.0


def test_spread_of_known_values() -> None:
    found = paired.spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == {
        "median": 3.0,
        "min": 1.0,
        "max": 5.0,
        "lower quartile": 2.0,
        "upper quartile": 4.0,
    }


def test_spread_of_a_single_round() -> None:
    assert set(paired.spread([7.0]).values()) == {7.0}


def test_table_has_a_line_per_variant() -> None:
    table = paired.markdown(rounds_of((0.001, 0.002), (0.001, 0.002)), "a").splitlines()
    assert table[0] == "| variant | median | min | ratio to a | middle half |"
    assert table[3] == "| b | 2 ms | 2 ms | 2.00 | 2.00 to 2.00 |"
    assert len(table) == 4


@pytest.mark.parametrize(
    ("seconds", "text"), [(14.41, "14.4 s"), (0.00115, "1.15 ms"), (59.6e-6, "60 µs")]
)
def test_readable(seconds: float, text: str) -> None:
    assert readable(seconds) == text


def test_step_time_leaves_the_warm_up_out() -> None:
    timer = Timer()
    timer.step_starts = [0.0, 10.0, 11.0, 12.0, 14.0]
    assert timer.seconds_per_step(skip=1) == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="too few"):
        timer.seconds_per_step(skip=4)


def test_a_run_of_a_real_script() -> None:
    result = paired.run_once("startup", "python", threads=1, seed=0, arguments=[])
    assert result.variant == "python"
    assert result.seconds > 0


def test_a_failing_variant_is_named() -> None:
    with pytest.raises(SystemExit, match="startup no-such-variant failed"):
        paired.run_once("startup", "no-such-variant", threads=1, seed=0, arguments=[])


def test_reference_must_be_a_variant() -> None:
    with pytest.raises(SystemExit):
        paired.options_of(["overhead", "raw", "hf", "--reference", "lightning"])


def test_arguments_after_the_dashes_go_to_the_script() -> None:
    options = paired.options_of(["overhead", "raw", "hf", "--rounds", "3", "--", "300"])
    assert (options.variants, options.rounds, options.arguments) == (["raw", "hf"], 3, ["300"])


def test_written_record_can_be_read_again(tmp_path: Path) -> None:
    options = paired.options_of(["overhead", "a", "b"])
    path = tmp_path / "result.json"
    paired.write(path, options, {"cpu": "some"}, rounds_of((1.0, 2.0)))
    assert '"cpu": "some"' in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_check_accepts_the_hand_written_loop(capsys: pytest.CaptureFixture[str]) -> None:
    overhead.check(by_hand, seed=0)
    assert "same work" in capsys.readouterr().out


def altered(
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    max_norm: float = 1.0,
    decays: bool = True,
) -> Callable[[OverheadWork], nn.Module]:
    """The hand-written loop with one setting that differs from the work's."""

    def train(work: OverheadWork) -> nn.Module:
        model = work.build_model()
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
        for step, (inputs, labels) in enumerate(loader_of(work)):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - decays * step / work.steps)
            cross_entropy(model(inputs), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        return model

    return train


def test_check_accepts_the_same_settings_in_another_loop() -> None:
    overhead.check(altered(), seed=0)


@pytest.mark.parametrize(
    "variant",
    [
        altered(learning_rate=1.1e-3),
        altered(weight_decay=0.1),
        altered(max_norm=0.1),
        altered(decays=False),
    ],
    ids=["learning rate", "weight decay", "clipping", "schedule"],
)
def test_check_refuses_other_settings(variant: Variant) -> None:
    with pytest.raises(SystemExit, match="it does other work"):
        overhead.check(variant, seed=0)


def test_check_refuses_missing_examples() -> None:
    def half(work: OverheadWork) -> nn.Module:
        work.inputs, work.labels = work.inputs[:480], work.labels[:480]
        model = by_hand(work)
        work.inputs = OverheadWork(work.steps).inputs
        return model

    with pytest.raises(SystemExit, match="exactly once"):
        overhead.check(half, seed=0)


def test_label_of_a_sentence_is_the_presence_of_the_family() -> None:
    examples = sentences(200, seed=3)
    for example in examples:
        present = bool((example["input_ids"] < FAMILY_END).any())
        assert present == (example["labels"] == 1)
    assert sum(x["labels"] for x in examples) == 100


def test_lengths_do_not_depend_on_the_seed() -> None:
    first, second = sentences(50, seed=0), sentences(50, seed=1)
    assert [len(x["input_ids"]) for x in first] == [len(x["input_ids"]) for x in second]
    assert not torch.equal(first[0]["input_ids"], second[0]["input_ids"])


def test_padding_is_masked() -> None:
    batch = pad(
        [
            {"input_ids": torch.tensor([7, 8, 9]), "labels": 1},
            {"input_ids": torch.tensor([11]), "labels": 0},
        ]
    )
    assert batch["input_ids"].tolist() == [[7, 8, 9], [11, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("variant", ["raw", "ours", "timm"])
def test_vision_variants_do_the_same_work(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    vision.check(vision_variants.VARIANTS[variant], "resnet18", seed=0)
    assert "same work" in capsys.readouterr().out


def test_label_of_a_picture_is_its_brightest_channel() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[0, 2], images[1, 0] = 1.0, 0.5
    assert label(images).tolist() == [2, 0]


def test_peak_memory_counts_what_was_held() -> None:
    code = (
        "import torch; from bench.vision import peak_memory; before = peak_memory();"
        "torch.ones(300, 2**18).sum(); print(peak_memory() - before)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=paired.ROOT
    )
    assert 250 < float(ended.stdout) < 400, ended.stderr


@pytest.mark.parametrize("variant", ["once", "ours"])
def test_frozen_variants_do_the_same_work(
    variant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_ENGINE_CACHE", "set by the variant")  # and given back afterwards
    frozen.check(variant, seed=0)
    assert "same work" in capsys.readouterr().out


def test_articles_features_are_others() -> None:
    with pytest.raises(SystemExit, match="leaves the trunk in training mode"):
        frozen.check("article", seed=0)


def test_runs_that_take_turns_end_in_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    found = step_cost.measure_all(["sam", "mixup"], rounds=2, steps=1, kinds=["table"])
    assert list(found["table"]) == ["sam", "mixup"]
    assert found["table"]["sam"]["ratio"]["median"] > 0
    assert capsys.readouterr().out.count("| table |") == 2


def test_every_component_of_the_shelf_can_be_measured() -> None:
    tables = step_cost.tables_of(step_cost.known_plugins())
    assert {"l2-sp", "frozen", "keyboard-typos", "focal"} <= set(tables)
