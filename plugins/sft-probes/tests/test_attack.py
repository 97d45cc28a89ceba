"""The greedy attack against a classifier whose answers are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sft_probes.word_substitution import WordSubstitution, attack, costs

WEIGHTS = {"great": 3.0, "good": 1.0, "fine": 0.5, "bad": -2.0}
OTHERS = {"great": ["super", "okay"], "good": ["nice"], "fine": ["bad"], "film": ["movie"]}


class Linear:
    """Logistic regression on words: positive above 0."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts):
        self.asked += texts
        scores = [sum(WEIGHTS.get(word, 0.0) for word in text.split()) - 0.1 for text in texts]
        positive = 1 / (1 + np.exp(-np.array(scores)))
        return np.stack([1 - positive, positive], axis=1)


def others(word: str, number: int) -> list[str]:
    return OTHERS.get(word, [])


def test_the_most_important_words_go_first_until_it_flips() -> None:
    """Great (3) goes, then good (1), then fine -> bad (-2.5) flips it; film is never touched."""
    ask = Linear()
    found = attack("a great good fine film", 1, ask, others, share=1.0, budget=100)
    assert found.texts == (
        "a great good fine film",
        "a super good fine film",
        "a super nice fine film",
        "a super nice bad film",
    )
    assert found.flipped
    assert found.right
    assert found.words == 5
    # One for the text, one for each word left out, then the words that were tried.
    assert found.queries == (1, 8, 9, 10)
    assert len(ask.asked) == 10


@pytest.mark.parametrize(("share", "count"), [(0.2, 1), (0.4, 2), (0.6, 3), (1.0, 3), (0.01, 1)])
def test_a_share_limits_the_words(share: float, count: int) -> None:
    whole = attack("a great good fine film", 1, Linear(), others, share=1.0, budget=100)
    limited = attack("a great good fine film", 1, Linear(), others, share=share, budget=100)
    assert whole.within(share) == count
    assert limited.texts == whole.texts[: count + 1]
    assert whole.succeeds(share) == limited.flipped == (count == 3)
    assert limited.queries[-1] == whole.queries[count]


@pytest.mark.parametrize("budget", [2, 4, 7, 9])
def test_no_more_is_asked_than_the_budget(budget: int) -> None:
    ask = Linear()
    found = attack("a great good fine film", 1, ask, others, share=1.0, budget=budget)
    assert len(ask.asked) <= budget
    assert found.queries[-1] == len(ask.asked)


def test_what_is_wrong_already_is_left_alone() -> None:
    ask = Linear()
    found = attack("a bad film", 1, ask, others, share=1.0, budget=100)
    assert found.texts == ("a bad film",)
    assert not found.right
    assert len(ask.asked) == 1


@pytest.mark.parametrize("text", ["", "  ", "<br/><script>x</script>", "film film"])
def test_texts_without_anything_to_replace(text: str) -> None:
    found = attack(text, 0, Linear(), lambda *_: [], share=1.0, budget=50)
    assert found.texts == (text,)
    assert not found.flipped


def test_costs_are_means_over_what_was_right() -> None:
    texts = ["a great good fine film", "fine film", "a bad film"]
    found = [attack(t, 1, Linear(), others, share=1.0, budget=100) for t in texts]
    numbers = costs(found, 1.0)
    assert numbers["success-rate"] == 1.0
    assert numbers["perturbed"] == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert numbers["queries"] == pytest.approx((10 + 4) / 2)
    assert costs(found, 0.2)["success-rate"] == 0.5
    assert math.isnan(costs(found[2:], 1.0)["success-rate"])


def test_candidates_are_those_of_the_example_and_the_word() -> None:
    probe = WordSubstitution()
    probe.check()
    found = probe._candidates("movie,", 3, 1)
    assert found[:2] == ["film,", "picture,"]
    assert found == probe._candidates("movie,", 3, 1)
    typos = found[2:]
    assert len(typos) == 4
    assert all(abs(len(typo) - 6) <= 1 and typo != "movie," for typo in typos)
    assert typos != probe._candidates("movie,", 4, 1)[2:]
    assert probe._candidates("...", 0, 0) == ["..."] * 4
