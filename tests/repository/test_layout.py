"""What a new plugin, page or dependency must not forget."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def project_of(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def package_of(plugin: Path) -> str:
    return plugin.name.replace("-", "_")


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_has_everything_that_its_neighbours_have(plugin: Path) -> None:
    project = project_of(plugin)["project"]
    assert project["name"] == plugin.name
    assert package_of(plugin) in project["entry-points"]["sft_engine"].values()
    assert "sft-engine" in {re.match(r"[\w-]+", each)[0] for each in project["dependencies"]}
    for name in ("README.md", "example.toml", f"src/{package_of(plugin)}/py.typed"):
        assert (plugin / name).is_file(), name
    assert list((plugin / "tests").glob("test_*.py"))


def test_import_linter_and_the_readme_know_every_plugin() -> None:
    packages = {package_of(plugin) for plugin in PLUGINS}
    linter = project_of(ROOT)["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in linter["contracts"]}
    assert set(linter["root_packages"]) == packages | {"sft_engine"}
    assert set(contracts["engine-knows-no-plugin"]["forbidden_modules"]) == packages
    assert set(contracts["plugins-are-strangers"]["modules"]) == packages
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for plugin in PLUGINS:
        assert f"[`{plugin.name}`](plugins/{plugin.name})" in readme


def test_the_site_shows_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation
    decisions = (ROOT / "docs/decisions/index.md").read_text(encoding="utf-8")
    for record in (ROOT / "docs/decisions").glob("0*.md"):
        assert f"({record.name})" in decisions
