"""The rules of docs/compare.md, each on data that was made for it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from compared_folders import as_lines, right
from scipy import stats

from sft_engine import compare
from sft_engine.significance.paired import holm, mcnemar
from sft_engine.significance.variance import crossed_mean


def flipped(flags, *places):
    changed = flags.copy()
    changed[list(places)] ^= True
    return changed


def noisy(share, seed, n=200):
    return np.random.default_rng(seed).random(n) < share


# --- Two single runs -----------------------------------------------------------------------------


def test_the_better_of_two_runs(folders):
    a = folders.run("a", right(0.9))
    b = folders.run("b", right(0.8))
    found = compare([b, a])
    (pair,) = found.pairs
    assert (pair.verdict.code, pair.verdict.better) == ("better", "a")
    assert pair.evidence.difference == pytest.approx(-0.1)
    assert pair.verdict.p == pytest.approx(mcnemar(0, 20).mid_p)
    assert (pair.evidence.mcnemar.only_first, pair.evidence.mcnemar.only_second) == (0, 20)
    assert pair.evidence.over_runs is None
    # The interval of a paired difference of shares, by the normal approximation.
    error = math.sqrt((0.1 - 0.1**2) / 200)
    limits = pair.evidence.limits
    assert limits.low == pytest.approx(-0.1 - 1.96 * error, abs=0.01)
    assert limits.high == pytest.approx(-0.1 + 1.96 * error, abs=0.01)
    assert found.verdict == pair.verdict.sentence
    assert found.verdict.startswith(
        "a is better than b: accuracy 0.8000 against 0.9000, difference"
    )
    assert "Over 200 examples, McNemar mid-p: p < 0.001." in found.verdict
    assert "One run each: this speaks of these two models" in found.verdict
    changes = pair.evidence.changes
    assert (changes["churn"], changes["negative_flips"], changes["least"]) == pytest.approx(
        (0.1, 0.1, 0.1)
    )
    h = pair.evidence.effects["Cohen's h"]
    assert h.value == pytest.approx(2 * (math.asin(math.sqrt(0.8)) - math.asin(math.sqrt(0.9))))
    assert h.low < h.value < h.high < 0


def test_no_difference_is_shown_and_none_is_ruled_out(folders):
    runs = [folders.run("a", right(0.9)), folders.run("b", right(0.9, first=8))]
    found = compare(runs)
    assert found.pairs[0].verdict.code == "undecided"
    assert found.pairs[0].verdict.better == ""
    assert found.verdict.startswith(
        "No difference between a and b is shown, and none is ruled out: accuracy 0.9000 against 0.9000"
    )


def test_an_interval_alone_shows_nothing(folders):
    # Five examples against none: the bootstrap's interval leaves out zero, the exact test is not sure.
    base = right(0.9)
    runs = [folders.run("a", base), folders.run("b", flipped(base, 0, 1, 2, 3))]
    found = compare(runs)
    (pair,) = found.pairs
    assert pair.evidence.limits.low > 0
    assert pair.verdict.p == pytest.approx(mcnemar(4, 0).mid_p) == pytest.approx(0.0625)
    assert pair.verdict.code == "undecided"
    assert "The interval leaves out zero, but the test does not bear it out." in found.verdict


def test_the_same_answers(folders):
    runs = [folders.run(name, right(0.9)) for name in "ab"]
    found = compare(runs)
    assert found.pairs[0].verdict.code == "same"
    assert found.verdict == (
        "a and b gave the same answers to all 200 examples: accuracy 0.9000 against 0.9000, difference "
        "0.0000 (95 % interval 0.0000 to 0.0000)."
    )


def test_nothing_rests_on_a_bootstrap_of_a_few_examples(tmp_path):
    from compared_folders import Folders

    few = Folders(tmp_path, n=12)
    runs = [few.run("a", right(1.0, 12)), few.run("b", right(0.0, 12))]
    assert compare(runs, metric="accuracy").pairs[0].verdict.code == "better"
    found = compare(runs, metric="f1")
    assert found.pairs[0].verdict.code == "unknown"
    assert "12 examples are too few for a bootstrap: it needs 20." in found.verdict


def test_other_metrics_by_the_bootstrap_alone(folders):
    runs = [folders.run("a", right(0.9)), folders.run("b", right(0.7))]
    found = compare(runs, metric="nll")
    (pair,) = found.pairs
    assert not found.larger_is_better
    assert pair.evidence.test_examples == "paired bootstrap"
    assert (pair.verdict.code, pair.verdict.better) == ("better", "a")
    gain = 0.2 * math.log(0.8 / 0.2)
    assert pair.evidence.difference == pytest.approx(-gain)
    f1 = compare(runs, metric="f1").pairs[0]
    assert f1.verdict.better == "a"
    assert f1.evidence.over_examples.low < f1.evidence.difference < f1.evidence.over_examples.high


def test_a_model_that_returned_nan_is_not_compared(folders):
    lines = folders.lines(right(0.9))
    lines[3] |= {"prediction": None, "probabilities": {"no": math.nan, "yes": math.nan}}
    bad = folders.run("bad", None, lines=lines, metrics={"accuracy": math.nan})
    found = compare([folders.run("a", right(0.9)), bad])
    assert found.pairs[0].verdict.code == "unknown"
    assert "A value is missing or NaN" in found.verdict


def test_a_metric_that_cannot_be_computed_again_needs_several_runs(folders):
    def runs(name, values):
        return [
            folders.run(f"{name}{i}", right(0.9), seed=i, metrics={"auroc": value})
            for i, value in enumerate(values)
        ]

    one, two = runs("a", [0.9, 0.91, 0.92, 0.93]), runs("b", [0.8, 0.81, 0.82, 0.83])
    alone = compare([one[0], two[0]], metric="auroc")
    assert alone.pairs[0].verdict.code == "unknown"
    assert "compare several runs of each" in alone.verdict
    both = compare({"a": one, "b": [*two[1:], folders.run("c", right(0.9), metrics={"auroc": 0.8})]},
                   metric="auroc")  # fmt: skip
    assert both.pairs[0].evidence.scope == "runs"
    assert "This holds for these examples; for others nothing is known." in both.verdict


def test_a_run_whose_files_contradict_each_other_is_noted(folders):
    odd = folders.run("odd", right(0.9), metrics={"accuracy": 0.5})
    found = compare([folders.run("a", right(0.9)), odd])
    assert "report.json says accuracy 0.5000, its predictions give 0.9000" in found.notes[0]


# --- Margins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "margin", "code", "said"),
    [
        (
            (0.9, 0.6),
            0.1,
            "better-by-margin",
            "a is better than b by more than the margin of 0.1000",
        ),
        ((0.9, 0.6), 0.3, "better", "Whether by more than the margin is not shown."),
        ((0.9, 0.86), 0.2, "equivalent", "a is better, but by less than the margin."),
        ((0.9, 0.9), 0.2, "equivalent", "a and b are equivalent within the margin of 0.2000"),
        ((0.9, 0.88), 0.035, "not-worse", "a is no worse than b by more than the margin of 0.0350"),
        ((0.88, 0.9), 0.035, "not-worse", "b is no worse than a by more than the margin of 0.0350"),
        ((0.9, 0.9), 0.01, "undecided", "No difference between a and b is shown"),
    ],
)
def test_margins(shares, margin, code, said, folders):
    # Where both are alike, they err on different examples.
    apart = 6 if shares[0] == shares[1] else 0
    runs = [
        folders.run("a", right(shares[0])),
        folders.run("b", right(shares[1], first=apart)),
    ]
    found = compare(runs, margin=margin)
    assert found.pairs[0].verdict.code == code
    assert said in found.verdict


def test_equivalence_is_two_one_sided_tests(folders):
    runs = [folders.run("a", right(0.9)), folders.run("b", right(0.9, first=6))]
    (pair,) = compare(runs).pairs
    wide, limits = pair.evidence.limits_90, pair.evidence.limits
    assert (wide.level, limits.level) == pytest.approx((0.9, 0.95))
    assert compare(runs, margin=wide.high + 1e-6).pairs[0].verdict.code == "equivalent"
    assert compare(runs, margin=wide.high - 1e-6).pairs[0].verdict.code != "equivalent"


# --- Groups of runs ------------------------------------------------------------------------------


def group(folders, name, shares, seeds=None):
    """Write runs that are right by chance, each with its own seed and share."""
    return [
        folders.run(f"{name}{i}", noisy(share, hash_of(name, i)), seed=seeds[i] if seeds else i)
        for i, share in enumerate(shares)
    ]


def hash_of(name, i):
    return [ord(letter) for letter in name] + [i]


def test_paired_seeds(folders):
    one, two = group(folders, "a", [0.9] * 7), group(folders, "b", [0.7] * 7)
    found = compare({"a": one, "b": two})
    (pair,) = found.pairs
    runs = pair.evidence.over_runs
    assert (runs.test, runs.pairs, runs.p) == ("paired permutation", 7, 2 / 128)
    assert (pair.verdict.code, pair.verdict.better) == ("better", "a")
    assert pair.evidence.scope == "examples and runs"
    assert "Over 7 pairs of runs, paired permutation: p = 0.016." in found.verdict
    assert "One run each" not in found.verdict
    assert set(pair.evidence.effects) == {
        "Cohen's h",
        "Hedges' g over runs",
        "Cliff's delta over runs",
    }
    assert pair.evidence.effects["Cliff's delta over runs"].value == 1


def test_limits_over_examples_and_runs_add_both_errors(folders):
    one, two = group(folders, "a", [0.9] * 5), group(folders, "b", [0.7] * 5)
    (pair,) = compare({"a": one, "b": two}).pairs
    scores = [np.array(g.values) for g in compare({"a": one, "b": two}).groups]
    gaps = scores[0] - scores[1]
    over_runs = gaps.std(ddof=1) / math.sqrt(5)
    right_of = [[noisy(s, hash_of(n, i)) for i in range(5)] for n, s in (("a", 0.9), ("b", 0.7))]
    by_example = np.mean(right_of[0], axis=0) - np.mean(right_of[1], axis=0)
    over_examples = by_example.std() / math.sqrt(200)
    error = math.hypot(over_runs, over_examples)
    freedom = error**4 / (over_runs**4 / 4 + over_examples**4 / 199)
    half = stats.t.ppf(0.975, freedom) * error
    assert pair.evidence.limits.low == pytest.approx(gaps.mean() - half, rel=0.02)
    assert pair.evidence.limits.high == pytest.approx(gaps.mean() + half, rel=0.02)


def test_too_few_pairs_cannot_show_anything_and_it_says_how_many_would(folders):
    one, two = group(folders, "a", [0.95] * 3), group(folders, "b", [0.5] * 3)
    found = compare({"a": one, "b": two})
    assert found.pairs[0].evidence.over_runs.p == 0.25
    assert found.pairs[0].verdict.code == "undecided"
    assert "So few runs cannot give a p below 0.2500: 6 pairs are the least." in found.verdict


def test_other_seeds_are_not_paired(folders):
    one = group(folders, "a", [0.9] * 4)
    two = group(folders, "b", [0.7] * 4, seeds=[10, 11, 12, 13])
    found = compare({"a": one, "b": two})
    runs = found.pairs[0].evidence.over_runs
    assert (runs.test, runs.pairs, runs.p) == ("permutation", 0, pytest.approx(2 / 70))
    assert "Over 4 against 4 runs, permutation: p = 0.029." in found.verdict
    few = compare({"a": one[:3], "b": two[:3]})
    assert "4 runs in each group are the least" in few.verdict


def test_runs_that_agree_on_too_few_examples_may_be_turned_round(tmp_path):
    from compared_folders import Folders

    few = Folders(tmp_path, n=10)
    one = [few.run(f"a{i}", right(0.6, 10), seed=i) for i in range(6)]
    two = [few.run(f"b{i}", right(0.5, 10), seed=i) for i in range(6)]
    found = compare({"a": one, "b": two})
    assert found.pairs[0].evidence.over_runs.p == 2 / 64
    assert found.pairs[0].verdict.code == "undecided"
    assert "other examples may turn it round" in found.verdict


def test_limits_over_runs_alone_show_nothing(folders):
    """Five pairs for and one against: the limits leave out zero, and the exact test is not sure."""
    one = [folders.run(f"a{i}", right(0.7), seed=i) for i in range(6)]
    shares = [0.6] * 5 + [0.71]
    two = [folders.run(f"b{i}", right(share), seed=i) for i, share in enumerate(shares)]
    found = compare({"a": one, "b": two})
    (pair,) = found.pairs
    assert pair.evidence.over_runs.p == 4 / 64
    assert pair.evidence.limits.low > 0
    assert pair.verdict.code == "undecided"
    assert "The interval leaves out zero, but the test does not bear it out." in found.verdict


def test_a_group_against_a_single_run_speaks_of_these_models(folders):
    one = group(folders, "a", [0.9] * 4)
    found = compare({"a": one, "b": [folders.run("b", noisy(0.6, 0))]})
    assert found.pairs[0].evidence.over_runs is None
    assert found.pairs[0].verdict.code == "better"
    assert "One of both is a single run: this speaks of these models" in found.verdict


# --- Studies -------------------------------------------------------------------------------------


def study(folders, name, base, data, seed=0.01, d=4, s=4):
    rng = np.random.default_rng(hash_of(name, 0))
    rows, columns = rng.normal(0, data, d), rng.normal(0, seed, s)
    return folders.study(
        name,
        [[rng.random(200) < base + rows[i] + columns[j] for j in range(s)] for i in range(d)],
    )


def test_a_crossed_study_is_not_taken_for_independent_runs(folders):
    one, two = study(folders, "a", 0.8, 0.1), study(folders, "b", 0.7, 0.1)
    found = compare([one, two])
    runs = found.pairs[0].evidence.over_runs
    assert (runs.test, runs.pairs) == ("t of the crossed study", 16)
    table = np.array(found.groups[0].values) - np.array(found.groups[1].values)
    expected = crossed_mean(table.reshape(4, 4))
    assert (runs.p, runs.error) == pytest.approx((expected.p, expected.error))
    # Limits of effect sizes that need independent runs are left out.
    assert math.isnan(found.pairs[0].evidence.effects["Hedges' g over runs"].low)
    assert "take this p for a rough one" in found.spread.sentence


def test_a_study_with_a_failed_run_is_tested_by_its_full_rows(folders):
    rights = [[noisy(0.8, [i, j]) for j in range(3)] for i in range(3)]
    others = [[noisy(0.7, [9, i, j]) for j in range(3)] for i in range(3)]
    others[2][1] = None
    found = compare([folders.study("a", rights), folders.study("b", others)])
    runs = found.pairs[0].evidence.over_runs
    assert (runs.test, runs.pairs) == ("t of the crossed study", 8)
    gaps = [[a.mean() - b.mean() for a, b in zip(*rows, strict=True)]
            for rows in zip(rights[:2], others[:2], strict=True)]  # fmt: skip
    assert runs.error == pytest.approx(crossed_mean(gaps).error)


def test_a_study_with_holes_everywhere_counts_one_value_a_row(folders):
    def holes(*key):
        rights = [[noisy(0.8, [*key, i, j]) for j in range(3)] for i in range(3)]
        for i in range(3):
            rights[i][i] = None
        return rights

    found = compare([folders.study("a", holes(1)), folders.study("b", holes(2))])
    runs = found.pairs[0].evidence.over_runs
    assert (runs.test, runs.pairs, runs.freedom) == ("t of the study's means", 6, 2)


def test_studies_of_other_seeds(folders):
    one = study(folders, "a", 0.9, 0.01)
    rights = [[noisy(0.6, [i, j]) for j in range(4)] for i in range(4)]
    for i, j in itertools.product(range(4), range(4)):
        folders.run(f"b/runs/{i}{j}", rights[i][j], seed=100 + j, data=f"data {i}")
    (folders.root / "b/study.json").write_text("{}")
    found = compare([one, folders.root / "b"])
    runs = found.pairs[0].evidence.over_runs
    assert (runs.test, runs.pairs) == ("t of two studies", 0)
    parts = [crossed_mean(np.array(g.values).reshape(4, 4)) for g in found.groups]
    assert runs.error == pytest.approx(math.hypot(*(part.error for part in parts)))
    assert found.pairs[0].verdict.better == "a"


# --- Spread --------------------------------------------------------------------------------------


def test_spread_and_the_runs_it_would_take(folders):
    one = group(folders, "a", [0.8] * 5)
    two = group(folders, "b", [0.8] * 5)
    found = compare({"a": one, "b": two})
    scores = [g.values for g in found.groups]
    assert found.spread.p == pytest.approx(stats.levene(*scores, center="median").pvalue)
    (pair,) = found.spread.pairs
    deviations = {g.name: np.std(g.values, ddof=1) for g in found.groups}
    assert pair.ratio.value == pytest.approx(deviations[pair.wider] / deviations[pair.narrower])
    assert pair.ratio.value >= 1
    assert pair.needed_ratio == pytest.approx(2.53, abs=0.005)
    assert found.spread.sentence.startswith(
        "No difference in spread is shown, and none is ruled out"
    )
    assert f"about {pair.needed_runs} runs each would be needed" in found.spread.sentence


def test_a_spread_that_is_larger(folders):
    steady = [folders.run(f"s{i}", right(0.8 + i / 200), seed=i) for i in range(8)]
    wild = [folders.run(f"w{i}", right(0.45 + i / 20), seed=i) for i in range(8)]
    found = compare({"steady": steady, "wild": wild})
    assert found.spread.sentence.startswith("The scores of wild scatter more than those of steady")
    assert found.spread.pairs[0].wider == "wild"


def test_there_is_no_spread_of_two_runs(folders):
    one, two = group(folders, "a", [0.8] * 2), group(folders, "b", [0.8] * 2)
    assert compare({"a": one, "b": two}).spread is None


def test_groups_that_do_not_scatter(folders):
    one = [folders.run(f"a{i}", right(0.8), seed=i) for i in range(3)]
    two = [folders.run(f"b{i}", right(0.6), seed=i) for i in range(3)]
    found = compare({"a": one, "b": two})
    assert "The spread over runs cannot be compared" in found.spread.sentence
    assert found.groups[0].disagreement == 0


# --- Three and more ------------------------------------------------------------------------------


def test_three_single_runs(folders):
    runs = [
        folders.run("a", noisy(0.95, 1)),
        folders.run("b", noisy(0.75, 2)),
        folders.run("c", noisy(0.72, 3)),
    ]
    found = compare(runs)
    assert found.many.blocks == "examples"
    table = np.array([noisy(0.95, 1), noisy(0.75, 2), noisy(0.72, 3)]).astype(int)
    assert found.many.friedman.p == pytest.approx(stats.friedmanchisquare(*table).pvalue)
    assert found.verdict.startswith(
        "a is better than all others. Friedman over 200 examples: p < 0.001"
    )
    assert [p.verdict.code for p in found.pairs] == ["better", "better", "undecided"]
    # Each two share the chance of a false alarm.
    assert found.pairs[0].evidence.limits.level == pytest.approx(1 - 0.05 / 3)
    assert found.pairs[2].verdict.p >= found.pairs[2].evidence.p
    assert [p.verdict.p for p in found.pairs] == pytest.approx(
        holm([p.evidence.p for p in found.pairs])
    )


def test_three_groups_over_the_same_seeds(folders):
    groups = {
        name: group(folders, name, [share] * 6)
        for name, share in zip("abc", (0.9, 0.7, 0.7), strict=True)
    }
    found = compare(groups)
    assert (found.many.blocks, found.many.friedman.blocks) == ("seeds", 6)
    scores = [g.values for g in found.groups]
    assert found.many.friedman.p == pytest.approx(stats.friedmanchisquare(*scores).pvalue)
    assert "Friedman over 6 seeds" in found.verdict
    assert {section["id"] for section in found.sections} >= {"comparison", "comparison-many"}


def test_three_groups_of_few_seeds_are_ranked_within_examples(folders):
    groups = {name: group(folders, name, [0.8] * 2) for name in "abc"}
    found = compare(groups)
    assert found.many.blocks == "examples"
    said = "Ranked within examples, this speaks of these runs, not of other seeds."
    assert found.many.sentence.endswith(said)
    assert found.as_json()["title"] == "a, b and c"
    single = compare([each[0] for each in groups.values()])
    assert said not in single.many.sentence


def test_three_that_do_not_differ(folders):
    runs = [folders.run(name, noisy(0.8, i)) for i, name in enumerate("abc")]
    found = compare(runs)
    assert found.verdict.startswith("No difference between any two of")
    assert "that any of them differ is not shown" in found.verdict


def test_no_best_of_three(folders):
    runs = [
        folders.run("a", noisy(0.9, 1)),
        folders.run("b", noisy(0.88, 2)),
        folders.run("c", noisy(0.5, 3)),
    ]
    verdict = compare(runs).verdict
    assert verdict.startswith("No one is shown to be better than all others; ")
    assert "Shown to be better: a than c; b than c." in verdict or "b than c; a than c." in verdict


# --- Probes --------------------------------------------------------------------------------------


def test_probe_views_with_predictions_are_paired(folders):
    views = ["typos@0.1", "typos@0.2"]
    a = folders.run("a", right(0.9), views=dict(zip(views, [right(0.85), right(0.8)], strict=True)))
    b = folders.run("b", right(0.9), views=dict(zip(views, [right(0.84), right(0.5)], strict=True)))
    found = compare([a, b])
    assert [(v.evidence.view, v.verdict.code) for v in found.views] == [
        ("typos@0.1", "undecided"),
        ("typos@0.2", "better"),
    ]
    assert found.views[1].verdict.p == pytest.approx(2 * mcnemar(60, 0).mid_p)  # Holm over both
    probes = next(s for s in found.sections if s["id"] == "comparison-probes")
    assert probes["summary"] == (
        "On 2 probe views of a and b: a is better on 1, on 1 no difference is shown."
    )
    curve = next(block for block in probes["blocks"] if block["kind"] == "lines")
    assert curve["x"] == {"label": "severity", "values": [0.0, 0.1, 0.2]}
    assert {s["name"]: s["values"] for s in curve["series"]} == {
        "a": pytest.approx([0.9, 0.85, 0.8]),
        "b": pytest.approx([0.9, 0.84, 0.5]),
    }


def test_the_curve_of_a_probe_starts_at_the_clean_value_on_its_own_examples(folders):
    """A probe of 50 of 200 examples, on which these models are better and worse than on all."""
    part = range(50)
    first = np.arange(200) < 100
    clean = {"a": first, "b": ~first}
    for name, flags in clean.items():
        seen = folders.lines(flags)[: len(part)]
        folders.run(name, flags, views={"typos@0.2": seen, "typos@0.4": seen, "blur": seen})
    found = compare([folders.root / name for name in clean])
    assert [group.values for group in found.groups] == [(0.5,), (0.5,)]
    probes = next(s for s in found.sections if s["id"] == "comparison-probes")
    (curve,) = [block for block in probes["blocks"] if block["kind"] == "lines"]
    assert curve["x"]["values"] == [0.0, 0.2, 0.4]
    assert {s["name"]: s["values"] for s in curve["series"]} == {
        "a": [1.0, 1.0, 1.0],
        "b": [0.0, 0.0, 0.0],
    }
    assert {v.evidence.view for v in found.views} == {"typos@0.2", "typos@0.4", "blur"}


def test_the_curve_of_totals_starts_at_the_clean_value_on_all(folders):
    runs = [folders.run(name, right(0.9), views={"typos@1": {"accuracy": 0.6}}) for name in "ab"]
    probes = next(s for s in compare(runs).sections if s["id"] == "comparison-probes")
    curve = next(block for block in probes["blocks"] if block["kind"] == "lines")
    assert [s["values"] for s in curve["series"]] == [pytest.approx([0.9, 0.6])] * 2
    assert probes["summary"].endswith(": no difference is shown on any.")


def test_one_view_alone(folders):
    runs = [
        folders.run("a", right(0.9), views={"typos@1": right(0.5)}),
        folders.run("b", right(0.5), views={"typos@1": right(0.9)}),
    ]
    found = compare(runs, view="typos@1")
    assert found.view == "typos@1"
    assert (found.pairs[0].verdict.better, found.views) == ("b", ())
    assert "accuracy on typos@1 0.5000 against 0.9000" in found.verdict
    assert compare(runs).pairs[0].verdict.better == "a"


def test_a_view_of_which_only_totals_are_known(folders):
    runs = [
        folders.run("a", right(0.9), views={"noise@1": {"accuracy": 0.85, "f1": 0.8}}),
        folders.run("b", right(0.9), views={"noise@1": {"accuracy": 0.65, "f1": 0.6}}),
    ]
    (view,) = compare(runs).views
    assert (view.evidence.examples, view.evidence.test_examples) == (0, "unpaired proportions")
    table = [[170, 30], [130, 70]]
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert view.evidence.p == pytest.approx(expected)
    assert view.verdict.better == "a"
    assert "without predictions of this view examples cannot be paired" in view.verdict.sentence
    alone = compare(runs, view="noise@1")
    assert "There are no predictions of the view noise@1" in alone.notes[0]
    assert compare(runs, metric="f1").views[0].verdict.code == "unknown"


def test_views_over_several_runs(folders):
    def runs(name, values):
        return [
            folders.run(f"{name}{i}", right(0.9), seed=i, views={"noise@1": {"accuracy": value}})
            for i, value in enumerate(values)
        ]

    one, two = runs("a", np.linspace(0.8, 0.86, 7)), runs("b", np.linspace(0.6, 0.68, 7))
    (view,) = compare({"a": one, "b": two}).views
    assert (view.evidence.scope, view.evidence.over_runs.p) == ("runs", 2 / 128)
    assert view.verdict.better == "a"


def test_views_that_not_all_have_are_left_out(folders):
    a = folders.run("a", right(0.9), views={"typos@1": right(0.8), "noise@1": right(0.8)})
    b = folders.run("b", right(0.9), views={"noise@1": right(0.7)})
    assert [v.evidence.view for v in compare([a, b]).views] == ["noise@1"]


# --- Regression ----------------------------------------------------------------------------------


def test_numbers_are_compared_by_the_bootstrap(folders):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)

    def lines(noise):
        answers = truth + rng.normal(0, noise, 200)
        pairs = zip(answers.tolist(), truth.tolist(), strict=True)
        return [{"row": i, "prediction": p, "label": t} for i, (p, t) in enumerate(pairs)]

    runs = [folders.run("near", None, lines=lines(0.3)), folders.run("far", None, lines=lines(1.0))]
    found = compare(runs)
    (pair,) = found.pairs
    assert (found.metric, found.larger_is_better) == ("mse", False)
    assert (pair.verdict.code, pair.verdict.better) == ("better", "near")
    assert pair.evidence.mcnemar is None
    assert "Cohen's dz over examples" in pair.evidence.effects
    assert compare(runs, metric="pearson").pairs[0].verdict.better == "near"
    third = folders.run("third", None, lines=lines(1.0))
    many = compare([*runs, third]).many
    assert many.friedman.mean_ranks[0] == min(many.friedman.mean_ranks)


def test_a_study_of_one_data_set_and_a_file_of_lines(folders):
    # Nothing but run folders is needed: a study whose runs share one training set is a plain group.
    rows = [[noisy(0.9, [1, s]) for s in range(6)]]
    others = [[noisy(0.7, [2, s]) for s in range(6)]]
    found = compare([folders.study("a", rows), folders.study("b", others)])
    assert found.pairs[0].evidence.over_runs.test == "paired permutation"
    assert as_lines([]) == ""
