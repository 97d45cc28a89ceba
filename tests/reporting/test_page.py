"""The page and its Markdown: figures, escaping, what is broken, accessibility."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from sft_engine import sections
from sft_engine.reporting import charts, page
from sft_engine.reporting.markdown import markdown
from sft_engine.reporting.page import HEAT, Source, html

EVIL = "<script>alert('x')</script>"


def whole_report() -> dict:
    """Return a report with every kind of block."""
    report: dict = {
        "recipe": "whole.toml",
        "split": "test",
        "metrics": {"accuracy": 0.8125},
        "task": {"kind": "classification", "metric": "accuracy", "direction": "max"},
        "examples": {"train": 100, "test": 16},
    }
    x = ("severity", [0, 0.05, 0.1])
    band = sections.one_series("accuracy", [0.9, None, 0.6123456], [0.8, None, 0.5], [1, None, 0.7])
    blocks = [
        sections.text("One paragraph.\n\nAnother one."),
        sections.table("A table", ["what", "value"], [["first", 0.123456789], ["second", None]]),
        sections.lines("Curve", x=x, y="accuracy", series=[band, *two_more()], y_range=(0, 1)),
        sections.bars(
            "Bars", ["a", "b"], [0.25, 0.75], label="share", low=[0.2, 0.7], high=[0.3, 0.8]
        ),
        sections.matrix("Matrix", ["r1", "r2"], ["c1", "c2"], [[9, 1], [2, 8]], row_label="true"),
        sections.examples(
            "Examples",
            ["text", "true", "predicted"],
            [{"text": "A text.", "true": "a", "predicted": "b", "image": PIXEL}],
        ),
        sections.marked(
            "Marked",
            [
                {
                    "parts": ["Not", " ", "good", ", it is."],
                    "scores": [-0.5, None, 0.25, 0.0],
                    "facts": {"true": "a", "probability": 0.75},
                }
            ],
            note="A note on marks.",
        ),
        sections.findings(
            [
                sections.finding("to know", "info", "Some evidence."),
                sections.finding(
                    "overfitting", "serious", "More.", step=7, remedies=[("Stop.", "epochs = 1")]
                ),
            ]
        ),
    ]
    sections.add_section(report, "whole", "Everything", blocks, summary="A summary.")
    return report


PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def two_more() -> list[dict]:
    return [sections.one_series(name, [0.1, 0.2, 0.3]) for name in ("second", "third")]


def with_block(block: object) -> Source:
    report = {"sections": [{"id": "s", "title": "S", "summary": "", "blocks": [block]}]}
    return Source("title", report)


def test_marked_texts_tell_the_sign_by_more_than_colour(parse) -> None:
    source = Source("whole", whole_report())
    page = parse(html(source))
    marks = [each for each in page.all("mark") if each.get("data-value")]
    assert [(each.get("class"), each.get("data-value")) for each in marks] == [
        ("against w5", "-0.5"),
        ("for w2", "0.25"),
    ]
    assert page.words(marks[0]) == "Not \N{MINUS SIGN}"
    said = "Not \N{MINUS SIGN}0.5 · good +0.25"
    assert said in page.words()
    assert f"| Not good, it is. | {said} | a | 0.75 |" in markdown(source)


def test_the_page_is_strict_html_and_shows_every_figure_of_the_report(parse) -> None:
    page = parse(html(Source("whole", whole_report())))
    assert page.table("A table") == [["first", "0.123456789"], ["second", "–"]]  # noqa: RUF001
    curve = page.table("Curve")
    assert curve[0] == ["0", "0.9", "0.8", "1", "0.1", "0.1"]
    assert [row[1] for row in curve] == ["0.9", "–", "0.6123456"]  # noqa: RUF001
    assert page.table("Bars") == [["a", "0.25", "0.2", "0.3"], ["b", "0.75", "0.7", "0.8"]]
    assert page.table("Matrix") == [["r1", "9", "1"], ["r2", "2", "8"]]
    words = page.words()
    for said in (
        "One paragraph.",
        "A summary.",
        "A text.",
        "overfitting",
        "from step 7",
        "epochs = 1",
    ):
        assert said in words
    first, second = map(page.words, page.all("article"))  # the worst first
    assert "overfitting" in first
    assert "Some evidence." in second


def test_ids_are_unique_and_every_reference_inside_the_page_has_its_target(parse) -> None:
    page = parse(html(Source("whole", whole_report())))
    ids = [e.get("id") for e in page.root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page.text)
    assert wanted
    assert set(wanted) <= set(ids)


def test_nothing_is_fetched_and_nothing_runs(parse) -> None:
    page = parse(html(Source("whole", whole_report())))
    assert not page.all("script")
    for element in page.root.iter():
        for name, value in element.attrib.items():
            assert not str(name).startswith("on")
            if str(name).rpartition("}")[2] in ("href", "src"):
                assert value.startswith(("#", "data:"))
    assert "default-src 'none'" in page.text
    assert len(page.text) < 80_000


def test_everything_that_shows_something_has_a_name(parse) -> None:
    page = parse(html(Source("whole", whole_report())))
    assert page.all("html")[0].get("lang") == "en" if page.all("html") else page.root.get("lang")
    for picture in page.all("img"):
        assert "true a" in picture.get("alt")
    shown = [e for e in page.root.iter() if e.get("role") == "img"]
    assert len(shown) == 2
    for element in shown:
        assert element.get("aria-label")
    for table in page.all("table"):
        assert page.words(table).strip()
        heads = [e for e in table.iter() if e.tag.endswith("}th")]
        assert heads
        assert {e.get("scope") for e in heads} == {"col", "row"}
    for scrolling in (e for e in page.root.iter() if "scroll" in (e.get("class") or "").split()):
        assert scrolling.get("tabindex") == "0"
        assert scrolling.get("aria-label")


def test_nothing_of_a_data_set_or_a_recipe_is_markup(parse) -> None:
    report = {
        "recipe": EVIL,
        "split": EVIL,
        "metrics": {EVIL: 0.5, "confusion_matrix": [[1, 2], [3, 4]]},
        "examples": {EVIL: 3},
        "preflight": [{"level": EVIL, "message": EVIL}],
    }
    blocks = [
        sections.text(EVIL),
        sections.table(EVIL, [EVIL, "b"], [[EVIL, EVIL]], note=EVIL),
        sections.lines(EVIL, x=(EVIL, [1, 2]), y=EVIL, series={EVIL: [1, 2], "$x_": [2, 1]}),
        sections.bars(EVIL, [EVIL, "$a^{"], [1, 2], label=EVIL),
        sections.matrix(EVIL, [EVIL], [EVIL], [[1]], row_label=EVIL, column_label=EVIL),
        sections.examples(EVIL, [EVIL], [{EVIL: EVIL}]),
        sections.marked(
            EVIL, [{"parts": [EVIL, EVIL], "scores": [1, None], "facts": {EVIL: EVIL}}], note=EVIL
        ),
        sections.findings([sections.finding(EVIL, "info", EVIL, remedies=[(EVIL, EVIL)])]),
        {"kind": EVIL},
    ]
    sections.add_section(report, "evil", EVIL, blocks, summary=EVIL)
    report["sections"][0]["id"] = '"><script>'
    facts = {"command": [EVIL], "libraries": {EVIL: EVIL}, "seeds": {EVIL: EVIL}, "python": EVIL}
    source = Source(EVIL, report, facts, f"# {EVIL}\n```\n{EVIL}\n")
    page = parse(html(source))
    assert not page.all("script")
    assert EVIL in page.words()
    assert any(EVIL[:20] in page.words(e) for e in page.svg("text"))  # shown, in the chart too
    outside = re.sub(r"^(`{3,}).*?^\1$", "", markdown(source), flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside


def test_a_picture_that_is_none_is_left_out(parse) -> None:
    row = {"image": "https://example.org/a.png", "true": "a"}
    page = parse(
        html(with_block({"kind": "examples", "title": "E", "columns": ["true"], "rows": [row]}))
    )
    assert not page.all("img")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"kind": "hologram"}, "kind 'hologram'"),
        ("text", "kind None"),
        ({"kind": "table", "title": "T", "columns": ["a"], "rows": [[1, 2]]}, "1 columns"),
        ({"kind": "lines", "title": "L"}, "KeyError"),
        ({"kind": "matrix", "title": "M", "rows": 3, "columns": [], "values": []}, "TypeError"),
        ({"kind": "findings", "findings": [3]}, "TypeError"),
    ],
)
def test_a_block_that_cannot_be_shown_is_named(parse, block: object, said: str) -> None:
    page = parse(html(with_block(block)))
    assert said in page.words()
    assert "Not shown here" in page.words()
    assert "Not shown here" in markdown(with_block(block))


def test_a_report_of_the_wrong_shape_still_makes_a_page(parse) -> None:
    made = {
        "sections": [3, {"id": "a"}, {"id": "b", "blocks": 7}],
        "probes": [1],
        "metrics": {"m": 1},
    }
    page = parse(html(Source("t", made)))
    assert "The rule on robustness could not read report.json" in page.words()
    assert page.words().count("Not shown here") == 2
    assert markdown(Source("t", made)).count("Not shown here") == 2
    assert "Verdict" in html(Source("t", {"sections": "none"}))


def test_without_matplotlib_there_are_tables_and_a_sentence(parse, monkeypatch) -> None:
    monkeypatch.setattr(charts, "available", lambda: False)
    page = parse(html(Source("whole", whole_report())))
    assert "no charts, because matplotlib is not installed" in page.words()
    assert not [e for e in page.root.iter() if e.get("role") == "img"]
    assert page.table("Curve")[0][1] == "0.9"


def test_the_same_report_gives_the_same_page_in_another_process() -> None:
    code = (
        "from pathlib import Path; import sys; sys.path.insert(0, sys.argv[1]);"
        "from test_page import *; sys.stdout.reconfigure(encoding='utf-8');"
        "print(html(Source('whole', whole_report())), end='')"
    )
    folder = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stdout == html(Source("whole", whole_report()))


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    charts.bars(sections.bars("B", ["\u4f60\u597d", "$x_"], [1, 2]), "c")
    assert dict(mpl.rcParams) == before


def test_nan_and_missing_values_are_drawn_around_and_shown(parse) -> None:
    values = [1.0, float("nan"), None, float("inf")]
    block = sections.lines(
        "N", x=("step", [1, 2, 3, 4]), y="loss", series={"loss": values}, log=True
    )
    page = parse(html(with_block(block)))
    assert [row[1] for row in page.table("N")] == ["1.0", "nan", "–", "inf"]  # noqa: RUF001
    assert "NaN" in page.words()
    none = sections.lines("N", x=("step", [1]), y="loss", series={"loss": [None]})
    assert "no values" in html(with_block(none))


def test_series_are_told_apart_without_colour() -> None:
    looks = {(place % charts.SERIES, charts.dash(place)) for place in range(20)}
    assert len(looks) == 20
    assert charts.dash(0) != charts.dash(1)


def test_markdown_has_the_same_figures() -> None:
    text = markdown(Source("whole", whole_report()))
    assert "| first | 0.1235 |" in text
    assert "| r1 | 9 | 1 |" in text
    assert "```toml\nepochs = 1\n```" in text
    assert text.startswith("# whole\n")


# --- Contrast ------------------------------------------------------------------------------------


def colours(css: str, dark: bool) -> dict[str, tuple[float, float, float]]:
    """Return the variables of the page in a mode."""
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    found: dict[str, str] = {}
    for block in blocks[: 2 if dark else 1]:
        found |= dict(re.findall(r"--([\w-]+): (#\w+);", block))
    return {name: rgb(value) for name, value in found.items()}


def rgb(text: str) -> tuple[float, float, float]:
    digits = text[1:] if len(text) == 7 else "".join(2 * c for c in text[1:])
    return tuple(int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))


def luminance(colour: tuple[float, float, float]) -> float:
    """Return relative luminance after WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two) -> float:
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_that_of_wcag_aa_in_both_modes(dark: bool) -> None:
    css = html(Source("t", {}))
    c = colours(css, dark)
    for level in ("good", "info", "warning", "serious", "open"):
        assert contrast(c[level], c[f"{level}-bg"]) >= 4.5, level
    for text in ("ink", "ink-2", "link"):
        for ground in ("paper", "panel"):
            assert contrast(c[text], c[ground]) >= 4.5, (text, ground)
    for place in range(charts.SERIES):
        assert contrast(c[f"s{place + 1}"], c["paper"]) >= 3, place
    shares = re.findall(r"\.h(\d+) \{ background: color-mix\(in srgb, var\(--heat\) (\d+)%", css)
    assert [int(place) for place, _ in shares] == list(range(1, HEAT + 1))
    for _, share in shares:
        part = int(share) / 100
        pairs = zip(c["heat"], c["paper"], strict=True)
        ground = tuple(part * one + (1 - part) * two for one, two in pairs)
        assert contrast(c["ink"], ground) >= 4.5, share


def test_counts_are_shaded_by_row_and_other_numbers_by_size():
    counts = page._matrix(sections.matrix("M", ["a", "b"], ["c", "d"], [[3, 1], [0, 0]]), "")
    assert [[c["heat"] for c in row["cells"]] for row in counts["shaded"]] == [[8, 2], [0, 0]]
    values = [[-0.5, None], [0.0, 0.5]]
    shares = page._matrix(sections.matrix("M", ["a", "b"], ["c", "d"], values), "")
    assert [[c["heat"] for c in row["cells"]] for row in shares["shaded"]] == [[0, 0], [5, 10]]
