"""Attributions by closed form: a linear model, and models that look at one part alone."""

from __future__ import annotations

import base64
import io
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from sft_engine import Explained
from sft_probes.attribution import (
    NO_PART,
    Subject,
    cells,
    input_x_gradient,
    integrated_gradients,
    occlusion,
)
from sft_probes.attribution_stability import compared, figures_of, rank_correlation, top_overlap
from sft_probes.attributions import marked_text
from sft_probes.explained_inputs import _nothing
from sft_probes.heat_map import heat_map, paint

METHODS = {
    "integrated-gradients": lambda subject: integrated_gradients(subject, 5, 2),
    "input-x-gradient": input_x_gradient,
    "occlusion": lambda subject: occlusion(subject, 2),
}


def linear(weights, given, baseline, member, channel=None):
    """Return a subject whose output is the sum of weights times inputs, plus 3."""
    return Subject(
        given=given,
        baseline=baseline,
        member=member,
        channel=channel,
        count=int(member.max()) + 1,
        answer=lambda inputs: (inputs * weights).flatten(1).sum(dim=1) + 3,
    )


@pytest.fixture
def draws():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", METHODS)
def test_of_a_linear_model_it_is_weight_times_input(draws, name) -> None:
    w, x, x0 = (torch.randn(1, 6, generator=draws) for _ in range(3))
    found = METHODS[name](linear(w, x, x0, torch.arange(6)))
    wanted = w * x if name == "input-x-gradient" else w * (x - x0)
    torch.testing.assert_close(found, wanted[0].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["integrated-gradients", "occlusion"])
def test_tokens_add_up_to_words_and_what_is_no_word_stays(draws, name) -> None:
    w, x, x0 = (torch.randn(1, 5, 3, generator=draws) for _ in range(3))
    member = torch.tensor([NO_PART, 0, 1, 1, NO_PART])
    found = METHODS[name](linear(w, x, x0, member, channel=2))
    each = (w * (x - x0)).sum(dim=2)[0].double()
    wanted = torch.stack([each[1], each[2] + each[3]])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_pixels_add_up_to_cells(draws, name) -> None:
    w, x = (torch.randn(1, 3, 5, 4, generator=draws) for _ in range(2))
    member, shape = cells(5, 4, 2)
    assert shape == (2, 2)
    found = METHODS[name](linear(w, x, torch.zeros_like(x), member, channel=1))
    each = (w * x).sum(dim=1)[0].double()
    wanted = [each[:3, :2], each[:3, 2:], each[3:, :2], each[3:, 2:]]
    wanted = torch.stack([part.sum() for part in wanted])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_integrated_gradients_of_a_curved_model_are_complete(draws) -> None:
    w, x, x0 = (torch.randn(1, 4, generator=draws) for _ in range(3))
    subject = linear(w, x, x0, torch.arange(4))
    curved = Subject(
        **{**vars(subject), "answer": lambda inputs: torch.tanh(inputs * w).prod(dim=1)}
    )
    found = integrated_gradients(curved, 60, 7)
    difference = curved.value_of(x) - curved.value_of(x0)
    assert float(found.sum()) == pytest.approx(difference, abs=1e-4)


def test_occlusion_finds_the_one_part_that_is_looked_at(draws) -> None:
    x = torch.randn(1, 6, generator=draws)
    subject = linear(x, x, torch.zeros(1, 6), torch.arange(6))
    looks = Subject(**{**vars(subject), "answer": lambda inputs: inputs[:, 4] ** 2})
    found = occlusion(looks, 4)
    assert found.nonzero().flatten().tolist() == [4]
    assert float(found[4]) == pytest.approx(float(x[0, 4] ** 2))


@pytest.mark.parametrize(("height", "width", "edge"), [(7, 5, 3), (2, 2, 8), (16, 16, 8)])
def test_cells_are_a_grid_that_leaves_no_pixel_out(height, width, edge) -> None:
    member, (rows, columns) = cells(height, width, edge)
    assert (rows, columns) == (min(edge, height), min(edge, width))
    assert set(member.flatten().tolist()) == set(range(rows * columns))
    assert (member.diff(dim=0) >= 0).all()
    assert (member.diff(dim=1) >= 0).all()


@pytest.mark.parametrize(
    ("baseline", "fillers", "wanted"),
    [
        ("auto", {"pad": 0, "mask": 4}, 4),
        ("auto", {"pad": 1}, 1),
        ("pad", {"pad": 1, "mask": 4}, 1),
        ("auto", {}, None),
        ("zero", {"pad": 1}, None),
    ],
)
def test_words_are_replaced_by_what_says_nothing(baseline, fillers, wanted) -> None:
    embeddings = torch.nn.Embedding(5, 2)
    ids = torch.tensor([[2, 3, 3]])
    embedded = embeddings(ids).detach()
    run = SimpleNamespace(backbone=SimpleNamespace(fillers=fillers))
    member = torch.tensor([NO_PART, 0, 1])
    found = _nothing(run, embeddings, ids, embedded, member, baseline)
    empty = torch.zeros(2) if wanted is None else embeddings.weight[wanted]
    torch.testing.assert_close(found[0], torch.stack([embedded[0, 0], empty, empty]))


def test_a_text_of_two_inputs_is_shown_whole() -> None:
    spans = (("text", 1, 4), ("text", 6, 8), ("text_pair", 0, 2))
    each = Explained("m", "good", ("one", "<b", "of"), (1.0, -2.0, math.nan), 0.0, spans=spans)
    row = {"text": " one, <b" + "!" * 200, "text_pair": "of", "label": 1}
    found = marked_text(row, each)
    assert "".join(found["parts"]) == f" one, <b{'!' * 79}…\nof"
    scored = [p for p in zip(found["parts"], found["scores"], strict=True) if p[1] is not None]
    assert scored == [("one", 1.0), ("<b", -2.0)]


# --- Heat maps -----------------------------------------------------------------------------------


def test_a_heat_map_shows_the_sign_by_colour_and_by_stripes() -> None:
    grey = np.full((40, 40), 128.0)
    painted = paint(grey, np.array([[1.0, -1.0], [0.0, 0.5]])).astype(int)
    above, against, none, half = (painted[y : y + 20, x : x + 20] for y in (0, 20) for x in (0, 20))
    assert (none == 128).all()
    assert len(np.unique(above.reshape(-1, 3), axis=0)) == 1
    assert above[0, 0, 0] > above[0, 0, 2]  # orange
    assert len(np.unique(against.reshape(-1, 3), axis=0)) == 2  # stripes
    assert (against[..., 2] >= against[..., 0]).all()  # blue
    assert abs(half[0, 0] - 128).sum() < abs(above[0, 0] - 128).sum()


def test_a_heat_map_is_a_small_png() -> None:
    given = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0))
    uri = heat_map(given, [0.0] * 3 + [1.0], (2, 2), backbone=None)
    prefix, _, data = uri.partition(",")
    assert prefix == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.format == "PNG"
        assert picture.size == (84, 112)
    assert len(uri) < 30_000


# --- Between runs --------------------------------------------------------------------------------


def run_of(scores, rows=(3, 7), parts="abcdef", output="good"):
    return {
        "attributions": [
            {"row": row, "output": output, "parts": list(parts), "scores": list(each), "value": 0.0}
            for row, each in zip(rows, scores, strict=True)
        ]
    }


CELLS = [
    {"name": f"d{data}s{seed}", "data": data, "seed": seed}
    for data, seed in itertools.product(range(2), range(2))
]


def test_figures_are_those_of_scipy_and_of_sets() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 2, 6)).round(1)  # with ties
    found = compared([run_of(each) for each in scores])
    assert [each.row for each in found] == [3, 7]
    figures = figures_of(found, CELLS, 2)

    def tops(vector):
        return set(sorted(range(6), key=lambda i: (-abs(vector[i]), i))[:2])

    wanted = {
        (a, b, i): (
            spearmanr(scores[a, i], scores[b, i]).statistic,
            len(tops(scores[a, i]) & tops(scores[b, i])) / 2,
        )
        for a, b in itertools.combinations(range(4), 2)
        for i in range(2)
    }
    kinds = {
        "other seed, same training data": [(0, 1), (2, 3)],
        "other training data, same seed": [(0, 2), (1, 3)],
        "both differ": [(0, 3), (1, 2)],
        "all pairs of runs": list(itertools.combinations(range(4), 2)),
    }
    assert set(figures["kinds"]) == set(kinds)
    for name, pairs in kinds.items():
        values = np.array([wanted[(*pair, i)] for pair in pairs for i in range(2)])
        assert figures["kinds"][name]["pairs"] == len(pairs)
        assert figures["kinds"][name]["spearman"] == pytest.approx(values[:, 0].mean())
        assert figures["kinds"][name]["least_spearman"] == pytest.approx(values[:, 0].min())
        assert figures["kinds"][name]["overlap"] == pytest.approx(values[:, 1].mean())
    assert figures["matrix"][1][3] == pytest.approx(np.mean([wanted[1, 3, i][0] for i in range(2)]))
    mean = np.mean([wanted[(*pair, 1)][0] for pair in kinds["all pairs of runs"]])
    assert figures["by_example"][1]["spearman"] == pytest.approx(mean)


def test_equal_runs_agree_and_constant_scores_say_nothing() -> None:
    scores = np.array([[3.0, -1.0, 2.0], [3.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
    correlation = rank_correlation(scores)
    assert correlation[0, 1] == pytest.approx(1)
    assert np.isnan(correlation[0, 2])
    assert top_overlap(scores, 2)[0, 1] == 1
    assert np.isnan(top_overlap(scores, 3)).all()


def test_only_the_same_answers_by_the_same_parts_are_compared() -> None:
    scores = [[1.0, 2.0], [3.0, 4.0]]
    first = run_of(scores, parts="ab")
    assert len(compared([first, run_of(scores, parts="ab")])) == 2
    assert compared([first, run_of(scores, parts="ac")]) == []
    assert compared([first, run_of(scores, parts="ab", output="bad")]) == []
    assert [c.row for c in compared([first, run_of(scores, rows=(7, 9), parts="ab")])] == [7]
    assert compared([first, run_of([[1.0, None], [None, 1.0]], parts="ab")]) == []
