"""Are the labels right?

The chapter that an audit of the labels fills (`graftkit.audit`): its facts are in run.json, its rows in audit.parquet.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape as escape_html
from pathlib import Path
from typing import Any

from graftkit.report.charts import breakable, tag
from graftkit.report.html import Addition
from graftkit.report.markdown import bullets, escape, number, percent, plural, shorten, table
from graftkit.report.reading import Reading
from graftkit.report.sections import is_evaluation
from graftkit.report.tables import read_rows

NAME = "audit"
TABLE = "audit.parquet"
SUSPECTS = 30  # that the report shows
PAIRS = 15  # of rows that are nearly the same, and of labels that are taken for each other
LETTERS = 160  # of a text
CONTENT = ("text", "text_pair", "path", "thumbnail")


def measure(reading: Reading) -> dict[str, Any] | None:
    """What the run's record says of the audit, but for the time that it took."""
    found = reading.run.get("audit")
    return found and {name: value for name, value in found.items() if name != "seconds"}


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """What was found, what it means, and the rows to look at."""
    if found is None:
        return _missing(reading)
    rows = _read(reading)
    contents = _contents(rows, reading)
    parts = [_verdict(found), _trust(found), _by_split(found)]
    if rows is None:
        parts.append("The single rows are not in this copy of the run; who made it has them, in audit.parquet.")
    elif suspects := listed_suspects(rows):
        parts.append(_suspects(suspects, sum(row["suspect"] for row in rows), contents))
    if found["pairs"]:
        parts.append(_pairs(found))
    parts.append(_near_duplicates(found))
    if rows is not None and (pairs := listed_pairs(rows)):
        parts.append(_twins(pairs, contents))
    return "\n\n".join(parts)


def addition(found: Mapping[str, Any], reading: Reading) -> Addition | None:
    """The pictures of the suspects, where the run kept small ones; their labels stand in the chapter's table."""
    rows = _read(reading) or []
    contents = _contents(rows, reading)
    shown = [
        (row, contents[row["id"]]["thumbnail"])
        for row in listed_suspects(rows)
        if contents.get(row["id"], {}).get("thumbnail")
    ]
    if not shown:
        return None
    caption = tag("figcaption", "The pictures of the table above whose label holds least, the worst first.")
    pictures = "".join(_picture(row, thumbnail) for row, thumbnail in shown)
    return Addition(tag("figure", caption + pictures, id="audit-pictures"))


def listed_suspects(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows whose label is probably wrong that the report shows, the worst first."""
    return sorted((row for row in rows if row["suspect"]), key=lambda row: (row["score"], row["id"]))[:SUSPECTS]


def listed_pairs(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of dev and test with a near-duplicate in train that the report shows: of another label first."""
    found = [row for row in rows if row["split"] != "train" and row["nearest"] is not None]
    return sorted(found, key=lambda row: (row["label"] == row["nearest_label"], -row["similarity"], row["id"]))[:PAIRS]


def _missing(reading: Reading) -> str:
    if several := reading.run.get("seeds") or reading.run.get("folds"):
        return (
            "Not looked at here, since this folder holds several runs. Ask one of them, such as "
            f"{escape(several[0]['name'])}: `graft report RUN/{several[0]['name']} --audit`."
        )
    if is_evaluation(reading.run):
        return (
            "Not looked at: labels are judged by the rows that a model was trained on, which an evaluation does not "
            "have. Ask the run that trained the model: `graft report RUN --audit`."
        )
    return (
        "Nobody has looked yet. `graft report RUN --audit` lists the labels that are probably wrong, and rows of test "
        "that are nearly the same as one of train. It needs the data and the pretrained checkpoint, and takes minutes. "
        "A new run does it by itself with `--report.audit`."
    )


def _verdict(found: Mapping[str, Any]) -> str:
    total, suspects = sum(found["judged"].values()), sum(found["suspects"].values())
    if not suspects:
        return f"Of {plural(total, 'label')} that could be judged, **none looks wrong**."
    looks = "label looks" if suspects == 1 else "labels look"
    return (
        f"Of {plural(total, 'label')} that could be judged, **{suspects:,} {looks} wrong**, and about "
        f"{percent(found['wrong_share'])} of all labels are wrong by estimate. Look at the rows below: mend the labels "
        "that are wrong in the data, and train again. Wrong labels in test make every score here less exact; wrong "
        "labels in train teach mistakes."
    )


def _trust(found: Mapping[str, Any]) -> str:
    """How it was found, and how far to believe it."""
    sentences = [
        "How it was found: the pretrained network, which has not seen these labels, turned each row into numbers, and "
        f"a simple classifier that was shown the other rows said what each is ({found['folds']} folds).",
        f"That classifier agrees with {percent(found['agreement'])} of the labels.",
    ]
    if found["agreement"] < 0.8:
        sentences.append(
            "**That is little: many rows below will be right, and the estimate is too high.** Read the list as hints."
        )
    else:
        sentences.append(
            "Where classes are hard to tell apart it is wrong itself, so the estimate tends to be high. These are "
            "hints, not verdicts: a person must look."
        )
    left = sum(found["left_out"].values())
    if left:
        sentences.append(f"{plural(left, 'row was', 'rows were')} not looked at, to keep the time short.")
    if found["not_judged"]:
        few = plural(found["not_judged"], "row")
        sentences.append(f"{few} could not be judged, since too few rows have the same label.")
    return " ".join(sentences)


def _by_split(found: Mapping[str, Any]) -> str:
    lines = [
        (split, f"{count:,}", f"{found['suspects'][split]:,}", percent(found["suspects"][split], count))
        for split, count in found["judged"].items()
    ]
    return table(("Rows of", "Judged", "Look wrong", "Share"), lines, numbers=[1, 2, 3])


def _suspects(shown: Sequence[Mapping[str, Any]], total: int, contents: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows, how well their labels hold, and what was kept of them."""
    which = f"The {len(shown)} of {total:,} whose label holds least" if total > len(shown) else "The rows"
    words = [_words(contents.get(row["id"])) for row in shown]
    kept = any(words)
    lines = [
        (
            escape(row["id"]),
            escape(row["label"]),
            f"**{escape(row['suggested'])}**",
            number(row["score"], 2),
            *([word or "*not kept*"] if kept else []),
        )
        for row, word in zip(shown, words, strict=True)
    ]
    header = ("Row", "Label in the data", "Looks like", "How well the label holds", *(["What it is"] if kept else []))
    meaning = "How well a label holds: the probability that the simple classifier gives it."
    left = "" if kept else " What the rows hold was not kept in the run's folder, so they are named by id."
    return f"{which}, the worst first. {meaning}{left}\n\n{table(header, lines, numbers=[3])}"


def _pairs(found: Mapping[str, Any]) -> str:
    lines = [
        (escape(pair["label"]), escape(pair["suggested"]), f"{pair['suspects']:,}", f"{pair['estimated_rows']:,.0f}")
        for pair in found["pairs"][:PAIRS]
    ]
    more = f", the {len(lines)} most frequent of {found['pairs_found']:,}" if found["pairs_found"] > len(lines) else ""
    header = ("Label in the data", "Looks like", "Rows that look so", "Wrong by estimate")
    return f"Which label stands for which{more}:\n\n{table(header, lines, numbers=[2, 3])}"


def _near_duplicates(found: Mapping[str, Any]) -> str:
    """How many rows stand in train as well, nearly."""
    facts = []
    for split, near in found["near_duplicates"].items():
        if near["rows"]:
            other = f", {near['other_label']:,} of them with another label" if near["other_label"] else ""
            share = percent(near["rows"], found["looked_at"][split])
            facts.append(f"{plural(near['rows'], 'row')} of {split} ({share}){other}")
    if not facts:
        return "**Near-duplicates.** No row of dev or test is nearly the same as a row of train."
    return (
        "**Near-duplicates.** Nearly the same as a row of train:\n\n"
        f"{bullets(facts)}\n\nA model may know such a row by heart, which flatters its scores: take them out of "
        "test, or keep copies together when you split."
    )


def _twins(shown: Sequence[Mapping[str, Any]], contents: Mapping[str, Mapping[str, Any]]) -> str:
    words = [(_words(contents.get(row["id"])), _words(contents.get(row["nearest"]))) for row in shown]
    kept = any(one or other for one, other in words)
    lines = [
        (
            escape(row["id"]),
            escape(row["nearest"]),
            number(row["similarity"], 2),
            escape(row["label"]),
            escape(row["nearest_label"])
            if row["label"] == row["nearest_label"]
            else f"**{escape(row['nearest_label'])}**",
            *([one or "*not kept*", other or "*not kept*"] if kept else []),
        )
        for row, (one, other) in zip(shown, words, strict=True)
    ]
    header = ("Row", "Row of train", "Similarity", "Label", "Label in train", *(["What it is", "In train"] * kept))
    return f"The nearest, those of two labels first:\n\n{table(header[: len(lines[0])], lines, numbers=[2])}"


def _words(content: Mapping[str, Any] | None) -> str:
    """The texts of a row, or else where its picture lies, as Markdown; nothing where nothing was kept."""
    fields = [content[name] for name in ("text", "text_pair", "path") if content and content.get(name)]
    return " **+** ".join(escape(shorten(field, LETTERS)) for field in fields)


def _picture(row: Mapping[str, Any], thumbnail: bytes) -> str:
    words = f"{row['label']}, looks like {row['suggested']} (row {row['id']})"
    source = b64encode(thumbnail).decode("ascii")
    picture = f'<img alt="{escape_html(words)}" src="data:image/jpeg;base64,{source}">'
    return tag("p", picture + "<br>" + breakable(words))


def _read(reading: Reading) -> list[dict[str, Any]] | None:
    """The rows of audit.parquet; None where the copy of the run has it not."""
    from pyarrow import parquet

    path = Path(reading.folder) / TABLE
    return parquet.read_table(path, partitioning=None).to_pylist() if path.exists() else None


def _contents(rows: Sequence[Mapping[str, Any]] | None, reading: Reading) -> dict[str, Mapping[str, Any]]:
    """What was kept of the rows that are shown, by id: of train in the table itself, of dev and test in theirs."""
    if not rows or reading.run.get("rows_left_out"):
        return {}
    shown = [*listed_suspects(rows), *listed_pairs(rows)]
    contents: dict[str, Mapping[str, Any]] = {row["id"]: row for row in rows if any(row.get(name) for name in CONTENT)}
    for split in reading.records:
        ids = [row["id"] for row in shown if row["split"] == split]
        if ids and (reading.folder / f"rows-{split}.parquet").exists():
            contents |= {row["id"]: row for row in read_rows(reading.folder, split, ids)}
    return contents
