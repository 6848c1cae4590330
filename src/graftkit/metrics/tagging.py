"""How good is a tagger of words?

Tags that mark entities (`B-person`, `I-person`, `O`) are scored by entity: one is right if its first word, its last
word and its type are. Which tags make an entity is counted as seqeval counts (Nakayama 2018, after the script of
CoNLL-2000): BIO as in its default mode, where I- without a B- before it begins an entity; BIOES as in its strict mode,
where only S-, or B- I- ... E- of one type, is an entity; and BILOU, which is BIOES by other letters. Any other tags
(parts of speech) are plain: each word is a row of a classifier, scored as in `metrics.classification`.

What an interval draws is a sentence with all its entities (or words), since those of one sentence are no independent
witnesses; or, with groups, all sentences of a group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graftkit.metrics import classification
from graftkit.metrics.classification import Counts, Intervals
from graftkit.metrics.intervals import LEVEL, RESAMPLES, Interval, Statistic, bca, clopper_pearson

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PLAIN = "plain"
MARKS = {"BIO": "OBI", "BIOES": "OBIES", "BILOU": "OBILU"}
"""The schemes that mark entities, and what their tags begin with."""

Tags = Sequence[str]

_TAG = re.compile(r"(O)|([BIELSU])(?:-(.+))?")
_AS_BIOES = {"L": "E", "U": "S"}  # last, unit


class Span(NamedTuple):
    """An entity: its type, and the places of its first and last word in the sentence, from 0."""

    type: str
    first: int
    last: int


def scheme_of(labels: Sequence[str]) -> str:
    """BIO, BIOES or BILOU where all tags are of that scheme, and one of them marks an entity; else plain."""
    found = [_TAG.fullmatch(label) for label in labels]
    marks = {match[1] or match[2] if match else "" for match in found}
    fitting = [scheme for scheme, known in MARKS.items() if marks <= set(known) and marks - {"O"}]
    return fitting[0] if fitting else PLAIN


def spans(tags: Tags, scheme: str) -> list[Span]:
    """The entities of a sentence in their order; none where tags are plain."""
    if scheme == PLAIN:
        return []
    marked = [_split(tag) for tag in tags]
    return _spans_of_bio(marked) if scheme == "BIO" else _spans_of_bioes(marked)


def malformed(tags: Tags, scheme: str) -> list[int]:
    """The places of words, from 0, whose tag cannot stand where it does.

    That is I- (E-, L-) with no B- or I- of its type before it and, but in BIO, B- or I- with no I- or E- of its type
    after it.
    """
    if scheme == PLAIN:
        return []
    outside = ("O", "_")
    wrong = set()
    for place, (before, here) in enumerate(pairwise([outside, *map(_split, tags), outside])):  # here: tags[place]
        goes_on = before[0] in ("B", "I") and here[0] in ("I", "E") and before[1] == here[1]
        if here[0] in ("I", "E") and not goes_on:
            wrong.add(place)
        if before[0] in ("B", "I") and not goes_on and scheme != "BIO":
            wrong.add(place - 1)
    return sorted(wrong)


def count_malformed(sentences: Sequence[Tags], scheme: str) -> dict[str, int]:
    """How many words carry a tag that cannot stand where it does, and in how many sentences."""
    counts = [len(malformed(tags, scheme)) for tags in sentences]
    return {"words": sum(counts), "sentences": sum(count > 0 for count in counts)}


class Tally(NamedTuple):
    """The entities of all sentences: sentences with the same counts are one kind."""

    types: list[str]
    sums: csr_array  # (kinds, 3 * types): what a sentence of each kind adds to `Counts`, side by side
    sizes: np.ndarray  # (kinds,): how many sentences there are of each kind

    def counts(self) -> Counts:
        """Entities per type: right, true, predicted. Each (types,)."""
        return Counts(*np.split(self.sizes @ self.sums, 3))


def tally(truth: Sequence[Tags], predicted: Sequence[Tags], scheme: str, groups: Sequence[int] | None = None) -> Tally:
    """Counts the entities of each sentence, or of each group of sentences, in any order of the groups' numbers."""
    from scipy.sparse import coo_array

    units: dict[int, Counter[tuple[int, str]]] = {}  # sentence or group -> (place in Counts, type) -> entities
    pairs = zip(truth, predicted, strict=True)
    for unit, (true_tags, given_tags) in zip(range(len(truth)) if groups is None else groups, pairs, strict=True):
        true, given = spans(true_tags, scheme), spans(given_tags, scheme)
        counted = enumerate((set(true) & set(given), true, given))
        units.setdefault(unit, Counter()).update((i, span.type) for i, found in counted for span in found)
    kinds = Counter(tuple(sorted(unit.items())) for unit in units.values())
    types = sorted({type for kind in kinds for (_, type), _ in kind})
    column = {type: place for place, type in enumerate(types)}
    cells = [(row, i * len(types) + column[type], n) for row, kind in enumerate(kinds) for (i, type), n in kind]
    rows, columns, counts = np.array(cells, np.int64).reshape(-1, 3).T
    sums = coo_array((counts.astype(np.float64), (rows, columns)), shape=(len(kinds), 3 * len(types))).tocsr()
    return Tally(types, sums, np.array(list(kinds.values())))


# scores


def precision(counts: Counts) -> np.ndarray:
    """The share of the predicted entities that are right."""
    return _share(counts.right.sum(axis=-1), counts.predicted.sum(axis=-1))


def recall(counts: Counts) -> np.ndarray:
    """The share of the true entities that were found."""
    return _share(counts.right.sum(axis=-1), counts.truth.sum(axis=-1))


def f1(counts: Counts) -> np.ndarray:
    """The harmonic mean of precision and recall over all entities (micro)."""
    return _share(2 * counts.right.sum(axis=-1), counts.truth.sum(axis=-1) + counts.predicted.sum(axis=-1))


ENTITY_SCORES = {
    "entity_f1": f1,
    "entity_precision": precision,
    "entity_recall": recall,
    "entity_macro_f1": classification.macro_f1,  # the mean F1 of the types that are true or predicted anywhere
}
"""The scores of entities, from counts (..., types). A share of nothing is 0, as in seqeval."""


def headlines(labels: Sequence[str]) -> tuple[str, ...]:
    """The scores that may pick the best checkpoint, the usual one first."""
    if scheme_of(labels) == PLAIN:
        return ("accuracy", *(name for name in classification.HEADLINES if name != "accuracy"))
    return tuple(ENTITY_SCORES)


def scores(truth: Sequence[Tags], predicted: Sequence[Tags], labels: Sequence[str]) -> dict[str, float]:
    """Every score of a split: those of entities and the accuracy of words; for plain tags, those of words alone."""
    scheme, words = scheme_of(labels), Counts.of(word_confusion(truth, predicted, labels))
    if scheme == PLAIN:
        return {name: float(score(words)) for name, score in classification.HEADLINES.items()}
    counts = tally(truth, predicted, scheme).counts()
    found = {name: float(score(counts)) for name, score in ENTITY_SCORES.items()}
    return found | {"accuracy": float(classification.accuracy(words))}


def score_records(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, float]:
    """Every score of a split, from its records, and the mean loss of a word: `log_loss`."""
    truth, predicted = ([record[name] for record in records] for name in ("label", "prediction"))
    loss = sum(record["loss"] for record in records) / sum(map(len, truth))
    return scores(truth, predicted, labels) | {"log_loss": float(loss)}


def per_type(entities: Tally) -> list[dict[str, Any]]:
    """One line per type: precision, recall and F1, the true entities (support) and the predicted ones."""
    right, truth, predicted = entities.counts()
    columns = {
        "type": entities.types,
        "precision": _share(right, predicted).tolist(),
        "recall": _share(right, truth).tolist(),
        "f1": _share(2 * right, truth + predicted).tolist(),
        "support": truth.astype(int).tolist(),
        "predicted": predicted.astype(int).tolist(),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def word_confusion(truth: Sequence[Tags], predicted: Sequence[Tags], labels: Sequence[str]) -> np.ndarray:
    """How many words with tag i were given tag j: (labels, labels) int64."""
    return classification.confusion(_places(truth, labels), _places(predicted, labels), len(labels))


# how sure each score is


def intervals(
    truth: Sequence[Tags],
    predicted: Sequence[Tags],
    labels: Sequence[str],
    groups: Sequence[int] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Intervals:
    """The interval of each of `scores`; `classes` are those of each type in the order of `tally`'s, or of each label.

    Where all entities are right, or none is, resamples say nothing, and the share of sentences (or groups) without an
    error has an exact interval (Clopper and Pearson); F1 is 2J / (1 + J) of such a share J.
    """
    how = {"level": level, "resamples": resamples, "seed": seed}
    scheme = scheme_of(labels)
    numbers = np.arange(len(truth)) if groups is None else np.unique(groups, return_inverse=True)[1]
    drawn = np.repeat(numbers, [len(tags) for tags in truth])  # (words,)
    cells = classification.group_counts(_places(truth, labels), _places(predicted, labels), drawn, len(labels))
    confusion = word_confusion(truth, predicted, labels)
    if scheme == PLAIN:
        return classification.all_intervals(confusion, cells, **how)
    accuracy = classification.intervals(confusion, cells, **how)["accuracy"]
    found = entity_intervals(tally(truth, predicted, scheme, numbers.tolist()), how)
    return Intervals({**found.scores, "accuracy": accuracy}, found.classes)


def lead(
    truth: Sequence[Tags],
    predicted: Sequence[Tags],
    given: Sequence[Tags],
    labels: Sequence[str],
    headline: str,
    groups: Sequence[int] | None = None,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """The headline of `predicted` minus that of `given`: both answer the same sentences, which are drawn together.

    Each answer is an entity of a type that says whose it is; so is, for plain tags and for the accuracy of words, each
    word with its tag.
    """
    scheme = scheme_of(labels)
    if headline in ENTITY_SCORES:
        score, kinds = ENTITY_SCORES[headline], dict(zip(labels, labels, strict=True))
    else:
        score, scheme, kinds = classification.HEADLINES[headline], "BIO", {label: f"B-{label}" for label in labels}
    ours, theirs = ({label: _of_side(kinds[label], side) for label in labels} for side in ("1", "2"))

    def both(of_us: Sequence[Tags], of_them: Sequence[Tags]) -> list[list[str]]:
        pairs = zip(of_us, of_them, strict=True)
        return [[ours[tag] for tag in one] + [theirs[tag] for tag in other] for one, other in pairs]

    entities = tally(both(truth, truth), both(predicted, given), scheme, groups)
    if not entities.types:  # there is nothing to draw
        return Interval(0.0, 0.0, 0.0, LEVEL, "constant")
    is_ours = np.array([type[0] == "1" for type in entities.types])

    def difference(totals: np.ndarray) -> np.ndarray:
        parts = np.split(totals, 3, axis=-1)
        one, other = (score(Counts(*(part[..., side] for part in parts))) for side in (is_ours, ~is_ours))
        return one - other

    return bca({headline: difference}, entities.sums, entities.sizes, resamples=resamples)[headline]


def _of_side(tag: str, side: str) -> str:
    """The tag with the side as the first letter of its type."""
    return tag if tag == "O" else f"{tag[0]}-{side}{tag[2:]}"


def entity_intervals(entities: Tally, how: Mapping[str, Any]) -> Intervals:
    level = how["level"]
    units, counts = _units(entities), entities.counts()
    together = Counts(*(part.sum(keepdims=True) for part in counts))
    all_units = _units(entities._replace(sums=_over_types(entities.sums), types=["all"]))
    if not entities.types:  # there is nothing to draw
        return Intervals({name: _at_the_edge("f1", False, 0, level) for name in ENTITY_SCORES}, [])
    statistics = ENTITY_SCORES | classification.CLASS_SCORES
    found = bca({name: _of_totals(score) for name, score in statistics.items()}, entities.sums, entities.sizes, **how)
    whole = {name: found[name] for name in ENTITY_SCORES}
    for name in ENTITY_SCORES:
        kind = name.removeprefix("entity_").removeprefix("macro_")
        if _is_at_the_edge(kind, together)[0]:
            whole[name] = _at_the_edge(kind, together.right[0] > 0, int(all_units[kind][0]), level)
    classes: list[dict[str, Interval]] = [{} for _ in entities.types]
    for kind in classification.CLASS_SCORES:
        edge = _is_at_the_edge(kind, counts)
        for place in np.flatnonzero(units[kind]):
            if edge[place]:
                interval = _at_the_edge(kind, counts.right[place] > 0, int(units[kind][place]), level)
            else:
                interval = found[kind][place]
            classes[place][kind] = interval
    return Intervals(whole, classes)


def _of_totals(score: Callable[[Counts], np.ndarray]) -> Statistic:
    """A score as a function of the sums that `Tally` lays side by side."""
    return lambda totals: score(Counts(*np.split(totals, 3, axis=-1)))


def _over_types(sums: csr_array) -> csr_array:
    """The sums of a tally as if all entities were of one type: (kinds, 3)."""
    from scipy.sparse import csr_array

    types = sums.shape[1] // 3
    return sums @ csr_array(np.kron(np.eye(3), np.ones((types, 1))))


def _units(entities: Tally) -> dict[str, np.ndarray]:
    """Of how many sentences (or groups) each score of a type is told: (types,) each."""
    types = len(entities.types)
    _, truth, predicted = (entities.sums[:, part * types : (part + 1) * types] for part in range(3))
    told_by = {"precision": predicted, "recall": truth, "f1": truth + predicted}
    return {name: entities.sizes @ (counted > 0) for name, counted in told_by.items()}


def _is_at_the_edge(kind: str, counts: Counts) -> np.ndarray:
    """Whether all that a score is a share of is right, or nothing is: (types,)."""
    right, truth, predicted = counts
    whole = {"precision": predicted, "recall": truth, "f1": truth + predicted - right}[kind]
    return (right == 0) | (right == whole)


def _at_the_edge(kind: str, right: bool, units: int, level: float) -> Interval:
    ends = clopper_pearson(units if right else 0, units, level)
    low, high = (2 * end / (1 + end) for end in ends) if kind == "f1" else ends
    return Interval(float(right), low, high, level, "clopper-pearson")


# tags


def _split(tag: str) -> tuple[str, str]:
    """What a tag begins with, in the letters of BIOES, and the type of its entity."""
    return _AS_BIOES.get(tag[0], tag[0]), tag[2:] or "_"


def _spans_of_bio(marked: Sequence[tuple[str, str]]) -> list[Span]:
    found: list[Span] = []
    before = ("O", "_")
    for place, (mark, kind) in enumerate(marked):
        if mark == "I" and before[0] != "O" and before[1] == kind:
            found[-1] = found[-1]._replace(last=place)
        elif mark != "O":
            found.append(Span(kind, place, place))
        before = (mark, kind)
    return found


def _spans_of_bioes(marked: Sequence[tuple[str, str]]) -> list[Span]:
    found: list[Span] = []
    open_since: tuple[str, int] | None = None
    for place, (mark, kind) in enumerate(marked):
        goes_on = open_since is not None and open_since[0] == kind
        if mark == "S":
            found.append(Span(kind, place, place))
        elif mark == "E" and goes_on:
            found.append(Span(kind, open_since[1], place))
        if mark == "B":
            open_since = (kind, place)
        elif not (mark == "I" and goes_on):
            open_since = None
    return found


def _places(sentences: Sequence[Tags], labels: Sequence[str]) -> np.ndarray:
    """The tags of all words as places in `labels`, (words,)."""
    place = {label: i for i, label in enumerate(labels)}
    return np.array([place[tag] for tags in sentences for tag in tags], dtype=np.int64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole != 0)
