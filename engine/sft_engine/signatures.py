"""Constructor signatures, read from source with `ast`.

Importing a component usually means importing torch; reading its source does not. What cannot be
understood from source alone (a default that is computed, a base class of another library) is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sft_engine.source import (
    Source,
    UnreadableError,
    definition,
    evaluate,
    evaluate_annotation,
    last_name,
    parse,
)

REQUIRED: Any = inspect.Parameter.empty
"""Default of an option that has none."""

_PLAIN_BASES = ("object", "Protocol", "Generic", "ABC")
_FACTORIES = {"dict": dict, "list": list, "set": set, "tuple": tuple}


@dataclass(frozen=True)
class Option:
    """One option of a component.

    Args:
        name: As the recipe writes it.
        annotation: Its type; `Any` if it has none that can be evaluated.
        default: `REQUIRED` if it must be given.
        help: Its line in the docstring.
    """

    name: str
    annotation: Any
    default: Any = REQUIRED
    help: str = ""

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is REQUIRED


@dataclass(frozen=True)
class Signature:
    """What a constructor or function takes.

    Args:
        target: "package.module:Class".
        options: In the order of the source.
        open: Whether it takes any further option (`**kwargs`).
        summary: First line of the docstring.
    """

    target: str
    options: tuple[Option, ...]
    open: bool = False
    summary: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the options."""
        return tuple(option.name for option in self.options)


def signature_of(target: str, skip: Iterable[str] = ()) -> Signature:
    """Read the options of "package.module:Class" (or of a function), importing it only if it must be.

    Args:
        target: Where the class is defined, or a module that imports it from there.
        skip: Options to leave out.

    Raises:
        Exception: whatever importing the module raises, where source is not enough.
    """
    module, _, name = target.partition(":")
    try:
        found = _from_source(module, name)
    except UnreadableError:
        found = _from_import(module, name)
    skipped = set(skip)
    options = tuple(o for o in found.options if o.name not in skipped)
    return replace(found, target=target, options=options)


def argument_help(docstring: str | None) -> dict[str, str]:
    """Return the text of each argument of a Google-style `Args:` block, continued lines joined."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    heads = [i for i, line in enumerate(lines) if line.strip() in ("Args:", "Arguments:")]
    if not heads:
        return {}
    block = _indented(lines[heads[0] + 1 :])
    helps: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent("\n".join(block)).splitlines():
        entry = re.match(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$", line)
        if entry:
            name = entry[1]
            helps[name] = entry[2].strip()
        elif name and line.strip():
            helps[name] = f"{helps[name]} {line.strip()}".strip()
    return helps


def _indented(lines: list[str]) -> list[str]:
    block = []
    for line in lines:
        if line.strip() and not line.startswith((" ", "\t")):
            break
        block.append(line)
    return block


def _first_line(docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "").split("\n", 1)[0]


# --- From source -----------------------------------------------------------------------------------


@dataclass
class _Parameters:
    """What is known of a constructor so far."""

    options: list[Option] = field(default_factory=list)
    open: bool = False
    helps: dict[str, str] = field(default_factory=dict)


def _from_source(module: str, name: str) -> Signature:
    source, node = definition(parse(module), name)
    if isinstance(node, ast.ClassDef):
        parameters = _of_class(source, node)
    elif isinstance(node, ast.FunctionDef):
        parameters = _of_function(source, node, skip=0)
    else:
        raise UnreadableError(name)
    options = tuple(replace(o, help=parameters.helps.get(o.name, "")) for o in parameters.options)
    return Signature("", options, parameters.open, _first_line(ast.get_docstring(node)))


def _of_function(source: Source, node: ast.FunctionDef, skip: int) -> _Parameters:
    """Read the parameters of a function; `skip` is 1 for a method, to leave out `self`."""
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    missing = len(positional) - len(args.defaults)
    pairs = list(zip(positional, [*[None] * missing, *args.defaults], strict=True))[skip:]
    pairs += list(zip(args.kwonlyargs, args.kw_defaults, strict=True))
    options = [_option(source, a.arg, a.annotation, default) for a, default in pairs]
    return _Parameters(options, args.kwarg is not None, argument_help(ast.get_docstring(node)))


def _of_class(source: Source, node: ast.ClassDef) -> _Parameters:
    """Read the constructor of a class: its own, that of a dataclass, or an inherited one."""
    init = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    if any(last_name(d) != "dataclass" for d in node.decorator_list) or node.keywords:
        raise UnreadableError(node.name)  # a decorator or metaclass may make another constructor
    if init is not None:
        parameters = _of_function(source, init, skip=1)
    else:
        parameters = _inherited(source, node)
        if node.decorator_list:
            _add_fields(source, node, parameters)
        elif parameters.open and any(isinstance(n, ast.AnnAssign) for n in node.body):
            raise UnreadableError(node.name)  # fields of a model whose base makes the constructor
    parameters.helps |= argument_help(ast.get_docstring(node))
    return parameters


def _inherited(source: Source, node: ast.ClassDef) -> _Parameters:
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if last_name(name) in _PLAIN_BASES:
            continue
        if not isinstance(name, ast.Name):
            raise UnreadableError(ast.unparse(base))
        where, found = definition(source, name.id)
        if not isinstance(found, ast.ClassDef):
            raise UnreadableError(name.id)
        parameters = _of_class(where, found)
        if parameters.options or parameters.open:
            return parameters
    return _Parameters()


def _add_fields(source: Source, node: ast.ClassDef, parameters: _Parameters) -> None:
    """Add a dataclass's own fields to those of its bases."""
    options = {option.name: option for option in parameters.options}
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if last_name(statement.annotation) in ("ClassVar", "KW_ONLY"):
            continue
        option = _field(source, statement.target.id, statement.annotation, statement.value)
        if option is not None:
            options[option.name] = option
    parameters.options = list(options.values())


def _field(source: Source, name: str, note: ast.expr, value: ast.expr | None) -> Option | None:
    if isinstance(note, ast.Subscript) and last_name(note) == "InitVar":
        note = note.slice
    if not (isinstance(value, ast.Call) and last_name(value) == "field"):
        return _option(source, name, note, value)
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if "init" in given and not evaluate(source, given["init"]):
        return None
    option = _option(source, name, note, given.get("default"))
    if "default_factory" not in given:
        return option
    factory = last_name(given["default_factory"])
    if factory not in _FACTORIES:
        raise UnreadableError(name)
    return replace(option, default=_FACTORIES[factory]())


def _option(source: Source, name: str, note: ast.expr | None, default: ast.expr | None) -> Option:
    annotation = Any if note is None else evaluate_annotation(source, note)
    return Option(name, annotation, REQUIRED if default is None else evaluate(source, default))


# --- From the imported object ----------------------------------------------------------------------


def _from_import(module: str, name: str) -> Signature:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    parameters = list(inspect.signature(found).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    helps = _documented(found)
    options = tuple(
        Option(p.name, _annotation(found, p.annotation), _default(found, p), helps.get(p.name, ""))
        for p in named
    )
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return Signature("", options, is_open, _first_line(found.__doc__))


def _documented(found: Any) -> dict[str, str]:
    """Return the help of all arguments, that of a derived class over that of its bases."""
    if not inspect.isclass(found):
        return argument_help(found.__doc__)
    helps: dict[str, str] = {}
    for each in reversed(found.__mro__):
        init = vars(each).get("__init__")
        helps |= argument_help(getattr(init, "__doc__", None))
        helps |= argument_help(vars(each).get("__doc__"))
    return helps


def _default(found: Any, parameter: inspect.Parameter) -> Any:
    """Return a default; a dataclass shows a sentinel in the place of one that a factory makes."""
    if dataclasses.is_dataclass(found):
        for each in dataclasses.fields(found):
            if each.name == parameter.name and callable(each.default_factory):
                return each.default_factory()
    return parameter.default


def _annotation(found: Any, annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    maker = found.__init__ if inspect.isclass(found) else found
    try:
        return eval(annotation, dict(getattr(maker, "__globals__", {})))  # noqa: S307  imported code
    except Exception:  # noqa: BLE001  a name that exists for type checkers only
        return Any
