"""The plugins of README.md and docs/writing-a-plugin.md: built by pip, used by name, misspelt."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sft_engine.testing import install_fake
from sft_engine.testing.runs import TINY, run_recipe

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/writing-a-plugin.md"]
FILES = {"pyproject.toml", "sft_acme/__init__.py", "sft_acme/pull.py"}
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TINY_PLUGIN = """
from sft_engine import hookimpl
@hookimpl
def sft_register(catalog):
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "Tiny network.")
"""


@dataclass
class Installed:
    """A folder in which a page's plugin is installed, with a recipe that names it."""

    folder: Path

    def __call__(self, *arguments: str, alpha: str = "alpha = 0.1") -> CompletedProcess[str]:
        recipe = f'{TINY}\n[[regularizer]]\nuse = "acme/pull"\n{alpha}\n'
        (self.folder / "recipe.toml").write_text(recipe, encoding="utf-8")
        command = [sys.executable, "-m", "sft_engine", *arguments]
        paths = (self.folder / "site", self.folder / "tiny")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )


def shown_files(page: str) -> dict[str, str]:
    """Return the code blocks of a page whose first line is a comment with the path of a file."""
    blocks = dict(BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))
    return {path: text for path, text in blocks.items() if path in FILES}


@pytest.fixture(scope="module", params=PAGES)
def sft_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """Install the plugin of a page; return the command line that sees it."""
    folder = tmp_path_factory.mktemp("plugin")
    files = shown_files(request.param)
    assert set(files) == FILES
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(folder / "site"), str(folder)]
    subprocess.run(pip, check=True)
    install_fake(
        folder / "tiny", "sft-tiny", {"sft_tiny": TINY_PLUGIN}, entry_points={"tiny": "sft_tiny"}
    )

    return Installed(folder)


def test_help_comes_from_the_docstring(sft_engine: Installed) -> None:
    shown = sft_engine("plugins", "show", "acme/pull")
    assert shown.returncode == 0, shown.stderr
    assert "sft-acme 0.1.0" in shown.stdout
    assert re.search(r"alpha +Strength of the pull\. \(a number; default 0\.01\)", shown.stdout)


@pytest.mark.parametrize(
    ("alpha", "sentence"),
    [
        ("alpah = 0.1", r"recipe\.toml:\d+.*alpah.*did you mean `alpha`"),
        ('alpha = "much"', r'recipe\.toml:\d+.*alpha.*found "much", allowed: a number'),
    ],
)
def test_a_typo_is_an_error_with_its_line(sft_engine: Installed, alpha: str, sentence: str) -> None:
    checked = sft_engine("check", "recipe.toml", alpha=alpha)
    assert checked.returncode == 2
    assert re.search(sentence, checked.stderr)
    assert "Traceback" not in checked.stderr


def test_its_term_is_part_of_the_loss(
    sft_engine: Installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "sft_acme"]:
        monkeypatch.delitem(sys.modules, module)  # of the other page
    monkeypatch.syspath_prepend(sft_engine.folder / "site")
    run_recipe(tmp_path, f'{TINY}\n[[regularizer]]\nuse = "acme/pull"\n')
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    for step in steps:
        assert step["loss"] == pytest.approx(step["loss/task"] + step["loss/pull"])
    assert steps[-1]["loss/pull"] != steps[0]["loss/pull"]
