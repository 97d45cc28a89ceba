"""Files of behavioural tests: what they make, how each type is judged, what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from sft_engine import DataError
from sft_probes.checklist import fails
from sft_probes.checklist_file import Test as Behaviour
from sft_probes.checklist_file import read_tests

FILE = """
[[test]]
name = "negation"
type = "MFT"
label = "neg"
texts = ["Never again."]
template = "The {thing} was not {praise}, {thing}."
words = {thing = ["film", "plot"], praise = ["good", "moving", "fine"]}

[[test]]
name = "names"
type = "INV"
replace = {Mary = ["Anna", "Wei"]}

[[test]]
name = "praise"
type = "DIR"
label = "pos"
append = ["I loved it."]
prepend = ["Great!"]
texts = ["It ran. "]
"""


def written(tmp_path, text: str, name: str = "tests.toml") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_a_file_gives_its_cases(tmp_path) -> None:
    negation, names, praise = read_tests(written(tmp_path, FILE))
    texts = [text for text, changed in negation.cases(["not asked"])]
    assert len(texts) == 7
    assert texts[:2] == ["Never again.", "The film was not good, film."]
    found = list(names.cases(["Mary met Maryam.", "Nobody."]))
    assert found == [("Mary met Maryam.", ("Anna met Maryam.", "Wei met Maryam."))]
    assert list(praise.cases([])) == [("It ran. ", ("It ran. I loved it.", "Great! It ran. "))]


def test_json_is_read_alike(tmp_path) -> None:
    import tomllib

    same = written(tmp_path, json.dumps(tomllib.loads(FILE)), "tests.json")
    assert read_tests(same) == read_tests(written(tmp_path, FILE))


@pytest.mark.parametrize(
    ("direction", "rise", "failed"),
    [
        ("up", 0.2, False),
        ("up", 0.05, True),
        ("up", -0.2, True),
        ("down", -0.2, False),
        ("down", -0.05, True),
        ("not-down", -0.05, False),
        ("not-down", -0.2, True),
        ("not-up", 0.05, False),
        ("not-up", 0.2, True),
    ],
)
def test_directions_have_a_margin(direction, rise, failed) -> None:
    test = Behaviour(name="t", type="DIR", label="pos", direction=direction)
    before = torch.tensor([0.6, 0.4])
    after = torch.tensor([0.6 - rise, 0.4 + rise])
    assert fails(test, before, after, ("neg", "pos")) == failed


def test_invariance_is_about_the_class() -> None:
    test = Behaviour(name="t", type="INV")
    one, other, third = torch.tensor([[0.9, 0.1], [0.51, 0.49], [0.49, 0.51]])
    assert not fails(test, one, other, ("neg", "pos"))
    assert fails(test, other, third, ("neg", "pos"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no list of tests"),
        ("x = ", "neither TOML nor JSON"),
        ('[[test]]\ntype = "INV"', "test 1: `name` must be a text"),
        ('[[test]]\nname = "a"\ntype = "XYZ"', r"test 1 \('a'\): `type` must be MFT, INV or DIR"),
        ('[[test]]\nname = "a"\ntype = "MFT"', "`label` must be the name of a class"),
        ('[[test]]\nname = "a"\ntype = "MFT"\nlabel = "x"', "an MFT needs `texts` or a `template`"),
        ('[[test]]\nname = "a"\ntype = "INV"', "nothing is changed"),
        ('[[test]]\nname = "a"\ntype = "INV"\nreplaces = 1', "there is no key `replaces`"),
        ('[[test]]\nname = "a"\ntype = "INV"\npairs = [["x"]]', "`pairs` must be a list of pairs"),
        ('[[test]]\nname = "a"\ntype = "INV"\nappend = "x"', "`append` must be a list of texts"),
        (
            '[[test]]\nname = "a"\ntype = "DIR"\nlabel = "x"\nappend = ["y"]\nmargin = 2',
            "`margin` must be a number from 0 to 1",
        ),
        (
            '[[test]]\nname = "a"\ntype = "DIR"\nlabel = "x"\nappend = ["y"]\ndirection = "left"',
            "`direction` must be up, down",
        ),
        (
            '[[test]]\nname = "a"\ntype = "MFT"\nlabel = "x"\ntemplate = "{b}"',
            "the place {b}, and `words` has it not",
        ),
        ('[[test]]\nname = "a"\ntype = "MFT"\nlabel = "x"\ntemplate = "{b"', "for a brace"),
        (
            '[[test]]\nname = "a"\ntype = "INV"\nappend = ["y"]\n' * 2,
            "two tests named 'a'",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_tests(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_tests(str(tmp_path / "none.toml"))
