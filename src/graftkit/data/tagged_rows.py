"""Which sentences, of words with a tag each?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graftkit.data.checks import BadRows, check_parsed, check_spelling
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
from graftkit.data.list_columns import (
    are_lists,
    as_name,
    is_list,
    names_in_lists,
    one_by_one,
    parse_list,
    rarest_values,
    some,
    values_in,
    without_values,
)
from graftkit.data.repeats import add_contents
from graftkit.data.sources import DEMO, Places, Source, load_test, offer_files
from graftkit.data.splits import (
    Checked,
    Kind,
    RowsToScore,
    Splits,
    dataset_of,
    load_to_cut,
    make_rows_to_score,
    make_splits,
    meanings,
    prefer,
)
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
    tables, notes, bad = load_to_cut(config, _places(config.format))
    columns, column_notes = _choose_columns(tables["train"], config)
    rows = {split: _tagged_rows(split, table, columns, extra, bad) for split, table in tables.items()}
    rows = _check_tags(rows, bad)
    labels = _sort_tags(
        values_in("tags", rows["train"], *(rows[s] for s in ("dev",) if s in rows)), tables["train"], columns
    )
    cut = make_splits(config, _to_cut(tables, columns, rows, bad, [*notes, *column_notes]), SENTENCES, seed, group)
    return _describe(cut, columns, labels)


def load_test_tagged(
    config: TaggedDataConfig, labels: Sequence[str], usual: Columns, extra: Sequence[str] = ()
) -> RowsToScore:
    """The rows of test alone, checked, for a model that has these tags; `usual` are the columns that it read before.

    UserError for what cannot be found or read, and for a tag that the model does not have.
    """
    table, notes = load_test(config.path, config.subset, config.test, _places(config.format))
    bad = BadRows(drop=config.bad_rows == "drop")
    check_parsed("test", table, bad)
    named = prefer({"words": config.words, "tags": config.tags}, usual, table)
    columns, column_notes = _choose_columns(table, replace(config, **named))
    rows, known = _tagged_rows("test", table, columns, extra, bad), meanings(labels)
    new = values_in("tags", rows) - known.keys()
    rows = without_values("test", rows, "tags", new, "a tag that the model does not have", bad)
    rows, scheme = _with_label(_named(rows, known), ["all"] * len(rows)), scheme_of(labels)
    found = make_rows_to_score(
        config, columns, rows, {"all": "all"}, bad, [*notes, *column_notes], SENTENCES.to_dataset
    )
    facts = found.facts | {"scheme": scheme}
    facts["splits"] = {"test": facts["splits"]["test"] | _counts(found.test["tags"][:], labels, scheme)}
    return replace(found, facts=facts, warnings=_malformed_warning("test", found.test, scheme))


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
    names = names_in_lists(table, columns["tags"])
    tags = [
        tags if tags is None else [as_name(tag, names) for tag in tags]
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
    if is_list(kind):
        return values.to_pylist()
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise UserError(f"{table.where}: column {column!r} holds {kind}, and {role} are a list. Set --data.{role}")
    texts = [None if text is None else text.strip() for text in values.to_pylist()]
    written = [text for text in texts if text]
    if are_lists(written):
        return [parse_list(text) if text else None for text in texts]
    return [None if text is None else text.split() for text in texts]


# what shows only when rows are seen together


def _check_tags(splits: Mapping[str, LabelledRows], bad: BadRows) -> dict[str, LabelledRows]:
    """Tags of one scheme, spelled alike; two or more in train; and in test none that train lacks."""
    checked = _check_scheme(splits, bad)
    check_spelling({split: one_by_one(rows, "tags") for split, rows in checked.items()})
    known, train = values_in("tags", checked["train"]), checked["train"]
    if len(known) == 1:
        raise UserError(
            f"{train.where}: only one tag, {next(iter(known))!r}, and nothing to tell it from. Set --data.tags"
        )
    if "test" in checked:
        new = values_in("tags", checked["test"]) - known
        checked["test"] = without_values("test", checked["test"], "tags", new, "a tag that train never had", bad)
    return checked


def _check_scheme(splits: Mapping[str, LabelledRows], bad: BadRows) -> dict[str, LabelledRows]:
    """Where tags mark entities, all do: a slip in one word must not make plain tags of them all."""
    every = values_in("tags", *splits.values())
    marked = {tag for tag in every if tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-")}
    scheme = scheme_of(sorted(marked))
    if scheme == PLAIN or "O" not in marked or not any(tag[:2] == "B-" for tag in marked):
        return dict(splits)
    wrong = f"a tag that is not as in {scheme}"
    return {
        split: without_values(split, rows, "tags", values_in("tags", rows) - marked, wrong, bad)
        for split, rows in splits.items()
    }


def _sort_tags(tags: set[str], table: Table, columns: Columns) -> list[str]:
    """O first; then ClassLabel names in their order, or types by letter, each in the order B, I, E, S."""
    names = names_in_lists(table, columns["tags"])
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
    train, scheme = numbered["train"], scheme_of(sorted(values_in("tags", *splits.values())))
    held = [
        set(tags) if scheme == PLAIN else {span.type for span in spans(tags, scheme)} or {"O"}
        for tags in train.rows.column("tags").to_pylist()
    ]
    rarest = rarest_values(train.column("content"), held)
    usual = Counter(rarest).most_common(1)[0][0]
    labels = {split: ["rarest: " + usual] * len(rows) for split, rows in numbered.items()}
    labels["train"] = ["rarest: " + tag for tag in rarest]
    labelled = {split: _with_label(rows, labels[split]) for split, rows in numbered.items()}
    return Checked(tables, columns | {"label": columns["tags"]}, labelled, bad, notes)


def _with_label(rows: LabelledRows, labels: Sequence[str]) -> LabelledRows:
    import pyarrow as pa

    return replace(rows, rows=rows.rows.append_column("label", pa.array(labels, pa.string())))


def _named(rows: LabelledRows, known: Mapping[str, str]) -> LabelledRows:
    """The rows with the model's tag for each that the data write."""
    import pyarrow as pa

    column = rows.rows.column("tags")
    tags = pa.array([[known[tag] for tag in row] for row in column.to_pylist()], column.type)
    return replace(rows, rows=rows.rows.set_column(rows.rows.column_names.index("tags"), "tags", tags))


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
            listed = some(map(repr, untaught))
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
