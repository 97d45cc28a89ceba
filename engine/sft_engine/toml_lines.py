"""Which line of a TOML text each key stands on.

`tomllib` gives values without positions. This scanner gives positions without values; it trusts that
`tomllib` has accepted the text, so it only has to find where keys, strings and brackets end.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence

Path = tuple[str | int, ...]
"""The way to a value: names of tables and keys, and positions in lists."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}#\r\n]*")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_MULTILINE = {
    '"""': re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})', re.DOTALL),
    "'''": re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
}


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of every key, table and list item of a valid TOML text."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def given_again(text: str) -> tuple[Path, int] | None:
    """Return the last key or table that the text has a second time, and the line of the first time.

    Args:
        text: Valid but for that, and cut off behind it; None is returned if it has nothing twice.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.again


def split_key(text: str) -> list[str]:
    """Split a dotted key, quotes respected.

    Raises:
        ValueError: the text is not a dotted key.
    """
    scanner = _Scanner(text)
    parts = scanner.key()
    if scanner.at != len(text):
        raise ValueError(f"not a key: {text!r}")
    return parts


def show_key(path: Sequence[str | int]) -> str:
    """Write a path the way messages do: `regularizer[0].alpha`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            quoted = part if _BARE.fullmatch(part) else '"' + part.replace('"', '\\"') + '"'
            text += f".{quoted}" if text else quoted
    return text


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.again: tuple[Path, int] | None = None
        self._lists: dict[Path, int] = {}  # arrays of tables, with the index of the last one
        self._counted = (0, 1)  # a position and its line: counting goes on from there

    def document(self) -> None:
        table: Path = ()
        while self._skip_blank():
            if self.text.startswith("[[", self.at):
                table = self._header("[[", "]]")
            elif self.text[self.at] == "[":
                table = self._header("[", "]")
            else:
                self._pair(table)

    def key(self) -> list[str]:
        parts = [self._key_part()]
        self._skip_spaces()
        while self.text.startswith(".", self.at):
            self.at += 1
            self._skip_spaces()
            parts.append(self._key_part())
            self._skip_spaces()
        return parts

    def _key_part(self) -> str:
        for pattern in (_BARE, _BASIC, _LITERAL):
            if match := pattern.match(self.text, self.at):
                self.at = match.end()
                raw = match.group()
                return raw if pattern is _BARE else str(tomllib.loads(f"k = {raw}")["k"])
        raise ValueError(f"not a key: {self.text[self.at :]!r}")

    def _header(self, opening: str, closing: str) -> Path:
        line = self._line()
        self.at += len(opening)
        self._skip_spaces()
        path = self._within_lists(self.key())
        if opening == "[[":
            if path in self.lines and path not in self._lists:
                self.again = path, self.lines[path]
            self._lists[path] = self._lists.get(path, -1) + 1
            self.lines.setdefault(path, line)
            path = (*path, self._lists[path])
        self._note(path, line)
        self.at += len(closing)
        return path

    def _within_lists(self, parts: list[str]) -> Path:
        """`[a.b]` after `[[a]]` belongs to the last `a`."""
        path: Path = ()
        for position, part in enumerate(parts):
            path = (*path, part)
            if position < len(parts) - 1 and path in self._lists:
                path = (*path, self._lists[path])
        return path

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = (*table, *self.key())
        self._note(path, line)
        self.at += 1  # the "="
        self._skip_spaces()
        self._value(path)

    def _value(self, path: Path) -> None:
        match self.text[self.at : self.at + 1]:
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                self._string()
            case _:
                self._jump(_SCALAR)

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._skip_blank() and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self.lines[(*path, index)] = self._line()
            self._value((*path, index))
            index += 1
        self.at += 1

    def _inline_table(self, path: Path) -> None:
        self.at += 1
        while self._skip_blank() and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self.at += 1
            else:
                self._pair(path)
        self.at += 1

    def _string(self) -> None:
        opening = self.text[self.at : self.at + 3]
        if opening in _MULTILINE:
            self._jump(_MULTILINE[opening])
        else:
            self._jump(_BASIC if opening[0] == '"' else _LITERAL)

    def _note(self, path: Path, line: int) -> None:
        """Record a key and, where they have no line of their own, the tables above it."""
        if path in self.lines:
            self.again = path, self.lines[path]
        self.lines[path] = line
        for length in range(1, len(path)):
            self.lines.setdefault(path[:length], line)

    def _jump(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self.text, self.at):
            self.at = match.end()

    def _skip_blank(self) -> bool:
        """Skip blanks, newlines and comments; return whether any text is left."""
        self._jump(_BLANK)
        return self.at < len(self.text)

    def _skip_spaces(self) -> None:
        while self.text[self.at : self.at + 1] in (" ", "\t"):
            self.at += 1

    def _line(self) -> int:
        position, line = self._counted
        line += self.text.count("\n", position, self.at)
        self._counted = (self.at, line)
        return line
