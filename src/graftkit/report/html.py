"""How does a report read in a browser?

One file that needs no network, server or other file: the Markdown of report.md's chapters as HTML, with page.css and
page.js inside. Tables get captions and heads that a screen reader can name, and scroll by themselves where they are
wider than the page. Whatever the data say, only the script of this package runs: the page's own rules
(Content-Security-Policy) allow no other, and no address to be fetched.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.report.charts import breakable, tag

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML
    from markdown_it.token import Token

LONG = 25  # rows, above which a table scrolls by itself
CORNER = "True class, below; given, across"  # the head of a matrix' first column, which Markdown leaves empty
CAUTION = " **Watch out:**"  # what the summary's last sentence begins with

Cells = Callable[[int, int, str], Mapping[str, str]]
"""The attributes of a cell, by its row, column and words."""


@dataclass(frozen=True)
class Addition:
    """What a chapter gets besides its Markdown: markup after it (or instead of it), and looks for its first table."""

    markup: str = ""
    instead: bool = False
    cells: Cells | None = None


def page(
    heading: str,
    summary: str,
    chapters: Mapping[str, str],
    additions: Mapping[str, Addition],
    table: str = "predictions-test.parquet",
) -> str:
    """The whole page, from the Markdown of its heading, summary and chapters, and what is added to these.

    `table` is what the foot names as the file that holds it row by row.
    """
    reader = _reader()
    score, caution, words = summary.partition(CAUTION)
    opening = tag("h1", reader.renderInline(heading)) + reader.render(score)
    opening += tag("div", reader.render(caution.strip() + words), class_="caution") if caution else ""
    sections = [_section(reader, name, body, additions.get(name, Addition())) for name, body in chapters.items()]
    links = "".join(tag("li", tag("a", escape(name), href=f"#{_slug(name)}")) for name in chapters)
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_rules(script)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            tag("title", escape(_words(reader.parseInline(heading)[0]))),
            tag("style", style),
            "</head>",
            "<body>",
            '<a class="skip" href="#report">Skip to the report</a>',
            f'<nav aria-label="Chapters"><ul>{links}</ul></nav>',
            '<main id="report" tabindex="-1">',
            tag("header", opening),
            *sections,
            "</main>",
            "<footer><p>The same in plain text: report.md; in numbers: metrics.json; row by row: "
            f"{escape(table)}. They lie beside this page.</p></footer>",
            f"<script>{script}</script>",
            "</body>",
            "</html>",
        ]
    )


def _rules(script: str) -> str:
    print = b64encode(sha256(script.encode()).digest()).decode("ascii")
    allowed = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{print}'"
    return f"{allowed}; base-uri 'none'; form-action 'none'"


def _reader() -> MarkdownIt:
    """What reads the chapters: they hold no links, pictures or HTML, so a text that seems to is none."""
    from markdown_it import MarkdownIt

    off = ("link", "image", "autolink", "html_inline", "html_block", "reference")
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(off)
    reader.add_render_rule("text", _breakable)
    return reader


def _breakable(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    return breakable(tokens[place].content)


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _section(reader: MarkdownIt, name: str, body: str, addition: Addition) -> str:
    slug = _slug(name)
    tokens = [] if addition.instead else _dressed(reader.parse(body), name, addition.cells)
    content = reader.renderer.render(tokens, reader.options, {})
    title = tag("h2", escape(name), id=f"{slug}-title")
    return tag("section", f"{title}\n{content}{addition.markup}", id=slug, aria_labelledby=f"{slug}-title")


def _dressed(tokens: Sequence[Token], chapter: str, cells: Cells | None) -> list[Token]:
    """The tokens of a chapter, its tables in boxes that scroll, with captions, heads of lines, and looks of cells."""
    dressed: list[Token] = []
    starts = [place for place, token in enumerate(tokens) if token.type == "table_open"]
    ends = [place for place, token in enumerate(tokens) if token.type == "table_close"]
    done = 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        dressed += tokens[done:start] + _table(tokens[start : end + 1], chapter, cells if number == 0 else None)
        done = end + 1
    dressed += tokens[done:]
    for token in dressed:
        if token.type == "fence":  # a wide one scrolls by itself
            token.attrSet("tabindex", "0")
    return dressed


def _table(tokens: Sequence[Token], chapter: str, cells: Cells | None) -> list[Token]:
    head: list[str] = []
    row, column = -2, 0  # the line of heads is row -1
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            row, column = row + 1, -1
        elif token.type in ("th_open", "td_open"):
            column += 1
            inside = tokens[place + 1]
            if token.type == "th_open":
                inside.children = inside.children or [_token("text", CORNER)]
                head.append(_words(inside))
            _dress_cell(token, tokens[place + 2], row, column, _words(inside), cells)
    name = f"{chapter}: {', '.join(head)}" if len(head) <= 8 else f"{chapter}: {len(head) - 1} columns"
    long = " long" if row + 1 > LONG else ""
    wide = " matrix" if head[0] == CORNER else ""
    box = f'<div class="scroll{long}{wide}" role="region" aria-label="{escape(name)}" tabindex="0">'
    caption = tag("caption", escape(name), class_="unseen")
    markup = [_token("html_block", content) for content in (box, caption, "</div>\n")]
    return [markup[0], tokens[0], markup[1], *tokens[1:], markup[2]]


def _words(inside: Token) -> str:
    """The words of a line, without its marks."""
    return "".join(token.content for token in inside.children or [])


def _dress_cell(opening: Token, closing: Token, row: int, column: int, words: str, cells: Cells | None) -> None:
    """Make a cell name its line or column, and give it its looks."""
    looks: dict[str, Any] = dict(cells(row, column, words)) if cells and row >= 0 else {}
    classes = [looks.pop("class")] if "class" in looks else []
    if opening.attrs.pop("style", "") == "text-align:right":
        classes.append("number")
    opening.attrs.update(looks)
    if classes:
        opening.attrSet("class", " ".join(classes))
    if row < 0 or column == 0:
        opening.tag = closing.tag = "th"
        opening.attrSet("scope", "col" if row < 0 else "row")


def _token(type: str, content: str) -> Token:
    from markdown_it.token import Token

    return Token(type, "", 0, content=content)
