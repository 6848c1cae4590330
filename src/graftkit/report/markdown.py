"""How is it written so that it reads well, and no text can break it?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPECIAL = re.compile(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?i:(?<=\bwww)\.)")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
LAST, FIRST = re.compile(r"([^\s\x00-\x7f]|[a-zA-Z0-9])$"), re.compile(r"^([^\s\x00-\x7f]|[a-zA-Z0-9])_?")
START = re.compile(r"^([-+=#:]|\d+(?=[.)](?: |$)))")


def escape(text: str) -> str:
    """Any text as one line of markdown that shows it as it is: it makes no markup, HTML, web link, table cell or line.

    Blanks and what cannot be seen (new lines, control characters, marks that turn the direction) become single blanks.
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    line = SPECIAL.sub(lambda match: "\\" + match[0], line)
    line = START.sub(lambda match: match[1] + "\\" if match[1].isdigit() else "\\" + match[1], line)
    return "".join(ENTITIES.get(letter, letter) for letter in line)


def bold(text: str, before: str = "", after: str = "") -> str:
    """Text in bold, with what stands right before and after it: all are Markdown already. No text at all is a dash.

    Marks between a letter and a sign, as in `order**?**`, open nothing (CommonMark 0.31, 6.2). So a letter beside marks
    that a sign follows or precedes is written by its number, which ends and begins with a sign: `orde&#114;**?**`.
    """
    text = text or "–"
    if not text[0].isalnum():
        before = LAST.sub(_by_number, before)
    if not text[-1].isalnum():
        after = FIRST.sub(_by_number, after)
    return f"{before}**{text}**{after}"


def _by_number(match: re.Match[str]) -> str:
    return f"&#{ord(match[1])};" + "\\_" * (match[0][1:] == "_")


def shorten(text: str, length: int = 200) -> str:
    """At most `length` characters of a text, cut between words where there are any, with a sign that it was cut."""
    if len(text) <= length:
        return text
    start = text[: length - 1]
    return (start[: start.rfind(" ")] if " " in start[length // 2 :] else start).rstrip() + "…"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A markdown table of cells that are markdown already; the columns in `numbers` are set to the right."""
    right = set(numbers)
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def bullets(items: Iterable[str]) -> str:
    """A markdown list of items that are markdown already."""
    return "\n".join(f"- {item}" for item in items)


def fenced(text: str, language: str = "") -> str:
    """A block of code, fenced by more backticks than the text has in a row."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def decimals(half_width: float) -> int:
    """The decimals that an uncertainty of +-half_width supports: down to its first digit, at least 2, at most 6.

    Two at least, since with one a score of 0.96 would read as 1.0. For +-1 and more, which no such score has, none; for
    +-10 and more less than none: -1 rounds to tens.
    """
    if half_width >= 1:
        return -math.floor(math.log10(half_width))
    return min(6, max(2, -math.floor(math.log10(half_width)))) if half_width > 0 else 2


def number(value: float, places: int) -> str:
    """A score in so many decimals, and in more where it would read as 1 without being 1."""
    while places < 6 and value != 1 and round(value, places) == 1:
        places += 1
    return _digits(value, places)


def _digits(value: float, places: int, sign: str = "") -> str:
    return f"{round(value, places) + 0.0:{sign},.{max(0, places)}f}"  # + 0.0 turns -0.00 into 0.00


def with_interval(score: Mapping[str, Any]) -> str:
    """A score with as many digits as its interval supports: 0.93 (95% interval 0.91 to 0.95)."""
    if score["method"] == "constant":
        return f"{number(score['value'], 2)} (no interval: too little to tell how far it would move)"
    value, low, high = rounded(score)
    return f"{value} ({score['level']:.0%} interval {low} to {high})"


def rounded(score: Mapping[str, Any]) -> tuple[str, str, str]:
    """Value, low and high of a score, each with as many digits as the interval supports."""
    places = decimals((score["high"] - score["low"]) / 2)
    value = number(score["value"], places)
    low, high = (_digits(score[end], len(value.partition(".")[2]) or min(0, places)) for end in ("low", "high"))
    return value, low, high


def in_brackets(score: Mapping[str, Any]) -> str:
    """A score and its interval in a cell of a table: 0.93 (0.91 to 0.95)."""
    if score["method"] == "constant":
        return number(score["value"], 2)
    value, low, high = rounded(score)
    return f"{value} ({low} to {high})"


def signed(score: Mapping[str, Any]) -> str:
    """A difference and its interval in a cell of a table, with signs: +0.03 (-0.01 to +0.07)."""
    if score["method"] == "constant":
        return with_sign(score["value"], 2)
    places = decimals((score["high"] - score["low"]) / 2)
    value, low, high = (with_sign(score[end], places) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def with_sign(value: float, places: int) -> str:
    """A difference in so many decimals: +0.03, -0.01."""
    return _digits(value, places, "+")


def limit(value: float) -> str:
    """A probability from which on something is done, in as many digits as come near it: 0.5, 0.013, 0.99987."""
    if value < 0.99 or value == 1:
        return f"{value:.3g}"
    gap = float(f"{1 - value:.2g}")  # two digits of what is left to 1
    return f"{1 - gap:.{1 - math.floor(math.log10(gap))}f}".rstrip("0")


def told(value: float, interval: Mapping[str, Any] | None, places: int = 2) -> tuple[str, str]:
    """A score and its interval; no interval, and so many digits, where there is none or nearly all resamples agree."""
    if interval is None or interval["method"] == "constant":
        return number(value, places), "–"
    words, low, high = rounded(interval)
    return words, f"{low} to {high}"


def probability(p: float) -> str:
    """A p-value with no more digits than it deserves."""
    return "under 0.001" if p < 0.001 else number(p, 2 if p >= 0.095 else 3)


SHORT = (
    *(("_", " "), ("f1", "F1"), ("matthews", "Matthews correlation"), ("rmse", "RMSE"), ("mae", "mean absolute error")),
    *(("bleu", "BLEU"), ("chrf", "chrF"), ("rouge l", "ROUGE-L"), ("rouge ", "ROUGE-")),
    *(("r2", "R²"), ("pearson", "Pearson correlation"), ("spearman", "Spearman correlation")),
)
"""Parts of names of scores, and what they are in words."""


def title(name: str) -> str:
    """The name of a score in words: macro_f1 is macro F1."""
    for short, words in SHORT:
        name = name.replace(short, words)
    return name


def percent(part: float, whole: float = 1) -> str:
    """A share in whole percent; "under 1%" and "over 99%" where that would read as none or all."""
    share = part / whole if whole else 0.0
    if 0 < share < 0.01:
        return "under 1%"
    return "over 99%" if 0.99 < share < 1 else f"{share:.0%}"


def amount(value: float) -> str:
    """A count that is easy to read: 640, 12,345, 22.7 million."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def megabytes(size: int) -> str:
    """A number of bytes that is easy to read: 0.023 MB, 91 MB, 1,230 MB."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.2g} MB"


def duration(seconds: float) -> str:
    """A time that is easy to read: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(count: int, name: str, several: str | None = None) -> str:
    """A count with its noun: 1 row, 2 rows, 3 classes."""
    return f"{count:,} {name if count == 1 else several or name + 's'}"
