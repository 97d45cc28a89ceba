"""The page in a browser. Chromium is installed by the system's package manager where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.reporting.test_page import EVIL, whole_report

from sft_engine.reporting.page import Source, html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

pytestmark = [pytest.mark.demo, pytest.mark.slow]


def found_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def browser():
    if found_browser() is None:
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "chromium"]):
            if os.geteuid() or subprocess.run([*apt, *words], check=False, env=quiet).returncode:
                pytest.skip("no Chromium here, and it cannot be installed: apt-get needs root")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as library:
        opened = library.chromium.launch(executable_path=found_browser(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A page with every block, names of files and classes that are too long, and a hostile title."""
    report = whole_report()
    columns = [f"a_rather_long_name_of_a_column_{i}" for i in range(12)]
    table = {
        "kind": "table",
        "title": "Wide",
        "columns": columns,
        "rows": [[EVIL] * 12],
        "note": "",
    }
    report["sections"][0]["blocks"] += [table, {"kind": "text", "text": "x" * 400}]
    facts = {"command": ["sft-engine", "run", "a" * 200], "data": {"train": "f" * 64}}
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(html(Source(EVIL, report, facts, "lr = 1\n" + "# " + "long " * 60)), "utf-8")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_renders_offline_without_a_word_on_the_console(
    browser, path: Path, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(path.as_uri())
    assert said == []
    # Nothing is wider than the screen: wide tables scroll in boxes of their own.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert page.locator("[role=img]").count() == 2
    line = page.locator("[role=img] path[style*='--s1']").first
    colour = line.evaluate("e => getComputedStyle(e).stroke")
    assert colour == ("rgb(35, 104, 176)" if scheme == "light" else "rgb(111, 177, 242)")
    texts = page.locator("[role=img] text")
    smallest = min(texts.nth(i).bounding_box()["height"] for i in range(texts.count()))
    assert smallest >= 9
    context.close()


def test_the_page_works_by_keyboard(browser, path: Path) -> None:
    page = browser.new_page()
    page.goto(path.as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    page.close()
