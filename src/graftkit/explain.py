"""Why did the model answer as it did?

Of a text, how much each word moved the answer: integrated gradients (Sundararajan et al. 2017). Of a picture, how much
the answer moves when a part is hidden: occlusion (Zeiler and Fergus 2014). Both through Captum, and both of the same
number: the logit of the class that a row was given, less that of the true class or, where that is the same, of the
class that came second.
"""

from __future__ import annotations

import bisect
import io
import json
import math
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.classifiers import find_classifier, load_classifier
from graftkit.errors import UserError
from graftkit.images import ImageConfig
from graftkit.report.explanations import Explanation, write_explanations
from graftkit.report.reading import Reading
from graftkit.report.sections import is_evaluation
from graftkit.report.tables import table_hashes
from graftkit.run import Run, write_aside
from graftkit.task import Batch, Record, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

ERRORS, UNSURE = 12, 8  # rows that are explained
STEPS = (32, 64, 128, 256, 512)  # of the integral: the first that leaves no larger gap than GAP
GAP = 0.01  # of the change that the words must account for ...
LEAST = 0.1  # ... or of this many logits, where the change is smaller: a share of next to nothing says nothing
TOKENS = 4096  # that the model reads at a time
GRID = 10  # parts of a picture's side; a hidden square has two of them
HIDDEN = 16  # squares that are hidden at a time, each in a copy of the picture
SIDE = 160  # pixels of the short side of the picture that is kept
ANOTHER = 0.05  # logits by which an answer may differ from the table's; more than any machine makes
WITHOUT_BLANKS = "\u0e00\u0eff\u1000\u109f\u1780\u17ff\u3040\u30ff\u3400\u9fff\uf900\ufaff"
"""First and last letters of scripts that set no blanks between words: Thai, Lao, Burmese, Khmer, kana, Han."""


def choose(records: Sequence[Record]) -> list[int]:
    """The places of the errors with the highest loss, then of the other rows whose two likeliest labels are closest."""
    import numpy as np

    wrong = [place for place, record in enumerate(records) if record["label"] != record["prediction"]]
    worst = sorted(wrong, key=lambda place: -records[place]["loss"])[:ERRORS]
    top = np.sort(np.stack([record["probabilities"] for record in records]), axis=1)[:, -2:]  # (rows, 2)
    others = [int(place) for place in np.argsort(top[:, 1] - top[:, 0], kind="stable") if place not in set(worst)]
    return worst + others[:UNSURE]


def explain_test(run: Run, task: Any, model: nn.Module, rows: Sequence[Row], records: Sequence[Record]) -> None:
    """Explain rows of test at the end of a run, on its main process; what cannot be explained is a warning."""
    if not run.settings.keep_rows:
        run.say(
            "--report.explain shows words and pictures, and --run.keep_rows false lets none be kept: nothing is "
            "explained; `graft report RUN --explain` does it where you ask for it",
            warning=True,
        )
        return
    try:
        chosen = {records[place]["id"]: rows[place] for place in choose(records)}
        run.record["explanations"] = run.once(lambda: _explain(run.folder, task, model, chosen, records))
    except UserError as error:
        run.say(f"--report.explain: no answer is explained: {error}", warning=True)


def check_explainable(folder: Path, run: Mapping[str, Any]) -> None:
    """Raise UserError where the run of this record has no model to be asked."""
    if several := run.get("seeds") or run.get("folds"):
        raise UserError(
            f"--explain: {folder} holds several runs; give one of them, such as {folder / several[0]['name']}"
        )
    if run.get("task") not in METHODS:
        raise UserError(f"{folder}: --explain knows {' and '.join(METHODS)}, and not the task {run.get('task')!r}")
    if is_evaluation(run):
        raise UserError(f"--explain: {folder} is an evaluation, which holds no model; explain the run that made it")


def explain_run(reading: Reading, contents: Mapping[str, Any]) -> None:
    """Let the model of a finished run explain its answers, and keep that in the run's folder and its record.

    `contents` holds, by id, the texts (a list of one or two) or the bytes of the picture of each row that `choose`
    names. Raises UserError where the model is gone, or gives other answers than the run's table has.
    """
    import torch

    classifier = load_classifier(find_classifier(str(reading.folder)), ImageConfig())
    model = classifier.model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    rows = {id: FIELDS[classifier.task.name](content) | {"id": id} for id, content in contents.items()}
    facts = _explain(reading.folder, classifier.task, model, rows, reading.records["test"])
    run = reading.run | {"explanations": facts, "tables": table_hashes(reading.folder)}
    write_aside(reading.folder / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")


def _explain(
    folder: Path, task: Any, model: nn.Module, rows: Mapping[str, Row], records: Sequence[Record]
) -> dict[str, Any]:
    """Write the table of the explanations of `rows`, by id, in the order of `choose`; returns what the run says."""
    from captum import __version__

    began = time.perf_counter()
    method, explain = METHODS[task.name]
    chosen = [records[place] for place in choose(records)]
    found = [_explain_row(task, model, rows[record["id"]], record, explain) for record in chosen]
    write_explanations(folder, found)
    gaps = [one.gap_share for one in found if one.gap is not None]
    return {
        "method": method,
        "captum": __version__,
        "rows": len(found),
        "baseline": task.tokenizer.pad_token if task.name == "text-classification" else "mean colour",
        "most_steps": max((one.steps for one in found if one.steps is not None), default=None),
        "largest_gap": max(gaps, default=None),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _explain_row(
    task: Any, model: nn.Module, row: Row, record: Record, explain: Callable[..., dict[str, Any]]
) -> Explanation:
    """UserError where the model does not give the answer of the record."""
    order = record["probabilities"].argsort()[::-1]
    second = next(task.labels[place] for place in order if task.labels[place] != record["prediction"])
    wrong = record["label"] != record["prediction"]
    other = record["label"] if wrong else second
    given, against = task.index[record["prediction"]], task.index[other]
    made = explain(task, model, dict(row) | {"label": record["label"]}, given, against)
    expected = float(record["logits"][given] - record["logits"][against])
    if abs(made["answer"] - expected) > ANOTHER * max(1, abs(expected)):
        raise UserError(
            f"row {record['id']}: the model leads with {made['answer']:.3f} where the run's table has {expected:.3f}; "
            "it is not the model that made the table; make the run again"
        )
    facts = {"id": record["id"], "label": record["label"], "prediction": record["prediction"], "other": other}
    return Explanation(**facts, sure=float(record["probabilities"][given]), **made)


# texts


def explain_text(task: Any, model: nn.Module, row: Row, given: int, against: int) -> dict[str, Any]:
    """What each word of a text, or pair of texts, adds to logit `given` less logit `against`, as the model reads it.

    The baseline is the same text with a padding token for each token but the special ones. Pieces outside of words
    make up `rest`; words and rest add up to `answer - baseline`, but for `gap`.
    """
    import torch

    tokenizer, texts = task.tokenizer, [row[name] for name in ("text", "text_pair") if row.get(name) is not None]
    if not tokenizer.is_fast:
        raise UserError("its tokenizer has no fast version, which says where in the text a token stands")
    encoded = tokenizer(*texts, truncation=True, return_offsets_mapping=True)
    device, layer = next(model.parameters()).device, model.get_input_embeddings()
    names = [name for name in tokenizer.model_input_names if name in encoded]
    inputs = {name: torch.tensor([encoded[name]], device=device) for name in names}  # each (1, tokens)
    parts = encoded.sequence_ids(0)  # of each token: which text it is of, None for a special one
    special = torch.tensor([part is None for part in parts], device=device)
    ids = inputs["input_ids"]
    with torch.no_grad():
        embedded, empty = layer(ids), layer(torch.where(special, ids, tokenizer.pad_token_id))  # (1, tokens, width)

    def lead(embedded: Tensor) -> Tensor:
        """The lead of `given`, (rows,), with these in place of what the layer makes of the ids."""
        calls = []

        def put(*_: Any) -> Tensor:
            calls.append(1)
            return embedded

        with layer.register_forward_hook(put):
            logits = model(**{name: value.expand(len(embedded), -1) for name, value in inputs.items()}).logits
        if len(calls) != 1:
            raise UserError(f"{type(model).__name__} reads its embeddings {len(calls)} times, and not once")
        return logits[:, given] - logits[:, against]

    with torch.no_grad():
        answer, baseline = (float(lead(one)) for one in (embedded, empty))
    scores, steps = integrate(lead, embedded, empty, answer - baseline)
    cut = len(tokenizer(*texts, verbose=False)["input_ids"]) > ids.shape[1]
    said, rest = [], sum(score for score, part in zip(scores, parts, strict=True) if part is None)
    for number, text in enumerate(texts):
        mine = [place for place, part in enumerate(parts) if part == number]
        offsets = [encoded["offset_mapping"][place] for place in mine]
        words, outside = by_word(text, offsets, [scores[place] for place in mine], cut=cut)
        said.append(words)
        rest += outside
    gap = abs(sum(scores) - (answer - baseline))
    facts = {"answer": answer, "baseline": baseline, "rest": rest, "gap": gap, "steps": steps}
    return facts | {"texts": said, "cut": cut}


def integrate(
    lead: Callable[[Tensor], Tensor], embedded: Tensor, empty: Tensor, change: float
) -> tuple[list[float], int]:
    """The integrated gradient of each token, in as few steps as add up to `change`, or else the most; and the steps."""
    from captum.attr import IntegratedGradients

    at_a_time = max(1, TOKENS // embedded.shape[1])
    for steps in STEPS:
        found = IntegratedGradients(lead).attribute(
            embedded, baselines=empty, n_steps=steps, internal_batch_size=at_a_time
        )
        scores = found.detach().double().sum(-1)[0]  # (tokens,)
        if abs(float(scores.sum()) - change) <= GAP * max(abs(change), LEAST):
            break
    return scores.tolist(), steps


def by_word(
    text: str, offsets: Sequence[tuple[int, int]], scores: Sequence[float], *, cut: bool
) -> tuple[list[tuple[str, float | None]], float]:
    """The text in order as words with their scores and what is between them with None; and what no word has.

    A piece counts for the word in which it starts, blanks aside. Of a text that was `cut`, what follows the last word
    that was read is left out.
    """
    starts, sums, rest = words_of(text, offsets), {}, 0.0
    for (start, end), score in zip(offsets, scores, strict=True):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if start >= end:
            rest += score
            continue
        word = starts[bisect.bisect_right(starts, start) - 1]
        sums[word] = sums.get(word, 0.0) + score
    said = [(text[start:end], sums.get(start)) for start, end in pairwise([*starts, len(text)])]
    while cut and said and said[-1][1] is None:
        said.pop()
    return said, rest


def words_of(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Where words, signs and blanks start; scripts that set no blanks between words are parted where pieces are."""
    starts, place = [], 0
    for kind, letters in groupby(text, _kind):
        size = len(list(letters))
        starts.append(place)
        if kind == "unspaced":
            starts += sorted({start for start, _ in offsets if place < start < place + size})
        place += size
    return starts


def _kind(letter: str) -> str:
    if letter.isspace():
        return "blank"
    spans = zip(WITHOUT_BLANKS[::2], WITHOUT_BLANKS[1::2], strict=True)
    if any(first <= letter <= last for first, last in spans):
        return "unspaced"
    return "word" if unicodedata.category(letter)[0] in "LNM" or letter in "'’_" else "sign"


# pictures


def explain_picture(task: Any, model: nn.Module, row: Row, given: int, against: int) -> dict[str, Any]:
    """How much logit `given` less logit `against` falls when a part of the picture turns into the mean colour.

    `heat` has a number for each of at most GRID x GRID parts, the mean over the squares that hid it.
    """
    import torch
    from captum.attr import Occlusion

    device, settings = next(model.parameters()).device, task.preprocessing
    pixels = task.encode(row, None)["pixels"]  # (channels, height, width) uint8
    mean = torch.tensor([255 * value for value in settings.mean], device=device)

    def lead(pixels: Tensor) -> Tensor:
        inputs = {"pixels": pixels.round().to(torch.uint8)}  # as the model is always asked
        targets = {"targets": torch.zeros(len(pixels), dtype=torch.long, device=device)}
        records = task.predict(model, Batch([row["id"]] * len(pixels), inputs, targets))
        return torch.tensor([float(record["logits"][given] - record["logits"][against]) for record in records])

    whole = pixels[None].float().to(device)
    sides = tuple(pixels.shape[1:])
    steps = [math.ceil(side / GRID) for side in sides]
    with torch.no_grad():
        found = Occlusion(lambda pixels: lead(pixels).to(device)).attribute(
            whole,
            sliding_window_shapes=(len(pixels), *(2 * step for step in steps)),
            strides=(len(pixels), *steps),
            baselines=mean.view(1, -1, 1, 1).expand_as(whole),
            perturbations_per_eval=HIDDEN,
        )
        answer = float(lead(whole)[0])
    middles = [
        [min(place + step // 2, side - 1) for place in range(0, side, step)]
        for step, side in zip(steps, sides, strict=True)
    ]
    heat = found[0, 0][middles[0]][:, middles[1]].tolist()
    return {"answer": answer, "picture": _small(pixels.flip(0) if settings.blue_first else pixels), "heat": heat}


def _small(pixels: Tensor) -> bytes:
    """What the model saw, as a small JPEG."""
    from PIL import Image

    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    scale, file = SIDE / min(picture.size), io.BytesIO()
    picture.resize([max(1, round(side * scale)) for side in picture.size]).save(file, "JPEG", quality=80)
    return file.getvalue()


METHODS: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "text-classification": ("integrated gradients", explain_text),
    "image-classification": ("occlusion", explain_picture),
}
"""For each task, how its answers are explained, and what does it."""

FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "text-classification": lambda texts: dict(zip(("text", "text_pair"), texts, strict=False)),
    "image-classification": lambda content: {"path": None, "bytes": content},
}
"""For each task, a row from its content."""
