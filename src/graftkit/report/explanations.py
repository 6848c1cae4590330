"""Why did it say that?

What moved the model on its worst errors and on the rows that it was least sure of: words shaded by how much they did,
pictures beside what was seen when parts of them were hidden. `graftkit.explain` makes the numbers, with the model; here
they are kept and told. Only the numbers of this chapter get into metrics.json, and no word of the data.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape as escape_html
from itertools import chain
from pathlib import Path
from typing import Any

from graftkit.errors import UserError
from graftkit.report import charts
from graftkit.report.charts import tag
from graftkit.report.html import Addition
from graftkit.report.markdown import escape, percent, plural, shorten, table
from graftkit.report.reading import Reading
from graftkit.report.sections import NOUNS, is_evaluation
from graftkit.report.tables import written_aside

NAME = "explanations"
TABLE = "explanations-test.parquet"
STRONGEST = 5  # words or parts of a row that report.md names, for and against
LISTED = 12  # words of a row in the table below it
FAINT = 0.05  # of the strongest score of a row, below which a word is not shaded
OFTEN = 2  # errors in which a word must have pushed to be named
SIDE = 160  # of a drawn picture
PARTS = (
    ("upper left", "upper middle", "upper right"),
    ("middle left", "middle", "middle right"),
    ("lower left", "lower middle", "lower right"),
)
METHODS = {
    "text-classification": "integrated gradients (Sundararajan et al. 2017)",
    "image-classification": "occlusion (Zeiler and Fergus 2014)",
}
CAUTION = {
    "text-classification": (
        "What this does not say: that another word would have changed the answer, or that the model is right to heed "
        "a word; the scores are of this model alone, and others come out where words are taken away in another way."
    ),
    "image-classification": (
        "What this does not say: that the model is right to look there, or what it saw; the map is of this model "
        "alone, and others come out where parts are hidden in another size or colour."
    ),
}
KEY = {
    "text-classification": (
        "Blue words pushed towards the true class, orange and underlined ones towards the other; the stronger the "
        "colour, the more."
    ),
    "image-classification": (
        "Left: what the model saw. Right: blue parts pushed towards the true class, orange ones, which are crossed, "
        "towards the other; the stronger the colour, the more."
    ),
}
OFTEN_HEADER = ("Word", "Errors that it pushed", "Errors with it")
LOGITS = "They are in logits: a lead of 0 is a toss-up between the two, one of 2 about 7 to 1."


@dataclass(frozen=True)
class Explanation:
    """What moved the lead of the class that a row was given over another: the true one, or that which came second."""

    id: str
    label: str
    prediction: str
    other: str
    sure: float  # the probability of the prediction
    answer: float  # the lead, in logits
    baseline: float | None = None  # the lead where nothing of the text is there
    rest: float | None = None  # the part of what is between them that is no word's
    gap: float | None = None  # what words and rest miss it by
    steps: int | None = None  # of the integral
    texts: list[list[tuple[str, float | None]]] | None = None  # each text in order, words with scores; blanks have none
    cut: bool = False  # the model read no further
    picture: bytes | None = None  # JPEG of what the model saw
    heat: list[list[float]] | None = None  # by part of the picture, how much the lead falls when it is hidden

    @property
    def wrong(self) -> bool:
        """Whether the row was given a wrong class."""
        return self.label != self.prediction

    @property
    def rival(self) -> str:
        """The class that was taken for the true one, or nearly so."""
        return self.prediction if self.wrong else self.other

    @property
    def gap_share(self) -> float:
        """The gap as a share of the change that was explained, or of 0.1 logits where that is less."""
        return self.gap / max(abs(self.answer - self.baseline), 0.1)

    @property
    def words(self) -> list[tuple[str, float]]:
        """The words of its texts with their scores, of which those that push towards the true class are positive."""
        sign = -1 if self.wrong else 1
        return [(word, sign * score) for word, score in chain(*(self.texts or [])) if score is not None]

    @property
    def parts(self) -> list[list[float]]:
        """The heat, of which what pushes towards the true class is positive."""
        sign = -1 if self.wrong else 1
        return [[sign * value for value in line] for line in self.heat or []]


def write_explanations(folder: Path, found: Sequence[Explanation]) -> None:
    """Write explanations-test.parquet into a run's folder."""
    import pyarrow as pa
    from pyarrow import parquet

    words = pa.list_(pa.list_(pa.struct([("words", pa.string()), ("score", pa.float64())])))
    kinds = {"texts": words, "heat": pa.list_(pa.list_(pa.float64())), "picture": pa.binary(), "cut": pa.bool_()}
    kinds |= dict.fromkeys(("id", "label", "prediction", "other"), pa.string()) | {"steps": pa.int64()}
    names = list(Explanation.__dataclass_fields__)
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in names])
    rows = [asdict(one) | {"texts": one.texts and [_as_structs(text) for text in one.texts]} for one in found]
    with written_aside(folder / TABLE) as aside:
        parquet.write_table(pa.Table.from_pylist(rows, schema), aside, compression="zstd")


def read_explanations(folder: Path) -> list[Explanation] | None:
    """The explanations of a run's folder, None where it has none. UserError where the file is no such table."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / TABLE
    if not path.exists():
        return None
    try:
        rows = parquet.read_table(path, partitioning=None).to_pylist()
        return [Explanation(**row | {"texts": row["texts"] and [_as_pairs(t) for t in row["texts"]]}) for row in rows]
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(f"{path} is no table of explanations; make it again: graft report RUN --explain") from error


def measure(reading: Reading) -> dict[str, Any] | None:
    """How many rows are explained, how, and how well their scores add up; None where there are none."""
    found = read_explanations(reading.folder)
    if found is None:
        return None
    gaps = [one.gap_share for one in found if one.gap is not None]
    wrong = sum(one.wrong for one in found)
    facts = {"method": METHODS[reading.run["task"]], "rows": len(found), "errors": wrong}
    facts |= {"baseline": (reading.run.get("explanations") or {}).get("baseline")}
    return facts | {
        "most_steps": max((one.steps for one in found if one.steps is not None), default=None),
        "largest_gap": max(gaps, default=None),
    }


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """How to read it, and the strongest words or parts of each row."""
    if found is None:
        return _missing(reading)
    rows = read_explanations(reading.folder) or []
    blocks = [escape(_introduction(found, reading)), CAUTION[reading.run["task"]]]
    for heading, kind in _kinds(rows):
        header = ("Row", "True class", "Given", "How sure", "Towards the true class", "Against it")
        blocks += [f"### {heading}", table(header, [_line(one) for one in kind], numbers=[3])]
    often = _often(rows)
    if often:
        blocks += ["### Words that push towards wrong answers", _often_words(rows)]
        blocks.append(table(OFTEN_HEADER, [(escape(word), *numbers) for word, *numbers in often], numbers=[1, 2]))
    return "\n\n".join(blocks)


def addition(found: Mapping[str, Any], reading: Reading) -> Addition:
    """The same with the words shaded, and the pictures shown."""
    rows = read_explanations(reading.folder) or []
    markup = tag("p", escape_html(f"{_introduction(found, reading)} {KEY[reading.run['task']]}"))
    markup += tag("p", escape_html(CAUTION[reading.run["task"]]))
    place = 0
    for heading, kind in _kinds(rows):
        markup += tag("h3", escape_html(heading))
        for one in kind:
            markup += _text_figure(f"why-{place}", one) if one.heat is None else _picture_figure(f"why-{place}", one)
            place += 1
    often = _often(rows)
    if often:
        markup += tag("h3", "Words that push towards wrong answers") + tag("p", escape_html(_often_words(rows)))
        markup += charts.table("Words that push towards wrong answers", OFTEN_HEADER, often, [1, 2])
    return Addition(markup, instead=True)


def _missing(reading: Reading) -> str:
    if is_evaluation(reading.run):
        return "Not here: an evaluation holds no model that could be asked. Explain the run that made the model."
    noun = NOUNS[reading.run["task"]]
    if reading.run.get("rows_left_out"):
        return (
            f"Not here: the {noun}s of the data are not in this copy of the run. Who has them adds this chapter with "
            "`graft report RUN --explain --data.path DATA`."
        )
    return (
        f"Not made yet. `graft report RUN --explain` adds what moved the model on its worst errors and least certain "
        f"{noun}s; `--report.explain` does so at the end of a run."
    )


def _introduction(found: Mapping[str, Any], reading: Reading) -> str:
    """Which rows these are, what their numbers say, and where these come from."""
    wrong, noun = found["errors"], NOUNS[reading.run["task"]]
    sentences = [
        f"{plural(found['rows'], f'test {noun}')}, the ones with the highest loss and those with the least certain "
        f"answer: {wrong:,} given a wrong class, {found['rows'] - wrong:,} the right one.",
    ]
    if noun == "picture":
        sentences += [
            "The numbers say how much of the lead of one class over the other is lost when a part of the picture "
            "turns into the mean colour.",
            f"{LOGITS} Method: {found['method']}.",
        ]
        return " ".join(sentences)
    sentences += [
        "The numbers say how far each word moved the lead of one class over the other: the true class, and the one "
        "that the row was given, or nearly given.",
        f"{LOGITS} Method: {found['method']}, measured from the same text with each of its tokens replaced by "
        f"{found['baseline'] or 'a padding token'}.",
    ]
    gap, steps = found["largest_gap"], f"{found['most_steps']} steps at most"
    held = "within 1%" if gap <= 0.01 else f"{percent(gap)} at worst, which is much: read them with care"
    return " ".join([*sentences, f"The words of a row add up to its whole change to {held} ({steps})."])


def _kinds(rows: Sequence[Explanation]) -> list[tuple[str, list[Explanation]]]:
    """The errors and the right answers, each under its heading."""
    kinds = {
        "Given a wrong class": [one for one in rows if one.wrong],
        "Given the right class, but only just": [one for one in rows if not one.wrong],
    }
    return [(heading, kind) for heading, kind in kinds.items() if kind]


def _line(one: Explanation) -> tuple[str, ...]:
    """A row of the table of report.md."""
    named = one.words if one.heat is None else _named_parts(one)
    given = escape(one.prediction) + ("" if one.wrong else f" (before {escape(one.other)})")
    sides = [
        ", ".join(f"{escape(shorten(word, 40))} ({_signed(score)})" for word, score in side[:STRONGEST]) or "–"
        for side in (_strongest(named, 1), _strongest(named, -1))
    ]
    return (escape(one.id), escape(one.label), given, percent(one.sure), *sides)


def _strongest(named: Iterable[tuple[str, float]], sign: int) -> list[tuple[str, float]]:
    """Those that push one way, the strongest first; those that are written as 0.00 are left out."""
    return sorted(((name, score) for name, score in named if sign * score >= 0.005), key=lambda pair: -abs(pair[1]))


def _named_parts(one: Explanation) -> list[tuple[str, float]]:
    """The mean heat of each ninth of a picture, by where it lies."""
    cells: dict[str, list[float]] = {}
    for y, line in enumerate(one.parts):
        for x, value in enumerate(line):
            cells.setdefault(PARTS[3 * y // len(one.parts)][3 * x // len(line)], []).append(value)
    return [(name, sum(values) / len(values)) for name, values in cells.items()]


def _often(rows: Sequence[Explanation]) -> list[tuple[str, str, str]]:
    """Words among the strongest that pushed away from the true class in several errors, and in how many they stand."""
    errors = [one for one in rows if one.wrong and one.texts]
    pushed, there = Counter(), Counter()
    for one in errors:
        pushed.update({word.casefold() for word, _ in _strongest(one.words, -1)[:STRONGEST] if _is_word(word)})
        there.update({word.casefold() for word, _ in one.words})
    often = [word for word, count in pushed.items() if count >= OFTEN]
    often.sort(key=lambda word: (-pushed[word], there[word], word))
    return [(_seen(word), f"{pushed[word]:,}", f"{there[word]:,}") for word in often[:LISTED]]


def _is_word(word: str) -> bool:
    return any(letter.isalnum() for letter in word)


def _often_words(rows: Sequence[Explanation]) -> str:
    errors = plural(sum(one.wrong for one in rows), "error")
    return (
        f"Of the {errors} above, those in which a word is among the {STRONGEST} that pushed most away from the true "
        "class. A name or a common word here may stand for a habit of the data that does not hold elsewhere: look at "
        "training rows with it."
    )


def _signed(score: float) -> str:
    return f"{score + 0.0:+.2f}".replace("-", "−")


def _seen(text: str) -> str:
    """A text without what cannot be seen; its blanks stay."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _caption(one: Explanation) -> str:
    given = f"given <b>{escape_html(_seen(one.prediction))}</b> ({percent(one.sure)} sure)"
    given += "" if one.wrong else f", before {escape_html(_seen(one.other))}"
    return f"True class <b>{escape_html(_seen(one.label))}</b>, {given}; row {escape_html(_seen(one.id))}"


def _text_figure(id: str, one: Explanation) -> str:
    """The texts of a row with their words shaded, and its strongest words as a table folded away."""
    strongest = max((abs(score) for _, score in one.words), default=0.0)
    sign = -1 if one.wrong else 1
    shaded = " <b>+</b> ".join(
        "".join(_shaded(word, None if score is None else sign * score, strongest) for word, score in text)
        for text in one.texts
    )
    cut = " <i>… the model read no further</i>" if one.cut else ""
    named = sorted(one.words, key=lambda pair: -abs(pair[1]))[:LISTED]
    lines = [(_seen(word), _signed(score), one.label if score > 0 else one.rival) for word, score in named]
    numbers = charts.table(f"Strongest words of row {one.id}", ("Word", "Score", "Pushed towards"), lines, [1])
    fold = "The strongest words"
    text = tag("p", shaded + cut, dir="auto", style="max-width:46rem;line-height:1.9;margin:.3rem 0")
    return charts.figure(id, _caption(one), text, numbers, fold=fold, class_="why")


def _shaded(word: str, score: float | None, strongest: float) -> str:
    """A word in markup; those that push away from the true class are underlined, for who sees no colours."""
    if score is None or not strongest or abs(score) < FAINT * strongest:
        return escape_html(_seen(word))
    shade = charts.level(abs(score) / strongest)
    name, class_ = ("span", f"right{shade}") if score > 0 else ("u", f"wrong{shade}")
    return tag(name, escape_html(_seen(word)), class_=class_, title=_signed(score))


def _picture_figure(id: str, one: Explanation) -> str:
    """What the model saw, twice, the second time with its parts shaded; and its ninths as a table folded away."""
    down, across = len(one.parts), len(one.parts[0])
    strongest = max(abs(value) for line in one.parts for value in line)
    width, height = _size(one.picture)
    width, height = SIDE * width / min(width, height), SIDE * height / min(width, height)
    source = f"data:image/jpeg;base64,{b64encode(one.picture).decode('ascii')}"
    drawn = tag("image", href=source, id=f"{id}-picture", width=width, height=height)
    drawn += tag("use", href=f"#{id}-picture", x=width + 8)
    for y, line in enumerate(one.parts):
        for x, value in enumerate(line):
            box = (width + 8 + x * width / across, y * height / down, width / across, height / down)
            drawn += _square(box, value / strongest) if strongest else ""
    named = sorted(_named_parts(one), key=lambda pair: -abs(pair[1]))
    lines = [(name, _signed(score), one.label if score > 0 else one.rival) for name, score in named]
    numbers = charts.table(f"Parts of row {one.id}", ("Part", "Score", "Pushed towards"), lines, [1])
    describe = "; ".join(f"{name} {score}" for name, score, _ in lines[:3])
    name = f"Picture of row {_seen(one.id)}, and the parts of it that moved the answer"
    drawing = charts.svg(id + "-map", name, drawn, width=round(2 * width + 8), height=round(height), describe=describe)
    return charts.figure(id, _caption(one), drawing, numbers, fold="Part by part", class_="why")


def _square(box: tuple[float, float, float, float], share: float) -> str:
    """A part of the map; those that push away from the true class are crossed, for who sees no colours."""
    if abs(share) < FAINT:
        return ""
    left, top, wide, high = box
    size = {"x": left, "y": top, "width": wide, "height": high}
    colour, strength = "--right" if share > 0 else "--wrong", 0.15 + 0.55 * abs(share)
    square = tag("rect", **size, style=f"fill:rgb(var({colour}) / {strength:.2f})")
    if share > 0:
        return square
    line = {"x1": left, "y1": top + high, "x2": left + wide, "y2": top}
    return square + tag("line", **line, style="stroke:#fff;stroke-width:1")


def _size(picture: bytes) -> tuple[int, int]:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(picture)).size


def _as_structs(text: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
    return [{"words": words, "score": score} for words, score in text]


def _as_pairs(text: Sequence[Mapping[str, Any]]) -> list[tuple[str, float | None]]:
    return [(said["words"], said["score"]) for said in text]
