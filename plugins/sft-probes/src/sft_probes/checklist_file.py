"""Files of behavioural tests, TOML or JSON, as `checklist` reads them.

A file has a list `test`. Each test has a `name`, a `type`, and texts:

```toml
[[test]]
name = "simple negation"
type = "MFT"                      # minimum functionality: the prediction must be `label`
label = "negative"
template = "The {thing} was not {praise}."
words = {thing = ["film", "acting"], praise = ["good", "moving"]}

[[test]]
name = "names"
type = "INV"                      # invariance: the prediction must not change
replace = {Mary = ["Anna", "Aisha"], John = ["Paul", "Wei"]}

[[test]]
name = "praise at the end"
type = "DIR"                      # direction: the probability of `label` must go `direction`
label = "positive"
direction = "up"                  # by `margin` at least; "not-down": never down by more than it
append = ["I loved it."]
```

Texts are given as `texts`, or as a `template` with `words`. Tests of the types INV and DIR also take `pairs` (a text,
then the changed one), or change texts by `replace` (whole words), `append` or `prepend`: their own `texts`, and
without those the examples that the probe looks at.
"""

from __future__ import annotations

import itertools
import json
import re
import string
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from sft_engine import DataError

Type = Literal["MFT", "INV", "DIR"]
Direction = Literal["up", "down", "not-up", "not-down"]
MARGIN = 0.1
MOST = 10_000
"""Texts that one template may make."""

_KEYS = {
    "name", "type", "label", "direction", "margin", "texts", "template", "words", "pairs", "replace",
    "append", "prepend",
}  # fmt: skip
_CHANGES = ("replace", "append", "prepend")


@dataclass(frozen=True)
class Test:
    """One test of a file.

    Args:
        name: As the file calls it.
        type: `MFT`, `INV` or `DIR`.
        label: What an MFT expects, or whose probability a DIR looks at.
        direction: Where that probability must go.
        margin: By how much.
        texts: The texts; None for the examples that the probe looks at.
        pairs: A text and a changed one.
        replace: Other words for a word.
        append: Sentences that are put behind a text.
        prepend: Sentences that are put before a text.
    """

    name: str
    type: Type
    label: str = ""
    direction: Direction = "up"
    margin: float = MARGIN
    texts: tuple[str, ...] | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    replace: Mapping[str, Sequence[str]] = field(default_factory=dict)
    append: tuple[str, ...] = ()
    prepend: tuple[str, ...] = ()

    def cases(self, examples: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield each text with its changed ones, none for an MFT; texts that nothing changes are left out.

        Args:
            examples: The texts of a test that has none of its own.
        """
        yield from ((text, (changed,)) for text, changed in self.pairs)
        texts = examples if self.texts is None and not self.pairs else self.texts or ()
        for text in texts:
            found = tuple(self._changed(text))
            if self.type == "MFT" or found:
                yield text, found

    def _changed(self, text: str) -> Iterator[str]:
        for word, others in self.replace.items():
            pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
            if re.search(pattern, text):
                for other in others:
                    yield re.sub(pattern, lambda _, new=other: new, text)  # type: ignore[misc]
        yield from (f"{text.rstrip()} {more}" for more in self.append)
        yield from (f"{more} {text.lstrip()}" for more in self.prepend)


def read_tests(path: str) -> tuple[Test, ...]:
    """Read a file of tests.

    Raises:
        DataError: it cannot be read, or a test is not what it must be; test and key are named.
    """
    file = Path(path).expanduser()
    try:
        raw = file.read_text(encoding="utf-8-sig")
        found = json.loads(raw) if file.suffix == ".json" else tomllib.loads(raw)
    except OSError as error:
        raise DataError(
            f"checklist.path = '{path}' cannot be read ({(error.strerror or 'no reason given').lower()}); "
            "name a TOML or JSON file of tests"
        ) from error
    except ValueError as error:
        raise DataError(f"'{path}' is neither TOML nor JSON: {error}; correct it") from error
    tests = found.get("test") if isinstance(found, dict) else found
    if not isinstance(tests, list) or not tests or not all(isinstance(t, dict) for t in tests):
        raise DataError(f"'{path}' has no list of tests: write each below `[[test]]`")
    read = tuple(_read(each, number, path) for number, each in enumerate(tests, 1))
    names = [each.name for each in read]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"'{path}' has two tests named '{name}'; rename one of them")
    return read


def _read(table: Mapping[str, Any], number: int, path: str) -> Test:
    where = f"'{path}', test {number}"
    _require(isinstance(table.get("name"), str) and table["name"], where, "name", "a text")
    where += f" ('{table['name']}')"
    for key in table:
        if key not in _KEYS:
            raise DataError(
                f"{where}: there is no key `{key}`, allowed: {', '.join(sorted(_KEYS))}"
            )
    kind = table.get("type")
    _require(kind in get_args(Type), where, "type", "MFT, INV or DIR")
    if kind != "INV":
        _require(isinstance(table.get("label"), str), where, "label", "the name of a class")
    direction = table.get("direction", "up")
    _require(direction in get_args(Direction), where, "direction", "up, down, not-up or not-down")
    margin = table.get("margin", MARGIN)
    _require(_is_share(margin), where, "margin", "a number from 0 to 1")
    pairs = table.get("pairs", [])
    fits = isinstance(pairs, list) and all(_is_texts(p) and len(p) == 2 for p in pairs)  # noqa: PLR2004
    _require(fits, where, "pairs", "a list of pairs of texts")
    replace = table.get("replace", {})
    fits = isinstance(replace, dict) and all(_is_texts(each) for each in replace.values())
    _require(fits, where, "replace", 'words with lists of others, such as {Mary = ["Anna"]}')
    for key in ("append", "prepend"):
        _require(_is_texts(table.get(key, [])), where, key, "a list of texts")
    _check_whole(table, where)
    return Test(
        name=table["name"],
        type=cast("Type", kind),
        label=table.get("label", ""),
        direction=direction,
        margin=float(margin),
        texts=_texts(table, where),
        pairs=tuple((one, other) for one, other in pairs),
        replace=replace,
        append=tuple(table.get("append", ())),
        prepend=tuple(table.get("prepend", ())),
    )


def _check_whole(table: Mapping[str, Any], where: str) -> None:
    """Refuse a test that has nothing to do, or two things."""
    own = any(table.get(key) for key in ("texts", "template"))
    changes = any(table.get(key) for key in _CHANGES)
    if table["type"] == "MFT":
        if not own or changes or table.get("pairs"):
            raise DataError(f"{where}: an MFT needs `texts` or a `template`, and changes nothing")
    elif not changes and not table.get("pairs"):
        raise DataError(f"{where}: nothing is changed; give `pairs`, or {', '.join(_CHANGES)}")
    elif own and not changes:
        raise DataError(f"{where}: `texts` without a change; give {', '.join(_CHANGES)}")


def _texts(table: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    texts, template = table.get("texts", []), table.get("template", "")
    _require(_is_texts(texts), where, "texts", "a list of texts")
    _require(isinstance(template, str), where, "template", "a text with {places}")
    words = table.get("words", {})
    fits = isinstance(words, dict) and all(_is_texts(each) and each for each in words.values())
    _require(fits, where, "words", "a list of texts for each place of the template")
    made = [*texts, *(_filled(template, words, where) if template else ())]
    return tuple(made) or None


def _filled(template: str, words: Mapping[str, list[str]], where: str) -> list[str]:
    """Return the template with every combination of words."""
    try:
        places = list(dict.fromkeys(p for _, p, _, _ in string.Formatter().parse(template) if p))
    except ValueError as error:
        raise DataError(f"{where}: `template`: {error}; write {{{{ for a brace") from error
    for place in places:
        if place not in words:
            raise DataError(
                f"{where}: `template` has the place {{{place}}}, and `words` has it not"
            )
    count = 1
    for place in places:
        count *= len(words[place])
    if count > MOST:
        raise DataError(f"{where}: the template makes {count} texts, {MOST} at most are allowed")
    combinations = itertools.product(*(words[place] for place in places))
    return [template.format(**dict(zip(places, each, strict=True))) for each in combinations]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _require(fits: Any, where: str, key: str, allowed: str) -> None:
    if not fits:
        raise DataError(f"{where}: `{key}` must be {allowed}")
