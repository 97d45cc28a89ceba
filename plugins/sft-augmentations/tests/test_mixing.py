"""mixup and CutMix against torchvision's; what is drawn; token cut-off."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import v2

from sft_augmentations.cutoff import cut_span, cut_tokens
from sft_augmentations.mixing import (
    cutmix_boxes,
    draw_partners,
    draw_shares,
    kept_outside,
    mixed,
    pasted,
    soft_targets,
)

N, CLASSES = 7, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(N, 3, 12, 10), torch.randint(CLASSES, (N,))


ROLLED = torch.arange(N).roll(1)
"""torchvision's partner of each example."""


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_mixup_is_torchvisions(monkeypatch, kept: float) -> None:
    images, label = batch()
    theirs = v2.MixUp(num_classes=CLASSES)
    monkeypatch.setattr(theirs, "make_params", lambda _: {"lam": kept})
    expected, expected_target = theirs(images, label)
    share = torch.full((N,), kept)
    torch.testing.assert_close(mixed(images, ROLLED, share), expected)
    torch.testing.assert_close(mixed(soft_targets(label, CLASSES), ROLLED, share), expected_target)


@pytest.mark.parametrize("box", [(0, 0, 10, 12), (2, 3, 7, 5), (4, 4, 4, 9)])
def test_cutmix_is_torchvisions(monkeypatch, box: tuple[int, int, int, int]) -> None:
    images, label = batch()
    left, top, right, bottom = box
    theirs = v2.CutMix(num_classes=CLASSES)
    lam = 1 - (right - left) * (bottom - top) / 120
    monkeypatch.setattr(theirs, "make_params", lambda _: {"box": box, "lam_adjusted": lam})
    expected, expected_target = theirs(images, label)
    boxes = torch.tensor([[top, left, bottom, right]]).expand(N, 4)
    kept = kept_outside(boxes, 12, 10)
    assert kept.tolist() == pytest.approx([lam] * N)
    assert torch.equal(pasted(images, ROLLED, boxes), expected)
    torch.testing.assert_close(mixed(soft_targets(label, CLASSES), ROLLED, kept), expected_target)


def test_boxes_of_each_example_are_pasted_one_by_one() -> None:
    images, _ = batch()
    boxes = cutmix_boxes(torch.rand(N), 12, 10)
    expected = images.clone()
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        expected[i, :, top:bottom, left:right] = images[ROLLED[i], :, top:bottom, left:right]
    assert torch.equal(pasted(images, ROLLED, boxes), expected)
    assert len({tuple(box) for box in boxes.tolist()}) > 1


def test_boxes_are_those_of_the_paper() -> None:
    """Where a box is not cut off, its sides are sqrt(1 - kept) of the image's, rounded down to even."""
    kept = torch.full((4000,), 0.75)
    boxes = cutmix_boxes(kept, 64, 32)
    inside = (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, 2] < 64) & (boxes[:, 3] < 32)
    whole = boxes[inside]
    assert ((whole[:, 2] - whole[:, 0]) == 32).all()
    assert ((whole[:, 3] - whole[:, 1]) == 16).all()
    assert (kept_outside(whole, 64, 32) == 0.75).all()
    assert (kept_outside(boxes, 64, 32) >= 0.75).all()
    centres = (whole[:, 0] + whole[:, 2]) / 2
    assert set(range(17, 48)) <= set(centres.int().tolist())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    drawn = draw_shares(20_000, alpha, 1.0, "example").double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(drawn.mean() - 0.5) < 4 * math.sqrt(variance / 20_000)
    assert drawn.var() == pytest.approx(variance, rel=0.05)


def test_how_often_is_the_share() -> None:
    drawn = draw_shares(20_000, 1.0, 0.3, "example")
    assert abs((drawn < 1).float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000)
    batches = torch.stack([draw_shares(3, 1.0, 0.3, "batch") for _ in range(2000)])
    assert (batches == batches[:, :1]).all()
    assert abs((batches[:, 0] < 1).float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_partners_are_a_permutation_of_those_that_take_part() -> None:
    taking_part = torch.tensor([True, False, True, True, False, True, True])
    for _ in range(20):
        partner = draw_partners(N, taking_part)
        assert sorted(partner.tolist()) == list(range(N))
        assert partner[1] == 1
        assert partner[4] == 4
    seen = {tuple(draw_partners(3).tolist()) for _ in range(200)}
    assert len(seen) == 6


def test_masked_examples_get_no_target() -> None:
    assert soft_targets(torch.tensor([1, -100, 0]), 2).tolist() == [[0, 1], [0, 0], [1, 0]]


# --- cut-off ---------------------------------------------------------------------------------------


def test_each_token_is_cut_with_the_rate() -> None:
    may = torch.rand(50, 400) < 0.5
    cut = cut_tokens(may, 0.2)
    assert not (cut & ~may).any()
    trials = int(may.sum())
    assert abs(int(cut.sum()) - 0.2 * trials) < 4 * math.sqrt(trials * 0.16)


def test_a_span_has_the_share_and_every_place() -> None:
    may = torch.zeros(3000, 14, dtype=torch.bool)
    may[:, 1:11] = True
    cut = cut_span(may, 0.3)
    assert (cut.sum(dim=1) == 3).all()
    begins = cut.int().argmax(dim=1)
    assert (cut.int().flip(1).argmax(dim=1) == 13 - begins - 2).all()  # the three are in a row
    counts = begins.bincount(minlength=9)[1:9]
    assert ((counts - 375).abs() < 4 * math.sqrt(3000 / 8 * 7 / 8)).all()


@pytest.mark.parametrize("cut", [cut_tokens, cut_span])
def test_never_all_tokens(cut) -> None:
    may = torch.tensor([[True, True, False], [False, False, False]])
    assert not cut(may, 1.0).any()
    assert not cut(may, 0.0).any()
