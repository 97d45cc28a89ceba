"""Each distribution declares what it imports, and dependencies have lower bounds only."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def requirements_of(folder: Path) -> list[str]:
    """Return the dependencies and those of the extras, as written."""
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [*project["dependencies"], *(each for extra in extras for each in extra)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def imported_by(folder: Path) -> Iterator[str]:
    """Yield the top packages that a distribution's modules import, when they run."""
    for path in (folder / ("engine" if folder == ROOT else "src")).rglob("*.py"):
        for node in runtime_nodes(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types:
            yield child
            yield from runtime_nodes(child)


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda path: path.name)
def test_what_is_imported_is_declared(folder: Path) -> None:
    declared = {normal(each) for each in requirements_of(folder)}
    own = "sft_engine" if folder == ROOT else folder.name.replace("-", "_")
    homes = packages_distributions()
    for package in set(imported_by(folder)) - {own, *sys.stdlib_module_names}:
        # An editable install is listed under no package; its name is that of the package.
        assert {normal(each) for each in homes.get(package, [package])} & declared, package


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda path: path.name)
def test_dependencies_have_lower_bounds_only(folder: Path) -> None:
    for requirement in requirements_of(folder):
        assert not re.search(r"<|==|~=|!=|@", requirement), requirement
