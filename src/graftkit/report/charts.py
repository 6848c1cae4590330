"""What do the numbers look like?

Charts as SVG, written here: the few kinds that a report has take fewer lines than a library would need to be styled,
follow the page's colours in the dark and on paper, keep their text as text, and the same numbers make the same bytes.
Colours, dashes and fonts are in page.css; no chart tells things apart by colour alone. The numbers of each stand in a
table below it (`figure`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 270  # of a chart, in its own units: a phone shows it at about this size
TOP, RIGHT, BOTTOM, LEFT = 30, 14, 42, 52  # margins
LINE = 17  # the height of a line of text in a list
LETTER = 5.6  # the width of a letter of an 11 unit font, about
LEVELS = 5  # of shading
CELL = 9  # the side of a matrix' cell
NAMED = 150  # classes, above which the lines of a matrix are too thin for names
CELLS = 25_000  # of a matrix that are drawn
KINDS = ("first", "second", "third", "fourth", "fifth", "sixth")  # of lines: each has a colour and dashes of its own


@dataclass(frozen=True)
class Series:
    """Points of one kind: joined by a line, dotted, or both."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str  # the class that page.css styles, one of `KINDS`: "first" is a line, "second" a dashed line
    dots: bool = False


@dataclass(frozen=True)
class Axes:
    """Which numbers the frame of a chart spans, and where they lie in it."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: float = HEIGHT

    def across(self, value: float) -> float:
        return LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        low, high = self.height - BOTTOM, TOP
        return low + (value - self.y[0]) / (self.y[1] - self.y[0]) * (high - low)

    def at(self, x: float, y: float) -> str:
        return f"{self.across(x):.1f},{self.down(y):.1f}"


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element whose `content` is markup already; a `class_` is its class, and `data_x` its data-x."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:.1f}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{given}>{content}</{name}>"


def text(words: str, x: float, y: float, class_: str = "", **attributes: object) -> str:
    return tag("text", escape(words), x=float(x), y=float(y), **({"class_": class_} if class_ else {}), **attributes)


def svg(id: str, title: str, content: str, *, width: float = WIDTH, height: float = HEIGHT, describe: str = "") -> str:
    """A drawing that a screen reader reads as its title and description."""
    names = tag("title", escape(title), id=f"{id}-title") + tag("desc", escape(describe), id=f"{id}-words")
    label = f"{id}-title {id}-words"
    box = f"0 0 {width:g} {height:g}"
    size = {"width": f"{width:g}", "height": f"{height:g}"}
    return tag("svg", names + content, viewBox=box, **size, role="img", aria_labelledby=label)


def figure(
    id: str, caption: str, drawing: str, numbers: str, *, fold: str = "The numbers", class_: str = "chart"
) -> str:
    """A drawing with what it shows in words, and the table of its numbers folded away below it, under `fold`."""
    shown = tag("figcaption", caption) + tag("div", drawing, class_="drawing")
    folded = tag("details", tag("summary", fold) + numbers)
    return tag("figure", shown + folded, id=id, class_=class_)


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of plain texts, each line headed by its first cell; the columns in `numbers` are set to the right."""
    right = set(numbers)

    def cell(name: str, column: int, words: str) -> str:
        scope = {"scope": "col"} if name == "head" else {"scope": "row"} if column == 0 else {}
        side = {"class_": "number"} if column in right else {}
        return tag("th" if scope else "td", breakable(words), **scope, **side)

    def line(name: str, words: Sequence[str]) -> str:
        return "<tr>" + "".join(cell(name, column, word) for column, word in enumerate(words)) + "</tr>\n"

    head = tag("thead", line("head", header))
    body = tag("tbody", "".join(line("body", row) for row in rows))
    return scroller(caption, tag("table", tag("caption", escape(caption), class_="unseen") + head + body))


def breakable(words: str) -> str:
    """Any text as markup, which may go on in a new line after each underscore."""
    return escape(words).replace("_", "_<wbr>")


def scroller(name: str, content: str) -> str:
    """A box that scrolls what is wider or taller than it, by keyboard too."""
    return tag("div", content, class_="scroll", role="region", aria_label=name, tabindex=0)


def ticks(low: float, high: float, *, most: int = 6, least: float = 0.0) -> tuple[list[float], int]:
    """Round numbers from low to high and their decimals: at most `most` steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    step = max(step, least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return [round(place * step, 10) for place in range(first, last + 1)], places


def around(values: Sequence[float], *, most: float = math.inf) -> tuple[float, float]:
    """Round numbers that hold the values between them, the upper no more than `most`."""
    low, high = min(values), max(values)
    spread = (high - low) or max(abs(high) / 10, 1e-3)
    step = 10.0 ** math.floor(math.log10(spread))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return round(low, 10), round(min(max(high, low + step), most), 10)


def curves(
    id: str,
    title: str,
    series: Sequence[Series],
    axes: Axes,
    names: tuple[str, str],
    *,
    marked: tuple[float, float, str] | None = None,
    percents: bool = False,
    powers: bool = False,
    describe: str = "",
) -> str:
    """Lines over a shared pair of axes, whose names are (across, up); `marked` rings a point and says why.

    With `percents` the axes are shares; with `powers` what goes across are logarithms, to base 10.
    Many or long names of lines stand below the chart.
    """
    below = sum(LETTER * len(one.name) + 46 for one in series) > WIDTH / 2 and len(series) > 1
    drawn = _frame(axes, names, percents=percents, powers=powers)
    drawn += _list(series, axes.height) if below else _legend(series)
    for one in series:
        if len(one.points) > 1:
            drawn += tag("polyline", points=" ".join(axes.at(*point) for point in one.points), class_=one.kind)
        if one.dots:
            drawn += "".join(_dot(axes, *point, one.kind) for point in one.points)
    if marked:
        x, y, words = marked
        across, down = axes.across(x), axes.down(y)
        drawn += tag("circle", cx=across, cy=down, r=7.5, class_="ring")
        late = across > WIDTH / 2
        place = down + (20 if down < HEIGHT / 2 else -13)
        drawn += text(words, across + (6 if late else -6), place, "end" if late else "", stroke="none")
    height = axes.height + (len(series) * LINE + 4 if below else 0)
    return svg(id, title, drawn, height=height, describe=describe)


def scatter(
    id: str,
    title: str,
    points: Sequence[tuple[float, float]],
    axes: Axes,
    names: tuple[str, str],
    *,
    describe: str = "",
) -> str:
    """A dot for each point, over a line where both sides are the same; both axes span the same numbers."""
    drawn = _frame(axes, names)
    drawn += tag("path", d=f"M{axes.at(axes.x[0], axes.x[0])}L{axes.at(axes.x[1], axes.x[1])}", class_="second")
    dots = "".join(f"M{axes.at(*point).replace(',', ' ')}h0" for point in points)
    drawn += tag("path", d=dots, class_="dots")
    return svg(id, title, drawn, height=axes.height, describe=describe)


@dataclass(frozen=True)
class Bin:
    """The rows whose stated probability lies in one range: how sure the model was, and how often it was right."""

    low: float
    high: float
    rows: int
    stated: float
    right: float
    least: float  # the interval of `right`
    most: float


def reliability(id: str, title: str, bins: Sequence[Bin], *, describe: str = "") -> str:
    """How often the model was right by how sure it was, above the rows that each point stands for."""
    axes = Axes((0, 1), (0, 1), HEIGHT + 40)
    floor = HEIGHT + 110
    drawn = _frame(axes, ("", "share that was right"), percents=True)
    drawn += tag("path", d=f"M{axes.at(0, 0)}L{axes.at(1, 1)}", class_="second")
    drawn += _legend([Series("measured", [], "first", dots=True), Series("as it should be", [], "second")])
    most = max(one.rows for one in bins)
    for one in bins:
        x, low, high = axes.across(one.stated), axes.down(one.least), axes.down(one.most)
        drawn += tag(
            "path", d=f"M{x:.1f},{low:.1f}V{high:.1f}M{x - 3:.1f},{low:.1f}h6M{x - 3:.1f},{high:.1f}h6", class_="first"
        )
        drawn += _dot(axes, one.stated, one.right, "first")
        left, height = axes.across(one.low), 44 * one.rows / most
        width = axes.across(one.high) - left - 1
        drawn += tag("rect", x=left, y=float(floor - height), width=width, height=float(height), class_="bar")
    drawn += tag("path", d=f"M{LEFT},{floor}H{WIDTH - RIGHT}", class_="axis")
    drawn += text("rows", LEFT - 7, floor - 2, "end quiet") + text(f"{most:,}", LEFT - 7, floor - 36, "end quiet")
    drawn += text("stated probability", (LEFT + WIDTH - RIGHT) / 2, floor + 18, "middle")
    return svg(id, title, drawn, height=floor + 26, describe=describe)


def matrix(id: str, title: str, counts: np.ndarray, names: Sequence[str], *, describe: str = "") -> str:
    """A confusion matrix (labels, labels) whose lines are the truth: each cell shaded by its share of its line.

    Wrong answers are small squares in the other colour. Of more than `CELLS` cells, those with the most rows are drawn.
    """
    many = len(names) > NAMED
    cell = max(1.5, CELL * NAMED / len(names)) if many else CELL
    left = 40 if many else 34 + 4.8 * max(len(name) for name in names)
    size = cell * len(names)
    drawn = tag("rect", x=float(left), y=22.0, width=float(size), height=float(size), class_="field")
    for kind, edge, paths in (("right", 0.0, True), ("wrong", cell * 0.12, False)):
        for level, cells in _by_level(counts, diagonal=paths).items():
            side = cell - 2 * edge
            path = "".join(
                f"M{left + column * cell + edge:.4g} {22 + row * cell + cell / 2:.4g}h{side:.3g}"
                for row, column in cells
            )
            drawn += tag("path", d=path, class_=f"{kind}{level}", stroke_width=f"{side:.3g}")
    every = 10 if len(names) <= NAMED else 50
    for place, name in enumerate(names):
        middle = 22 + (place + 0.5) * cell + 3
        if not many:
            drawn += text(name, left - 22, middle, "end") + text(str(place + 1), left - 4, middle, "end quiet")
        if (place + 1) % every == 0 or place == 0:
            drawn += text(str(place + 1), left + (place + 0.5) * cell, 17, "middle quiet")
            line = f"M{left + (place + 1) * cell:.1f},22v{size:.1f}M{left:.1f},{22 + (place + 1) * cell:.1f}h{size:.1f}"
            drawn += tag("path", d=line, class_="grid") if place else ""
            drawn += text(str(place + 1), left - 5, middle, "end quiet") if many else ""
    return svg(id, title, drawn, width=round(left + size + 8), height=round(size + 30), describe=describe)


def level(share: float) -> int:
    """How dark a share of 0 to 1 is shaded: 0 for none, else 1 to `LEVELS`."""
    return min(LEVELS, math.ceil(share * LEVELS)) if share > 0 else 0


def _by_level(counts: np.ndarray, *, diagonal: bool) -> Mapping[int, list[tuple[int, int]]]:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    chosen = counts * (np.eye(len(counts), dtype=counts.dtype) if diagonal else 1 - np.eye(len(counts), dtype=int))
    places = np.argsort(-chosen, axis=None, kind="stable")[: min(CELLS, np.count_nonzero(chosen))]
    found: dict[int, list[tuple[int, int]]] = {}
    for row, column in zip(*np.unravel_index(np.sort(places), counts.shape), strict=True):
        found.setdefault(level(float(shares[row, column])), []).append((int(row), int(column)))
    return dict(sorted(found.items()))


def _frame(axes: Axes, names: tuple[str, str], *, percents: bool = False, powers: bool = False) -> str:
    """The grid, the numbers along it, and the names of the axes."""

    def words(value: float, places: int) -> str:
        return f"{value:.{max(0, places - 2)}%}" if percents else f"{value:,.{max(0, places)}f}"

    drawn = ""
    heights, places = ticks(*axes.y)
    for value in heights:
        drawn += tag("path", d=f"M{LEFT},{axes.down(value):.1f}H{WIDTH - RIGHT}", class_="grid")
        drawn += text(words(value, places), LEFT - 7, axes.down(value) + 4, "end quiet")
    base = axes.down(axes.y[0])
    widths, places = ticks(*axes.x, least=0.0 if percents or axes.x == axes.y else 1.0)
    for value in widths:
        name = f"1e{value:.0f}" if powers else words(value, places)
        drawn += text(name, axes.across(value), base + 16, "middle quiet")
    drawn += tag("path", d=f"M{LEFT},{base:.1f}H{WIDTH - RIGHT}", class_="axis")
    drawn += text(names[0], (LEFT + WIDTH - RIGHT) / 2, base + 34, "middle") if names[0] else ""
    return drawn + (text(names[1], 4, 14) if names[1] else "")


def _legend(series: Sequence[Series]) -> str:
    """What each line is, at the top right, where there are several."""
    if len(series) < 2:
        return ""
    drawn, right = "", float(WIDTH - RIGHT)
    for one in reversed(series):
        left = right - LETTER * len(one.name) - 34
        drawn += tag("path", d=f"M{left:.1f},10h24", class_=one.kind)
        drawn += tag("circle", cx=left + 12, cy=10.0, r=3.5, class_=one.kind) if one.dots else ""
        drawn += text(one.name, left + 29, 14)
        right = left - 12
    return drawn


def _list(series: Sequence[Series], top: float) -> str:
    """What each line is, one below the other."""
    drawn = ""
    for place, one in enumerate(series):
        middle = top + place * LINE + 6
        drawn += tag("path", d=f"M{LEFT},{middle:.1f}h36", class_=one.kind) + text(one.name, LEFT + 44, middle + 4)
    return drawn


def _dot(axes: Axes, x: float, y: float, kind: str) -> str:
    return tag("circle", cx=axes.across(x), cy=axes.down(y), r=3.5, class_=kind)
