"""Charts as SVG by matplotlib: text stays text, colours are those of the page, light or dark.

Charts are drawn in colours that stand for names (`#0000f1` for the first series), which are then replaced by
CSS variables. They are 400 by 240 units: as wide as a phone, so that the text is never scaled down.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 400, 240
_POINTS = 72
BAR_HEIGHT = 22
MOST_BARS = 40
SERIES = 8
"""Colours; further series have them again with another dash."""
DASHES = ((), (6, 2), (2, 2), (6, 2, 2, 2))

_INK, _FRAME, _GRID = "#0000a1", "#0000a2", "#0000a3"
_VARIABLES = {_INK: "ink-2", _FRAME: "line-2", _GRID: "line"} | {
    f"#0000f{i + 1}": f"s{i + 1}" for i in range(SERIES)
}
_LONGEST_LABEL, _LONGEST_AXIS = 28, 48
_LEFT = 58
_LETTER = 5.8
"""Width of a letter, on average."""


def available() -> bool:
    """Say whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def dash(place: int) -> tuple[int, ...]:
    """Return the dashes of a series: never the same dashes in the same colour."""
    return DASHES[(place % len(DASHES) + place // SERIES) % len(DASHES)]


def lines(block: Mapping[str, Any], name: str) -> str:
    """Draw a `lines` block.

    Args:
        block: Of a section.
        name: Put in front of the ids in the SVG, so that they are unique in the page.
    """
    from matplotlib.ticker import MaxNLocator

    with _axes(name, HEIGHT) as (axes, svg):
        x = block["x"]["values"]
        shown: list[float] = []
        for place, series in enumerate(block["series"]):
            shown += _draw_series(axes, x, series, place)
        y = block["y"]
        if y.get("range"):
            low, high = y["range"]
            axes.set_ylim(low, high)
        if y.get("scale") == "log" and shown and min(shown) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda *_: "")
        if all(isinstance(value, int) for value in x):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(_short(block["x"]["label"], _LONGEST_AXIS))
        axes.set_ylabel(_short(y["label"], _LONGEST_AXIS))
    return svg[0]


def _draw_series(
    axes: Axes, x: Sequence[float], series: Mapping[str, Any], place: int
) -> list[float]:
    """Draw a curve through the values that there are; return them."""
    colour = f"#0000f{place % SERIES + 1}"
    points = [(a, b) for a, b in zip(x, series["values"], strict=True) if _finite(b)]
    if not points:
        return []
    marker = "o" if len(points) <= 15 else None  # noqa: PLR2004 (more hide the line)
    axes.plot(
        [a for a, _ in points],
        [b for _, b in points],
        color=colour,
        linewidth=1.8,
        dashes=dash(place) or (None, None),
        marker=marker,
        markersize=4,
    )
    if "low" in series and "high" in series:
        triples = zip(x, series["low"], series["high"], strict=True)
        band = [(a, b, c) for a, b, c in triples if _finite(b) and _finite(c)]
        a, b, c = zip(*band, strict=True) if band else ((), (), ())
        axes.fill_between(a, b, c, color=colour, alpha=0.16, linewidth=0)
    return [b for _, b in points]


def bars(block: Mapping[str, Any], name: str) -> str:
    """Draw a `bars` block: one horizontal bar a label, the first on top."""
    labels, values = block["labels"][:MOST_BARS], block["values"][:MOST_BARS]
    height = max(HEIGHT // 2, BAR_HEIGHT * len(labels) + 50)
    left = 16 + _LETTER * max(map(len, map(_short, labels)), default=0)
    with _axes(name, height, left) as (axes, svg):
        known = [v if _finite(v) else 0.0 for v in values]
        places = range(len(labels))
        axes.barh(places, known, color="#0000f1", height=0.7)
        if "low" in block and "high" in block:
            for place, low, high in zip(places, block["low"], block["high"], strict=False):
                if _finite(low) and _finite(high):
                    axes.plot([low, high], [place, place], color=_INK, linewidth=1.2, marker="|")
        axes.set_yticks(list(places), [_short(label) for label in labels])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(_short(block.get("label", ""), _LONGEST_AXIS))
    return svg[0]


@contextmanager
def _axes(name: str, height: int, left: float = _LEFT) -> Iterator[tuple[Axes, list[str]]]:
    """Give axes to draw on, and a list that holds the SVG afterwards."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, whose figures are global and kept

    svg: list[str] = []
    with _silence(), rc_context(_settings()):
        figure = Figure(figsize=(WIDTH / _POINTS, height / _POINTS))
        axes = figure.subplots()
        # Margins by hand: to measure all texts first would take as long again as to draw them.
        figure.subplots_adjust(left / WIDTH, 42 / height, 1 - 10 / WIDTH, 1 - 14 / height)
        yield axes, svg
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        svg.append(clean(file.getvalue(), name))


def _settings() -> Any:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "sft-engine",
        "text.parse_math": False,  # a class may be called `$x_`
        "axes.formatter.useoffset": False,
        "axes.unicode_minus": True,
        "font.size": 11,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FRAME,
        "xtick.color": _FRAME,
        "ytick.color": _FRAME,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "axes.grid": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "path.simplify": True,
    }


@contextmanager
def _silence() -> Iterator[None]:
    """Keep matplotlib from speaking of fonts that it lacks: the reader's browser has them."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def clean(svg: str, name: str) -> str:
    """Return an SVG as it stands in a page: without header, with colours by name and its own ids."""
    svg = svg[svg.index("<svg") :]
    for part in (
        "metadata",
        "style",
    ):  # the latter would hold for the whole page, which has its own
        svg = re.sub(rf"<{part}[ >].*?</{part}>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1">', svg, count=1)
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", svg))
    # In tags alone: text has no raw angle brackets, and stays as it is.
    svg = re.sub(r"<[^<>]+>", lambda tag: _clean_tag(tag[0], name, used), svg)
    return re.sub(r">\s+<", "><", svg).replace("<defs></defs>", "").strip()


def _clean_tag(tag: str, name: str, used: set[str]) -> str:
    tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r"(?:xlink:)?href=\"#", f'href="#{name}-', tag).replace("url(#", f"url(#{name}-")
    tag = re.sub(r"font-family: [^;\"]*; ", "", re.sub(r"\s*\n", " ", tag))
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _short(text: str, longest: int = _LONGEST_LABEL) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
