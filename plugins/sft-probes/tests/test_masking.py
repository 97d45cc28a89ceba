"""The checks that tell masked gradients from a model that withstands an attack."""

from __future__ import annotations

import pytest

from sft_probes.masking import NAME, masking_blocks, masking_checks, masking_facts

GOOD = {"fgsm": 0.3, "noise": 0.9, "unbounded": 0.01, "flat": 0.0, "unsteady": 0.0}


def test_nothing_is_found_where_all_is_well() -> None:
    checks = masking_checks(8, 0.2, **GOOD)
    assert len(checks) == 5
    assert all(check.passed for check in checks)
    assert [block["kind"] for block in masking_blocks(checks)] == ["table"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fgsm", 0.1, "at most that of FGSM"),
        ("noise", 0.19, "random noise"),
        ("unbounded", 0.4, "64/255"),
        ("flat", 0.5, "without a gradient"),
        ("unsteady", 0.1, "two forward passes"),
        ("unbounded", float("nan"), "64/255"),
    ],
)
def test_each_sign_is_found_alone(name, value, said) -> None:
    checks = masking_checks(8, 0.2, **{**GOOD, name: value})
    (failed,) = [check for check in checks if not check.passed]
    assert said in failed.name
    _, block = masking_blocks(checks)
    (finding,) = block["findings"]
    assert finding["name"] == NAME
    assert said in finding["evidence"]
    assert all(remedy["toml"] for remedy in finding["remedies"])
    assert [fact["passed"] for fact in masking_facts(checks)].count(False) == 1


def test_what_was_not_looked_at_is_not_judged() -> None:
    assert len(masking_checks(8, 0.2, noise=0.5)) == 1
    assert masking_blocks([]) == []
