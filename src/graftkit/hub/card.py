"""What does the model's page say?

README.md has three kinds of text. Ours, from `<!-- graftkit: begin -->` to `<!-- graftkit: end -->`, is written anew
with each push. The notes of `--hub.card`, from `<!-- notes: begin -->` to `<!-- notes: end -->`, stay until they are
given again; their front matter is kept there too, as a comment. All else is somebody's own, and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from graftkit.adapt import STRATEGIES
from graftkit.errors import UserError
from graftkit.hub import card_sections as sections
from graftkit.report.markdown import escape, title
from graftkit.report.sections import look

FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n([\S\s]*?)^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
OPENED = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n")
MARKER = re.compile(r"^<!-- (graftkit|notes): (begin|end) -->[ \t]*\r?$", re.MULTILINE)
NOTES_FRONT = re.compile(r"<!-- notes: begin -->\s*<!-- metadata\r?\n([\S\s]*?)^-->", re.MULTILINE)
OURS, NOTES = (["graftkit begin", "graftkit end"], ["notes begin", "notes end"])
ORDERS = ([], OURS, NOTES, OURS + NOTES, NOTES + OURS)  # of the markers that a page may have

DEMOS = ("demo", "demo-source")  # data that come with graftkit or with scikit-learn
FROM_THE_RUN = ("base_model", "base_model_relation", "library_name", "metrics", "model-index", "pipeline_tag")
JOINED = ("datasets", "tags")  # ours, those of the notes, and tags that the page has but for strategies of older runs
OWNED = (*FROM_THE_RUN, *JOINED, "language", "license")
METRICS: dict[str, tuple[str, dict[str, str] | None]] = {
    "accuracy": ("accuracy", None),
    "macro_f1": ("f1", {"average": "macro"}),
    "weighted_f1": ("f1", {"average": "weighted"}),
    "matthews": ("matthews_correlation", None),
}
"""What the Hub calls a score, and how it is computed; others go by our own name."""

Fields = dict[str, tuple[yaml.Node, yaml.Node]]
"""Of front matter, by name: the nodes of a name and its value, which keep how they were written (no, 1.10)."""


@dataclass(frozen=True)
class Base:
    """The model that this one was made from."""

    id: str | None  # on the Hub; None where it came from a folder or from random weights
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    relation: Literal["finetune", "adapter"] = "finetune"


def read_notes(path: str) -> str:
    """The user's notes, checked before anything is trained or sent. UserError where they cannot be read or merged."""
    try:
        notes = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--hub.card {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"--hub.card {path} cannot be read: {error.strerror}; name a Markdown file") from error
    _split_notes(notes, f"--hub.card {path}")
    return notes


def write_card(
    repo_id: str,
    run: Mapping[str, Any],
    metrics: Mapping[str, Any],
    verification: Mapping[str, Any],
    notes: str | None,
    previous: str | None,
    base: Base,
) -> str:
    """README.md: the page that the repository has now, with our part and the notes put in or renewed.

    `notes` is the text of --hub.card, and `previous` the README.md that is there. UserError where their front matter is
    no YAML, or where their markers are broken.
    """
    previous, where = previous or "", f"the card that {repo_id} has"
    before, start = _read_front(previous, where)
    parts = _find_parts(previous, where)
    kept = NOTES_FRONT.match(previous, parts["notes"][0]) if "notes" in parts else None
    old = _read_fields(previous, *kept.span(1), where) if kept else {}  # what the notes said so far
    page = _put(previous[start:], "graftkit", _our_part(repo_id, run, metrics, verification, base))
    if notes is None:  # what was changed on the page since is newer
        wanted = {n: pair if n in JOINED else before[n] for n, pair in old.items() if n in JOINED or n in before}
    else:
        wanted, content = _split_notes(notes, "--hub.card")
        page = _put(page, "notes", content) if content or "notes" in parts else page
    tags = [tag for tag in _values(before, "tags") if tag not in (*STRATEGIES, *_values(old, "tags"))]
    ours = _metadata(repo_id, run, metrics, base, tags + _values(wanted, "tags"), _values(wanted, "datasets"))
    before = {name: pair for name, pair in before.items() if name not in old}
    return f"---\n{_merge(ours, before, wanted)}---\n{page}"


def _our_part(
    repo_id: str, run: Mapping[str, Any], metrics: Mapping[str, Any], verification: Mapping[str, Any], base: Base
) -> str:
    chapters = {
        "What it is for, and what not": sections.purpose(run, base.languages),
        "How to use it": sections.use(run, _library(run, base)),
        "Data": sections.data(run, _hub_data(run)),
        "Training": sections.training(run),
        "Scores": sections.scores(run, metrics),
        "Where it is weakest": sections.weaknesses(run, metrics),
        "How these files were checked": sections.verification(run, verification),
        "How to make it again": sections.again(run),
    }
    page = [f"# {escape(_last_part(repo_id))}", sections.summary(run, metrics, base.id, base.relation)]
    page += [f"## {heading}\n\n{body}" for heading, body in chapters.items()]
    return MARKER.sub(lambda marker: f" {marker[0]}", "\n\n".join(page))  # a command may hold anything


# metadata


def _metadata(
    repo_id: str, run: Mapping[str, Any], metrics: Mapping[str, Any], base: Base, tags: list[str], datasets: list[str]
) -> Fields:
    """Our own fields, with the tags and data sets of others."""
    from huggingface_hub import ModelCardData

    data, strategy = _hub_data(run), look(run, "adapt", "strategy")
    datasets = list(dict.fromkeys([*([data] if data else []), *datasets]))
    known = [METRICS[name][0] for name in metrics["test"]["scores"] if name in METRICS]
    card = ModelCardData(
        base_model=base.id,
        base_model_relation=base.relation if base.id else None,
        datasets=datasets or None,
        language=base.languages or None,
        library_name=_library(run, base),
        license=base.license,
        metrics=list(dict.fromkeys(known)),
        pipeline_tag=run["task"],
        tags=["graftkit", *([strategy] if strategy else []), *tags],
        model_name=_last_part(repo_id),
        eval_results=_results(run, metrics["test"]["scores"]),
    )
    text = card.to_yaml(line_break="\n")
    return _read_fields(text, 0, len(text), repo_id)


def _results(run: Mapping[str, Any], scores: Mapping[str, float]) -> list[Any]:
    """Each score of the test rows, as the Hub lists them."""
    from huggingface_hub import EvalResult

    source = str(look(run, "data", "sources", "test") or "")
    name = _last_part(str(look(run, "data", "path") or source)) or "unnamed"
    hub_id = _hub_data(run)
    cut = "test" in (look(run, "data", "cut_from_train") or {})
    split = source[:-1].rpartition("(")[2] if hub_id else "test"  # a source on the Hub is called `me/data (test)`
    found = []
    for score, value in scores.items():
        kind, settings = METRICS.get(score, (score, None))
        found.append(
            EvalResult(
                task_type=run["task"],
                dataset_type=hub_id or re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed",
                dataset_name=hub_id or name,
                dataset_config=look(run, "data", "subset"),
                dataset_split=None if cut else split,  # rows that were cut from train are no split of the data
                metric_type=kind,
                metric_name=title(score)[0].upper() + title(score)[1:],
                metric_value=value,
                metric_args=settings,
            )
        )
    return found


def _library(run: Mapping[str, Any], base: Base) -> str:
    if base.relation == "adapter":
        return "peft"
    return "transformers" if look(run, "images", "crop_pct") is None else "timm"  # only timm's pictures have one


def _hub_data(run: Mapping[str, Any]) -> str | None:
    """The id of the data on the Hub, None where they came from files: the sources tell."""
    path, subset = look(run, "data", "path"), look(run, "data", "subset")
    whole = f"{path}/{subset}" if subset else path
    source = look(run, "data", "sources", "test")
    known = path and source and path not in DEMOS and source.startswith(f"{whole} (") and source.endswith(")")
    return path if known else None


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _merge(ours: Fields, before: Fields, wanted: Fields) -> str:
    """YAML of all fields: the notes lead, then ours, then what the page has and we do not know."""
    license_now = _values(wanted, "license") or _values(ours, "license") or _values(before, "license")
    stale = {"license_name", "license_link"} if license_now != _values(before, "license") else set()
    unknown = {"license", "language"} - ours.keys()
    kept = {n: pair for n, pair in before.items() if n in unknown or (n not in OWNED and n not in stale)}
    merged = ours | kept | {name: pair for name, pair in wanted.items() if name not in JOINED}
    node = yaml.MappingNode("tag:yaml.org,2002:map", list(merged.values()), flow_style=False)
    return yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True)


def _values(fields: Fields, name: str) -> list[str]:
    """The text, or texts, of a field, as they were written."""
    node = fields[name][1] if name in fields else None
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return [item.value for item in items if isinstance(item, yaml.ScalarNode)]


# what was there


def _read_front(text: str, where: str) -> tuple[Fields, int]:
    """The fields of the front matter, and where the text below it starts."""
    match = FRONT.match(text)
    if match is None and OPENED.match(text):
        raise UserError(f"{where}: its front matter opens with --- and does not end; close it with a line ---")
    return (_read_fields(text, *match.span(1), where), match.end()) if match else ({}, 0)


def _read_fields(text: str, start: int, end: int, where: str) -> Fields:
    """The fields of the YAML between two places of a text."""
    line = text.count("\n", 0, start) + 1
    cure = "mend it there, or delete the front matter"
    try:
        loaded = yaml.safe_load(text[start:end])
        node = yaml.compose(text[start:end], Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        line += getattr(getattr(error, "problem_mark", None), "line", 0)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}, line {line}: not valid YAML: {problem}; {cure}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise UserError(f"{where}, line {line}: not valid YAML for metadata: no `name: value`; {cure}")
    return {key.value: (key, value) for key, value in node.value} if loaded else {}


def _split_notes(notes: str, where: str) -> tuple[Fields, str]:
    """The fields of the notes, and their part of the page, in which the front matter stands as a comment."""
    fields, start = _read_front(notes, where)
    ours = [name for name in FROM_THE_RUN if name in fields]
    if ours:
        raise UserError(f"{where}: {', '.join(ours)} in its front matter: the run's record says that; delete it there")
    marker = MARKER.search(notes)
    if marker:
        line = notes.count("\n", 0, marker.start()) + 1
        raise UserError(f"{where}, line {line}: {marker[0].strip()} is how a card's parts are told apart; delete it")
    front = FRONT.match(notes)[1] if fields else ""
    if "-->" in front:
        raise UserError(f"{where}: --> in its front matter would end the comment that keeps it; write it otherwise")
    comment = f"<!-- metadata\n{front}-->" if front else ""
    return fields, "\n\n".join(part for part in (comment, notes[start:].strip("\r\n")) if part)


def _find_parts(text: str, where: str = "the card") -> dict[str, tuple[int, int]]:
    """Where the parts between markers begin and end, with their markers. UserError where one is open, or two of a kind.

    Were it guessed where a part ends, somebody's words could be lost.
    """
    marks = list(MARKER.finditer(text))
    if [f"{mark[1]} {mark[2]}" for mark in marks] not in ORDERS:
        lines = ", ".join(str(text.count("\n", 0, mark.start()) + 1) for mark in marks)
        raise UserError(
            f"{where}: its markers (lines {lines}) are not one pair of <!-- graftkit: begin --> and <!-- graftkit: end "
            "--> and at most one of <!-- notes: begin --> and <!-- notes: end -->; mend or delete them there"
        )
    pairs = zip(marks[::2], marks[1::2], strict=True)
    return {begin[1]: (begin.start(), end.end()) for begin, end in pairs}


def _put(page: str, name: str, content: str) -> str:
    """The page with this part in place of the one that it has; else behind ours, or at its end."""
    parts = _find_parts(page)
    block = f"<!-- {name}: begin -->\n\n{content}\n\n<!-- {name}: end -->"
    if name in parts:
        start, end = parts[name]
        return f"{page[:start]}{block}{page[end:]}"
    if "graftkit" in parts:
        end = parts["graftkit"][1]
        return f"{page[:end]}\n\n{block}{page[end:]}"
    ending = page[len(page.rstrip("\r\n")) :]
    blank = "\n" * (2 - ending.count("\n") - (not page))  # above an empty page ends the front matter's last line
    return f"{page}{blank}{block}\n"
