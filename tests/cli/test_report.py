"""`report`: the page or Markdown of a run, from its folder."""

from __future__ import annotations

import json

import click
import pytest


def test_a_run_has_a_page_and_report_writes_it_again(sft, trained):
    page = trained / "report.html"
    before = page.read_text("utf-8")
    page.unlink()
    ended = sft("report", trained)
    assert (ended.code, ended.out.strip()) == (0, str(page))
    assert page.read_text("utf-8") == before
    assert "Other views of the same split" in before  # of the probe in its recipe


def test_markdown_goes_to_a_file_of_its_own(sft, trained, folder):
    ended = sft("report", trained, "--md", "--output", "summary.md", "--json")
    assert json.loads(ended.out)["report"] == "summary.md"
    assert (folder / "summary.md").read_text("utf-8").startswith("# recipe")


def test_the_page_is_opened_when_asked_to(sft, trained, monkeypatch, folder):
    opened = []
    monkeypatch.setattr(click, "launch", opened.append)
    assert sft("report", trained, "--output", "a.html", "--open").code == 0
    assert opened == ["a.html"]


@pytest.mark.parametrize("arguments", [(), ("--md",)])
def test_another_folder_is_one_sentence(sft, folder, arguments):
    ended = sft("report", ".", *arguments)
    assert ended.code == 1
    assert "neither report.json nor run.json" in ended.err
    assert not (folder / "report.html").exists()
