"""A page as a strict reader of HTML sees it."""

from __future__ import annotations

import html5lib
import pytest

SVG = "{http://www.w3.org/2000/svg}"
HTML = "{http://www.w3.org/1999/xhtml}"


class Page:
    """A page that was parsed; every violation of HTML is an error."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root = html5lib.HTMLParser(strict=True).parse(text)

    def all(self, name: str) -> list:
        return list(self.root.iter(HTML + name))

    def svg(self, name: str) -> list:
        return list(self.root.iter(SVG + name))

    def words(self, element=None) -> str:
        return " ".join(" ".join((self.root if element is None else element).itertext()).split())

    def table(self, title: str) -> list[list[str]]:
        """Return the rows of a table by its caption: the exact value where a cell has one."""
        found = next(
            t for t in self.all("table") if self.words(t.find(HTML + "caption")).startswith(title)
        )
        body = found.find(HTML + "tbody")
        return [[c.get("data-value", self.words(c)) for c in row] for row in body]


@pytest.fixture
def parse():
    return Page
