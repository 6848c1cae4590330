"""Which sentences, of words with a tag each?"""

from __future__ import annotations

import ast
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graftkit.data.checks import SHOWN, BadRows, check_parsed, check_spelling
from graftkit.data.columns import (
    Columns,
    LabelledRows,
    choose_columns,
    extra_columns,
    number_rows,
    read_columns,
    sort_labels,
)
from graftkit.data.config import RowsConfig
from graftkit.data.conll import SUFFIXES, is_conll, read_conll
from graftkit.data.files import READERS, Table, read_file
from graftkit.data.repeats import add_contents
from graftkit.data.sources import DEMO, Places, Source, offer_files
from graftkit.data.splits import Checked, Kind, Splits, dataset_of, load_to_cut, make_splits
from graftkit.errors import UserError
from graftkit.metrics.tagging import PLAIN, malformed, scheme_of, spans

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

COLUMN_NAMES = {
    "words": ["words", "word", "tokens", "token"],
    "tags": [
        *("tags", "tag", "labels", "label", "ner_tags", "ner", "entities", "pos_tags", "pos", "upos"),
        *("chunk_tags", "chunk", "iob_tags", "bio_tags"),
    ],
}
DEMO_FOLDER = Path(__file__).parent / "tagged"
CONLLU = ("2", "4")  # form and universal part of speech
NO_TAG = "a tag that is missing or no text"


@dataclass(frozen=True)
class TaggedDataConfig(RowsConfig):
    """Which sentences to learn from, and which of their columns."""

    format: Literal["auto", "table", "conll"] = "auto"
    """how files are written: as tables (csv, jsonl, parquet) or one word per line (CoNLL); by default as their names
    say (.conll, .conllu, .iob2, .bio, .txt: CoNLL)"""
    words: str | None = None
    """column of the words: lists, or text with blanks between words; in CoNLL files its number from 1 (by default the
    only one named like words; in CoNLL files the first)"""
    tags: str | None = None
    """column of the tags, one for each word; in CoNLL files its number from 1 (by default the only one named like tags;
    in CoNLL files the last)"""


def load_tagged(config: TaggedDataConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train, the same way for the same seed.

    Rows have `id`, `words` and `tags` (lists of str of the same length), and the `extra` columns as `column:<name>`;
    rows with the same value in the column `group`, one of them, are cut together. `labels` are all tags of train and
    dev, O first. UserError for what cannot be found, read or learnt from; tags that break their scheme, such as I-
    without B-, are counted in `warnings`.
    """
    tables, notes = load_to_cut(config, _places(config.format))
    bad = BadRows(drop=config.bad_rows == "drop")
    for split, table in tables.items():
        check_parsed(split, table, bad)
    columns, column_notes = _choose_columns(tables["train"], config)
    rows = {split: _tagged_rows(split, table, columns, extra, bad) for split, table in tables.items()}
    rows = _check_tags(rows, bad)
    labels = _sort_tags(_tags_of(rows["train"], *(rows[s] for s in ("dev",) if s in rows)), tables["train"], columns)
    cut = make_splits(config, _to_cut(tables, columns, rows, bad, [*notes, *column_notes]), SENTENCES, seed, group)
    return _describe(cut, columns, labels)


# where they lie


def _places(format: str) -> Places:
    """Files by the way they are written."""

    def read(place: Path, where: str) -> Table:
        ending = place.suffix.lower()
        if format == "conll" or (format == "auto" and ending in SUFFIXES):
            return read_conll(place, where)
        if ending not in READERS:
            raise UserError(
                f"{where}: cannot read this kind of file; its name must end in {', '.join((*READERS, *SUFFIXES))}. "
                "Set --data.format conll where each word has a line"
            )
        return read_file(place, where)

    def at(place: Path, where: str) -> Source | None:
        return Source(where, partial(read, place, where)) if place.is_file() else None

    def in_folder(place: Path, path: str) -> dict[str, Source]:
        endings = {"auto": (*READERS, *SUFFIXES), "table": tuple(READERS), "conll": ("",)}[format]
        files = [f for f in sorted(place.iterdir()) if f.is_file() and f.name[0] != "."]
        files = [file for file in files if file.name.lower().endswith(endings)]
        if not files:
            raise UserError(f"no data in the folder {path}: no file there ends in {', '.join(endings)}")
        names = offer_files(files, path)
        return {name: at(file, str(Path(path, file.name))) for name, file in zip(names, files, strict=True)}

    return Places(demos={DEMO: _demo}, in_folder=in_folder, at=at)


def _demo() -> dict[str, Source]:
    """The data set that ships in this package, whatever the format of others."""
    return offer_files([DEMO_FOLDER / f"{split}.jsonl" for split in ("train", "dev", "test")], DEMO)


def _choose_columns(table: Table, config: TaggedDataConfig) -> tuple[Columns, list[str]]:
    """The columns that the user named, or the usual ones of CoNLL files, or the only ones named like their role."""
    named = {"words": config.words, "tags": config.tags}
    if is_conll(table):
        names = table.rows.column_names
        usual = CONLLU if table.where.lower().endswith(".conllu") else (names[0], names[-1])
        chosen = {role: usual[i] if named[role] is None else named[role] for i, role in enumerate(named)}
        columns, notes = choose_columns(table, chosen, {})
        return columns, [*notes, f"words are column {chosen['words']} of {len(names)}, tags column {chosen['tags']}"]
    return choose_columns(table, named, COLUMN_NAMES)


# what they hold


def _tagged_rows(split: str, table: Table, columns: Columns, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows with a tag for each word. UserError where none is left."""
    import pyarrow as pa

    values = read_columns(table, columns)
    words = _lists(table, columns["words"], values["words"], "words")
    names = _tag_names(table, columns["tags"])
    tags = [
        tags if tags is None else [_tag(tag, names) for tag in tags]
        for tags in _lists(table, columns["tags"], values["tags"], "tags")
    ]
    wrong = [_wrong_with(*pair) for pair in zip(words, tags, strict=True)]
    for reason in dict.fromkeys(reason for reason in wrong if reason is not None):
        places = [place for place, one in enumerate(wrong) if one == reason]
        first, its_tags = (side[places[0]] or [] for side in (words, tags))
        detail = f" ({len(first)} and {len(its_tags)} in the first)" if reason == LENGTHS else ""
        bad.refuse_or_count(split, table.where, reason, table.numbers[places], detail)
    good = np.array([reason is None for reason in wrong], bool)
    if not good.any():
        raise UserError(f"{table.where}: no row with words and tags is left. Set --data.{split}, .words or .tags")
    kind = pa.list_(pa.string())
    lists = {
        name: pa.array([side if kept else None for side, kept in zip(sides, good, strict=True)], kind)
        for name, sides in (("words", words), ("tags", tags))
    }
    rows = pa.table({**number_rows(split, table), **lists, **extra_columns(table, extra)})
    return LabelledRows(table.where, rows, said=("words", "tags")).keep(good)


LENGTHS = "words and tags of different length"


def _wrong_with(words: list[Any] | None, tags: list[str | None] | None) -> str | None:
    """Why a row is bad; None where it is not."""
    if not words:
        return "an empty sentence"
    if not all(isinstance(word, str) for word in words):
        return "a word that is missing or no text"
    if not all(word.strip() for word in words):
        return "an empty word"
    if not tags:
        return "no tags"
    if len(words) != len(tags):
        return LENGTHS
    return NO_TAG if None in tags else None


def _lists(table: Table, column: str, values: pa.ChunkedArray, role: str) -> list[list[Any] | None]:
    """A list for each row; of text, the list that it writes (JSON or Python), or what stands between its blanks."""
    from pyarrow import types

    kind = values.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_null(kind):
        return values.to_pylist()
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise UserError(f"{table.where}: column {column!r} holds {kind}, and {role} are a list. Set --data.{role}")
    texts = [None if text is None else text.strip() for text in values.to_pylist()]
    written = [text for text in texts if text]
    if all(text[0] == "[" and text[-1] == "]" for text in written):
        return [_parse_list(text) if text else None for text in texts]
    return [None if text is None else text.split() for text in texts]


def _parse_list(text: str) -> list[Any]:
    """The list that a text writes; one that does not parse is a list of nothing that could be a word."""
    try:
        return list(json.loads(text))
    except ValueError:
        try:
            return list(ast.literal_eval(text))  # as pandas writes a list into a csv file
        except (ValueError, SyntaxError):
            return [None]


def _tag(tag: Any, names: Sequence[str] | None) -> str | None:
    """A tag as a string; None for what is none, such as the -1 that the Hub writes for one that is withheld."""
    if isinstance(tag, str):
        return tag if tag.strip() else None
    if isinstance(tag, bool) or not isinstance(tag, int):
        return None
    if names is None:
        return str(tag)
    return names[tag] if 0 <= tag < len(names) else None


def _tag_names(table: Table, column: str) -> list[str] | None:
    """The names of a column of ClassLabel sequences, in their order; None for a column of any other kind."""
    from datasets import ClassLabel

    feature = table.rows.features[column]
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return list(inner.names) if isinstance(inner, ClassLabel) else None


# what shows only when rows are seen together


def _check_tags(splits: Mapping[str, LabelledRows], bad: BadRows) -> dict[str, LabelledRows]:
    """Tags of one scheme, spelled alike; two or more in train; and in test none that train lacks."""
    checked = _check_scheme(splits, bad)
    check_spelling({split: _row_and_tag(rows) for split, rows in checked.items()})
    known, train = _tags_of(checked["train"]), checked["train"]
    if len(known) == 1:
        raise UserError(
            f"{train.where}: only one tag, {next(iter(known))!r}, and nothing to tell it from. Set --data.tags"
        )
    if "test" in checked:
        checked["test"] = _without(
            "test", checked["test"], "a tag that train never had", _tags_of(checked["test"]) - known, bad
        )
    return checked


def _check_scheme(splits: Mapping[str, LabelledRows], bad: BadRows) -> dict[str, LabelledRows]:
    """Where tags mark entities, all do: a slip in one word must not make plain tags of them all."""
    every = _tags_of(*splits.values())
    marked = {tag for tag in every if tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-")}
    scheme = scheme_of(sorted(marked))
    if scheme == PLAIN or "O" not in marked or not any(tag[:2] == "B-" for tag in marked):
        return dict(splits)
    wrong = f"a tag that is not as in {scheme}"
    return {split: _without(split, rows, wrong, _tags_of(rows) - marked, bad) for split, rows in splits.items()}


def _without(split: str, rows: LabelledRows, wrong: str, tags: set[str], bad: BadRows) -> LabelledRows:
    """The rows with none of these tags. UserError where no row is left."""
    if not tags:
        return rows
    holds = np.array([not tags.isdisjoint(row) for row in rows.rows.column("tags").to_pylist()], bool)
    rows = bad.without(split, rows, wrong, holds, f" ({_some(map(repr, sorted(tags)))})")
    if not len(rows):
        raise UserError(f"{rows.where}: every row has {wrong}. Set --data.{split} or --data.tags")
    return rows


def _row_and_tag(rows: LabelledRows) -> LabelledRows:
    """One row for each row and tag that stands in it: what `check_spelling` tells of labels is true of these."""
    import pyarrow as pa

    pairs = [
        (number, tag)
        for number, tags in zip(rows.column("number").tolist(), rows.rows.column("tags").to_pylist(), strict=True)
        for tag in sorted(set(tags))
    ]
    numbers, tags = zip(*pairs, strict=True)
    return LabelledRows(rows.where, pa.table({"number": numbers, "label": pa.array(tags, pa.string())}))


def _tags_of(*splits: LabelledRows) -> set[str]:
    """All tags that stand in these rows."""
    import pyarrow.compute as pc

    return {tag for rows in splits for tag in pc.list_flatten(rows.rows.column("tags")).unique().to_pylist()}


def _sort_tags(tags: set[str], table: Table, columns: Columns) -> list[str]:
    """O first; then ClassLabel names in their order, or types by letter, each in the order B, I, E, S."""
    names = _tag_names(table, columns["tags"])
    if names is None and scheme_of(sorted(tags)) != PLAIN:
        names = sorted(tags, key=lambda tag: (tag[2:], "BILESU".index(tag[0]) if tag != "O" else 0))
    ordered = sort_labels(tags, names)
    return sorted(ordered, key=lambda tag: tag != "O")  # stable


# what is cut, and what is said of it


def _to_cut(
    tables: Mapping[str, Table], columns: Columns, splits: dict[str, LabelledRows], bad: BadRows, notes: list[str]
) -> Checked:
    """The rows with numbered contents and, as `label`, what a cut must spread evenly.

    That is the rarest type (or plain tag) of a sentence; sentences of the same words, which are cut together, have it
    in common. Dev and test that are there are not cut: theirs is one of train's.
    """
    words = [tuple(row) for rows in splits.values() for row in rows.rows.column("words").to_pylist()]
    places: dict[tuple[str, ...], int] = {}
    numbered = add_contents(splits, np.array([places.setdefault(row, len(places)) for row in words]))
    train, scheme = numbered["train"], scheme_of(sorted(_tags_of(*splits.values())))
    held: dict[int, set[str]] = defaultdict(set)
    for content, tags in zip(train.column("content").tolist(), train.rows.column("tags").to_pylist(), strict=True):
        held[content] |= set(tags) if scheme == PLAIN else {span.type for span in spans(tags, scheme)} or {"O"}
    count = Counter(type for types in held.values() for type in types)
    rarest = {content: min(types, key=lambda type: (count[type], type)) for content, types in held.items()}
    usual = Counter(rarest.values()).most_common(1)[0][0]
    labels = {split: ["rarest: " + usual] * len(rows) for split, rows in numbered.items()}
    labels["train"] = ["rarest: " + rarest[content] for content in train.column("content").tolist()]
    labelled = {split: _with_label(rows, labels[split]) for split, rows in numbered.items()}
    return Checked(tables, columns | {"label": columns["tags"]}, labelled, bad, notes)


def _with_label(rows: LabelledRows, labels: Sequence[str]) -> LabelledRows:
    import pyarrow as pa

    return replace(rows, rows=rows.rows.append_column("label", pa.array(labels, pa.string())))


SENTENCES = Kind(
    things="sentences",
    repeat="repeat the words of an earlier one",
    overlap="also stand in {}",
    to_dataset=dataset_of("words", "tags"),
)


def _describe(cut: Splits, columns: Columns, labels: list[str]) -> Splits:
    """The splits with what is to be said of words and their tags, in place of the label that they were cut by."""
    scheme = scheme_of(labels)
    tags = {split: getattr(cut, split)["tags"][:] for split in ("train", "dev", "test")}
    several = _several_taggings(cut.train["words"][:], tags["train"])
    facts: dict[str, Any] = {
        **cut.facts,
        "columns": columns,
        "scheme": scheme,
        "splits": {split: cut.facts["splits"][split] | _counts(tags[split], labels, scheme) for split in tags},
        "repeats_in_train": cut.facts["repeats_in_train"] | {"sentences_with_several_labels": several},
    }
    if "fold" in facts:
        facts["fold"] = facts["fold"] | {"of": {k: v for k, v in facts["fold"]["of"].items() if k != "classes"}}
    warnings = list(cut.warnings)
    if several:
        warnings.append(f"of train, {_count(several, 'sentence')} with the same words elsewhere under other tags")
    warnings += [line for split in tags for line in _malformed_warning(split, getattr(cut, split), scheme)]
    in_train = {tag for row in tags["train"] for tag in row}
    for split in ("dev", "test"):
        untaught = [tag for tag in labels if tag not in in_train and any(tag in row for row in tags[split])]
        if untaught:
            listed = _some(map(repr, untaught))
            warnings.append(f"tags of {split} that train never had, and that nothing can teach: {listed}")
    if scheme == PLAIN and all(label.isdecimal() for label in labels):
        warnings.append("tags are numbers without names, and are scored word by word; with names, entities are scored")
    types = list(dict.fromkeys(label[2:] or "_" for label in labels if label != "O"))
    read = f"tags are plain: {len(labels)}" if scheme == PLAIN else f"tags are {scheme}, of {len(types)} types"
    return replace(cut, labels=labels, facts=facts, notes=[*cut.notes, read], warnings=warnings)


def _counts(sentences: Sequence[Sequence[str]], labels: Sequence[str], scheme: str) -> dict[str, Any]:
    """Words, words per tag, and entities per type."""
    words = Counter(tag for tags in sentences for tag in tags)
    found = Counter(span.type for tags in sentences for span in spans(tags, scheme))
    return {
        "words": words.total(),
        "classes": {label: words[label] for label in labels},
        "entities": dict(sorted(found.items())),
        "malformed": sum(len(malformed(tags, scheme)) for tags in sentences),
    }


def _several_taggings(words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> int:
    """How many sentences stand under more than one tagging."""
    taggings: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for sentence, its_tags in zip(words, tags, strict=True):
        taggings[tuple(sentence)].add(tuple(its_tags))
    return sum(len(found) > 1 for found in taggings.values())


def _malformed_warning(split: str, rows: Dataset, scheme: str) -> list[str]:
    """One sentence, if a tag of the split breaks its scheme."""
    ids, tags = rows["id"][:], rows["tags"][:]
    wrong = [(id, row, places) for id, row in zip(ids, tags, strict=True) if (places := malformed(row, scheme))]
    if not wrong:
        return []
    id, row, (place, *_) = wrong[0]
    words = sum(len(places) for _, _, places in wrong)
    then = "I- is then taken to begin an entity" if scheme == "BIO" else "what they mark is then no entity"
    return [
        f"{_count(words, 'word')} in {_count(len(wrong), 'row')} of {split} with a tag that cannot stand there in "
        f"{scheme}, such as {row[place]} of word {place + 1} of {id}; {then}, as seqeval counts"
    ]


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _some(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN:,} more" if len(words) > SHOWN else "")
