"""A module's source, parsed and never imported: what its names stand for.

Names are followed through `from` imports, also into other packages, and simple expressions such as
`Annotated[float, Gt(0)]` or a constant's name are evaluated. Whatever is not that simple is
`UnreadableError`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIGHT = ("typing", "annotated_types", "collections.abc", "pathlib", "math", "typing_extensions")
_PLAIN_TYPES = (bool, bytes, dict, float, frozenset, int, list, object, set, str, tuple)
_BUILTINS = {made.__name__: made for made in _PLAIN_TYPES}
_LONGEST_CHAIN = 8  # modules that import a name from each other: more is a circle


class UnreadableError(Exception):
    """Source alone does not tell; import the module."""


@dataclass(frozen=True)
class Source:
    """A parsed module, never imported."""

    name: str
    is_package: bool
    definitions: Mapping[str, ast.AST]
    """Classes, functions, assigned expressions and imports at module level by name."""

    def absolute(self, node: ast.ImportFrom) -> str:
        """Return the absolute name of the module that a `from` import names."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        keep = len(parts) - node.level + (1 if self.is_package else 0)
        return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def parse(module: str) -> Source:
    """Parse a module.

    Raises:
        UnreadableError: it has no source file, or one with a syntax error.
    """
    path, is_package = _locate(module)
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        raise UnreadableError(module) from None
    return Source(module, is_package, dict(_definitions(tree.body)))


def _locate(module: str) -> tuple[Path, bool]:
    """Find the file of a module; only the finders of its top-level package are asked."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UnreadableError(module)
    if not inner and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin), spec.submodule_search_locations is not None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *inner)
        if (base / "__init__.py").is_file():
            return base / "__init__.py", True
        if inner and base.with_suffix(".py").is_file():
            return base.with_suffix(".py"), False
    raise UnreadableError(module)


def _definitions(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                yield node.name, node
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((_bound_name(node, alias), node) for alias in names)
            case ast.If(body=inner) | ast.Try(body=inner):
                yield from _definitions(inner)


def _bound_name(node: ast.stmt, alias: ast.alias) -> str:
    """Return the name that an import leaves in the module."""
    whole = isinstance(node, ast.ImportFrom)
    return alias.asname or (alias.name if whole else alias.name.split(".")[0])


def definition(source: Source, name: str) -> tuple[Source, ast.AST]:
    """Find what a name stands for, through the modules that it is imported from.

    Raises:
        UnreadableError: it is not defined at the top level of a module with a source file.
    """
    for _ in range(_LONGEST_CHAIN):
        node = source.definitions.get(name)
        if node is None:
            raise UnreadableError(name)
        if not isinstance(node, ast.ImportFrom):
            return source, node
        alias = next(a for a in node.names if _bound_name(node, a) == name)
        source, name = parse(source.absolute(node)), alias.name
    raise UnreadableError(name)


def last_name(node: ast.expr) -> str:
    """Return the last name of `a.b`, `a.b(...)` or `a.b[...]`."""
    match node:
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return last_name(inner)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def evaluate(source: Source, node: ast.expr) -> Any:
    """Evaluate an expression such as a default.

    Raises:
        UnreadableError: it needs a name that only importing the module would give.
    """
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    code = compile(ast.Expression(node), f"<{source.name}>", "eval")
    try:
        # The plugin's own expression, with no more names than it needs; importing it would run all of it.
        return eval(code, {"__builtins__": {}}, _Names(source))  # noqa: S307
    except Exception as error:
        raise UnreadableError(ast.unparse(node)) from error


def evaluate_annotation(source: Source, node: ast.expr) -> Any:
    """Evaluate an annotation, quoted or not.

    Raises:
        UnreadableError: as for `evaluate`.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    return evaluate(source, node)


class _Names(dict[str, Any]):
    """Names as a module would see them: plain types, typing, and the module's own constants."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def __missing__(self, name: str) -> Any:
        node = self._source.definitions.get(name)
        if node is None:
            return _BUILTINS[name]
        self[name] = value = self._value(name, node)
        return value

    def _value(self, name: str, node: ast.AST) -> Any:
        if isinstance(node, ast.Import):
            alias = next(a for a in node.names if _bound_name(node, a) == name)
            return self._light(alias.name)
        if isinstance(node, ast.ImportFrom):
            alias = next(a for a in node.names if _bound_name(node, a) == name)
            origin = self._source.absolute(node)
            if origin in _LIGHT:
                return getattr(self._light(origin), alias.name)
            where, found = definition(parse(origin), alias.name)
            return self._expression(where, found)
        return self._expression(self._source, node)

    def _light(self, module: str) -> Any:
        if module not in _LIGHT:
            raise UnreadableError(module)
        return importlib.import_module(module)

    def _expression(self, source: Source, node: ast.AST) -> Any:
        if not isinstance(node, ast.expr):
            raise UnreadableError(ast.unparse(node))
        return evaluate(source, node)
