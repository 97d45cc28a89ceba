from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types as at
import pytest

from sft_engine.options import allowed, check_options
from sft_engine.recipe import Problem
from sft_engine.signatures import REQUIRED, Option, Signature, argument_help, signature_of


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write modules that can be imported, and say whether one of them was."""

    class Modules:
        def write(self, text: str, name: str = "acme") -> None:
            path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")

        def imported(self) -> bool:
            return any(name.split(".")[0].startswith("acme") for name in sys.modules)

    monkeypatch.syspath_prepend(tmp_path)
    yield Modules()
    for name in [name for name in sys.modules if name.split(".")[0].startswith("acme")]:
        del sys.modules[name]


def read(target: str) -> dict[str, tuple[Any, Any]]:
    return {o.name: (o.annotation, o.default) for o in signature_of(target).options}


# --- Signatures, read from source ------------------------------------------------------------------


def test_a_constructor_is_read_without_importing_its_module(module):
    module.write(
        '''
        from __future__ import annotations
        import torch_that_is_not_installed
        from collections.abc import Mapping
        from pathlib import Path
        from typing import Annotated, Literal
        from annotated_types import Gt

        class Pull:
            """Pull weights towards their start.

            Args:
                alpha: Strength, which is
                    multiplied by the learning rate.
                norm (str): Which distance.
            """

            def __init__(self, alpha: Annotated[float, Gt(0)], norm: Literal["l1", "l2"] = "l2", *,
                         names: tuple[str, ...] = (), scales: Mapping[str, float] | None = None,
                         folder: Path | None = None, bare=-3, big: int = 2**40) -> None: ...
        '''
    )
    signature = signature_of("acme:Pull")
    assert not module.imported()
    assert signature.summary == "Pull weights towards their start."
    assert not signature.open
    assert [o.help for o in signature.options[:3]] == [
        "Strength, which is multiplied by the learning rate.",
        "Which distance.",
        "",
    ]
    found = read("acme:Pull")
    assert found["alpha"] == (Annotated[float, at.Gt(0)], REQUIRED)
    assert found["norm"] == (Literal["l1", "l2"], "l2")
    assert found["names"] == (tuple[str, ...], ())
    assert found["folder"] == (Path | None, None)
    assert found["bare"] == (Any, -3)
    assert found["big"] == (int, 2**40)


def test_aliases_and_constants_are_followed_through_modules(module):
    module.write(
        """
        import typing as t
        import annotated_types as at
        Positive = t.Annotated[float, at.Gt(0)]
        RATE = 1e-3
        """,
        "acme_types",
    )
    module.write(
        """
        import torch_that_is_not_installed
        from acme_types import Positive as P, RATE
        HALF = RATE / 2
        class Pull:
            def __init__(self, lr: P = HALF, other: "P | None" = None): ...
        """
    )
    found = read("acme:Pull")
    assert found["lr"] == (Annotated[float, at.Gt(0)], 5e-4)
    assert found["other"] == (Annotated[float, at.Gt(0)] | None, None)
    assert not module.imported()


def test_a_class_is_found_where_its_package_takes_it_from(module):
    module.write("from .pull import Pull\nfrom acme.push import Push", "acme.__init__")
    module.write(
        "import nothing_such\nclass Pull:\n    def __init__(self, a: int = 1): ...", "acme.pull"
    )
    module.write("from .pull import Pull\nclass Push(Pull): ...", "acme.push")
    assert read("acme:Pull") == read("acme:Push") == {"a": (int, 1)}
    assert not module.imported()


def test_dataclass_fields_are_options_those_of_its_bases_first(module):
    module.write(
        '''
        import nothing_such
        from dataclasses import KW_ONLY, InitVar, dataclass, field
        from typing import ClassVar

        @dataclass
        class Base:
            """Base.

            Args:
                first: From the base.
            """
            first: int
            shared: float = 0.5

        @dataclass(frozen=True)
        class Pull(Base):
            """Pull.

            Args:
                tags: Own.
            """
            kinds: ClassVar[int] = 3
            _: KW_ONLY
            shared: float = 0.7
            tags: dict[str, int] = field(default_factory=dict)
            state: int = field(default=0, init=False)
            start: InitVar[int] = 4
        '''
    )
    assert read("acme:Pull") == {
        "first": (int, REQUIRED),
        "shared": (float, 0.7),
        "tags": (dict[str, int], {}),
        "start": (int, 4),
    }
    helps = {o.name: o.help for o in signature_of("acme:Pull").options}
    assert (helps["first"], helps["tags"]) == ("From the base.", "Own.")
    assert not module.imported()


def test_a_constructor_may_be_inherited_and_may_take_anything_more(module):
    module.write(
        """
        import nothing_such
        from typing import Generic, Protocol, TypeVar
        T = TypeVar("T")
        class Shape(Protocol): ...
        class Base(Shape, Generic[T]):
            def __init__(self, lr: float = 1.0, **more): ...
        class Pull(Base[int]): ...
        """
    )
    signature = signature_of("acme:Pull")
    assert signature.names == ("lr",)
    assert signature.open
    assert not module.imported()


def test_a_class_without_constructor_has_no_options(module):
    module.write("import nothing_such\nclass Pull: ...")
    assert signature_of("acme:Pull").options == ()


def test_functions_have_signatures_too_and_options_can_be_skipped(module):
    module.write(
        'def pull(a: int, b: str = "x"):\n    """Pull.\n\n    Args:\n        b: Bee.\n    """'
    )
    assert signature_of("acme:pull", skip=("a",)).options == (Option("b", str, "x", "Bee."),)


@pytest.mark.parametrize(
    "source",
    [
        "import math as m\nclass Pull:\n    def __init__(self, a: int = int(m.sqrt(16)) + len('')): ...",
        "def made(cls):\n    return cls\n@made\nclass Pull:\n    def __init__(self, a: int = 4): ...",
        (
            "def make():\n    class Pull:\n        def __init__(self, a: int = 4): ...\n    return Pull\n"
            "Pull = make()"
        ),
        (
            "from dataclasses import dataclass, field\n@dataclass\nclass Pull:\n"
            "    a: int = field(default_factory=lambda: 4)"
        ),
        (
            "import types\nclass Base:\n    def __init__(self, a: int = 4): ...\n"
            "space = types.SimpleNamespace(Base=Base)\nclass Pull(space.Base): ..."
        ),
        "from typing import NamedTuple\nclass Pull(NamedTuple):\n    a: int = 4",
        "from pydantic import BaseModel\nclass Pull(BaseModel):\n    a: int = 4",
    ],
    ids=["default", "decorator", "factory", "field", "base", "namedtuple", "model"],
)
def test_what_source_does_not_tell_is_imported(module, source):
    module.write(source)
    assert read("acme:Pull") == {"a": (int, 4)}
    assert module.imported()


def test_an_imported_annotation_that_exists_for_type_checkers_only_allows_anything(module):
    module.write(
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from nothing_such import Tensor
        class Pull:
            def __init__(self, a: Tensor = None, b: int = 2): ...
        """
    )
    assert read("acme:Pull") == {"a": (Any, None), "b": (int, 2)}


def test_an_import_that_fails_says_why(module):
    module.write("import nothing_such\nmade = nothing_such.make()")
    with pytest.raises(ModuleNotFoundError, match="nothing_such"):
        signature_of("acme:made")


def test_help_ends_with_the_args_block():
    text = """Do it.

    Args:
        one: First
            line: with a colon.
        **more: Others.

    Returns:
        two: no argument.
    """
    assert argument_help(text) == {"one": "First line: with a colon.", "more": "Others."}


# --- Words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number"),
        (bool, "true or false"),
        (Annotated[float, at.Gt(0)], "a number greater than 0"),
        (Annotated[float, at.Ge(0), at.Lt(1)], "a number of at least 0 and less than 1"),
        (Annotated[int, at.Interval(ge=1, le=9)], "a whole number of at least 1 and at most 9"),
        (Annotated[str, at.MinLen(1)], "a string of at least 1 long"),
        (Annotated[int, object()], "a whole number"),
        (Literal["a", "b", 3], '"a", "b" or 3'),
        (str | dict[str, str], "a string or a table of strings"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[Annotated[float, at.Ge(0)], ...], "a list of numbers, each at least 0"),
        (tuple[int, str], "a list of a whole number, a string"),
        (list[dict[str, int]], "a list of items, each a table of whole numbers"),
        (dict[str, Any], "a table of any values"),
        (list, "a list"),
        (Path, "a path"),
        (Any, "any value"),
        (complex, "a value of type complex"),
    ],
)
def test_annotations_are_said_in_words(annotation, words):
    assert allowed(annotation) == words


# --- Options against a signature -------------------------------------------------------------------

PULL = Signature(
    "acme:Pull",
    (
        Option("alpha", Annotated[float, at.Gt(0)], REQUIRED, "Strength."),
        Option("betas", tuple[float, float], (0.9, 0.99)),
        Option("steps", int | None, None),
        Option("norm", Literal["l1", "l2"], "l2"),
        Option("folder", Path | None, None),
        Option("names", dict[str, str], {}),
        Option("copy", bool, default=False),
    ),
)


def check(options, signature=PULL):
    return check_options(signature, options, key="regularizer[0]", owner='regularizer "pull"')


def test_good_options_come_back_with_defaults_and_their_types():
    checked, problems = check({"alpha": 1, "betas": [0, 0.5], "folder": "a/b", "copy": True})
    assert problems == []
    assert checked == {
        "alpha": 1.0,
        "betas": (0.0, 0.5),
        "steps": None,
        "norm": "l2",
        "folder": Path("a/b"),
        "names": {},
        "copy": True,
    }
    assert type(checked["alpha"]) is float
    assert type(checked["betas"]) is tuple


def test_defaults_are_not_shared():
    first, _ = check({"alpha": 1})
    first["names"]["x"] = "y"
    second, _ = check({"alpha": 1})
    assert second["names"] == {}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"alpha": "32"}, ("alpha", 'found "32", allowed: a number greater than 0')),
        ({"alpha": 0}, ("alpha", "found 0, allowed: a number greater than 0")),
        ({"alpha": True}, ("alpha", "found true, allowed: a number greater than 0")),
        ({"alpha": 1, "steps": 1.0}, ("steps", "found 1.0, allowed: a whole number")),
        ({"alpha": 1, "betas": [0.9]}, ("betas", "found [0.9], allowed: a list of 2 numbers")),
        ({"alpha": 1, "norm": "l3"}, ("norm", 'found "l3", allowed: "l1" or "l2"')),
        ({"alpha": 1, "copy": 1}, ("copy", "found 1, allowed: true or false")),
        ({"alpha": 1, "names": {"a": 1}}, ("names", 'found {"a": 1}, allowed: a table of strings')),
        ({}, ("alpha", "missing, needed: a number greater than 0", "its help says: Strength.")),
        (
            {"alpha": 1, "step": 1},
            (
                "step",
                'regularizer "pull" has no such option',
                (
                    "did you mean `steps`? Allowed: `alpha`, `betas`, `steps`, `norm`, `folder`, "
                    "`names`, `copy`"
                ),
            ),
        ),
    ],
)
def test_each_problem_has_a_key_and_a_sentence(options, problem):
    name, *rest = problem
    assert check(options) == ({}, [Problem(f"regularizer[0].{name}", *rest)])


def test_all_problems_are_found_and_a_union_reports_once():
    signature = Signature("a:B", (Option("x", int | tuple[int, ...], 1), Option("y", int, 1)))
    _, problems = check({"x": "a", "y": "b", "z": 1}, signature)
    assert [p.key for p in problems] == [f"regularizer[0].{name}" for name in "xyz"]


def test_a_component_without_options_says_so():
    _, problems = check({"x": 1}, Signature("a:B", ()))
    assert problems[0].hint == "it has none"


def test_open_signatures_take_any_option():
    checked, problems = check({"x": [1]}, Signature("a:B", (Option("y", int, 1),), open=True))
    assert (checked, problems) == ({"y": 1, "x": [1]}, [])


def test_an_annotation_that_cannot_be_checked_allows_anything():
    class Tensor: ...

    assert check({"x": 3}, Signature("a:B", (Option("x", Tensor),))) == ({"x": 3}, [])


def test_a_date_of_toml_reaches_the_constructor():
    import datetime as dt

    day = dt.date(2026, 1, 2)
    signature = Signature("a:B", (Option("x", dt.date), Option("y", Any)))
    checked, _ = check({"x": day, "y": day}, signature)
    assert checked == {"x": day, "y": "2026-01-02"}
