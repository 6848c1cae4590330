"""Which words of a text answer the question?

A span of the text: the model gives each piece a score as the start of the answer and one as its end (Devlin et al.
2019, section 4.2), and the span of the highest sum is given, with its letters cut from the text as it stands. A text
that is longer than the model reads is read in windows, each of which repeats the last quarter of the one before it and
has the question before it; a question is cut to half a window. In a window without the whole answer, and where there is
none, start and end are the place of "no answer": the first token, [CLS]. Tokenizers that put no such token there, as
those of GPT-2 and Llama, get one end-of-text token after each window for it, since a model that reads from left to
right has seen nothing at its first token; where they put nothing between question and text either, a new line goes
there.

Questions, special tokens and padding are no candidates, in training and afterwards. Where some questions have no answer
(SQuAD 2.0), none is given if the lowest score of "no answer" of all windows is ahead of the best span by more than a
threshold, which is chosen on dev for the best F1; where all have one, some span is always given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.baselines import answer_baselines
from graftkit.batches import some_windows
from graftkit.calibrate import ANSWERING, write_note
from graftkit.config import AtLeastOne
from graftkit.errors import UserError
from graftkit.export import load_saved, save_model
from graftkit.metrics import answers, sums
from graftkit.snippets import loading
from graftkit.spans import best_spans, cut_out, first_answer, pieces_of, sums_at
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import CHUNK, pad, text_hash

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

OVERLAP = 4  # a window shares one of so many parts with the one before it
FEWEST = 8  # pieces of question and text that a window must have room for


@dataclass(frozen=True)
class AnswerConfig:
    """Which spans can be an answer?"""

    max_tokens: AtLeastOne = 30
    """the longest answer that is given, in tokens (words or parts of words)"""


class QuestionAnswering:
    """A span of the context for each question, or none: cross-entropy over start and end of each window."""

    name = "question-answering"
    headline = "f1"
    headlines = answers.HEADLINES
    lower = answers.SCORING.lower
    calibrates = False
    cuts = False
    workers = 0
    auto_class = "AutoModelForQuestionAnswering"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        no_answer: bool,
        max_tokens: int = AnswerConfig.max_tokens,
        threshold: float = 0.0,
    ):
        """`no_answer`: whether some questions have none; `threshold`: how far "no answer" must then be ahead."""
        self.tokenizer, self.decides = tokenizer, no_answer
        self.labels: list[str] = []
        self.max_tokens, self.threshold = max_tokens, threshold
        pair = tokenizer("a", "a")["input_ids"]
        self.end = [] if pair[0] == tokenizer.cls_token_id else [_end_of_text(tokenizer)]
        self.between = "\n" if not tokenizer.num_special_tokens_to_add(pair=True) else ""
        self.width = tokenizer.model_max_length - len(self.end)
        room = self.width - tokenizer.num_special_tokens_to_add(pair=True)
        if room < FEWEST:
            raise UserError(
                f"--backbone.max_length {tokenizer.model_max_length}: leaves {max(room, 0)} tokens for question and "
                f"text, and {FEWEST} are the fewest"
            )
        self.longest_question, self.overlap = room // 2, room // OVERLAP

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read of each row, in all its windows, (rows,) int32."""
        found = np.zeros(len(rows), dtype=np.int32)
        for start in range(0, len(rows), CHUNK):
            some = [rows[place] for place in range(start, min(start + CHUNK, len(rows)))]
            windows = self._cut([self._read(row["question"]) for row in some], [row["context"] for row in some])
            sizes = [len(ids) + len(self.end) for ids in windows["input_ids"]]
            np.add.at(found, start + np.array(windows["overflow_to_sample_mapping"]), sizes)
        return found

    def in_windows(self, rows: Sequence[Row], lengths: np.ndarray) -> tuple[Windows, np.ndarray]:
        """Rows to train on, and the tokens of each: every window by itself, so that updates of long texts stay small.

        `lengths` are those of the rows, (rows,) int32.
        """
        parts: list[int | Row] = []
        tokens: list[int] = []
        for place, length in enumerate(lengths.tolist()):
            if length <= self.tokenizer.model_max_length:
                parts.append(place)
                tokens.append(length)
                continue
            for window in self._apart(rows[place]):
                parts.append(window)
                tokens.append(len(window["windows"][0]["input_ids"]))
        return Windows(rows, parts), np.array(tokens, dtype=np.int32)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The inputs of each window, where its pieces of the context are, the letters of each, and its truth."""
        if "windows" in row:
            return dict(row)
        found = self._cut([self._read(row["question"])], [row["context"]])
        windows, pieces, letters, truth = [], [], [], []
        names = [name for name in self.tokenizer.model_input_names if name in found]
        answer = first_answer(row)
        for window in range(len(found["input_ids"])):
            inputs = {name: found[name][window] for name in names}
            if self.end:
                inputs = {name: [*ids, *self._end_of(name)] for name, ids in inputs.items()}
            context = [place for place, part in enumerate(found.sequence_ids(window)) if part == 1]
            at = np.array(found["offset_mapping"][window]).reshape(-1, 2)[context]  # (pieces, 2)
            first = context[0] if context else 0
            span, none = pieces_of(at, answer), len(inputs["input_ids"]) - 1 if self.end else 0
            windows.append(inputs)
            pieces.append((first, first + len(context), none))
            letters.append(at)
            truth.append((none, none) if span is None else (first + span[0], first + span[1]))
        made = {"id": row["id"], "windows": windows, "pieces": pieces, "letters": letters, "truth": truth}
        return made | {name: row[name] for name in ("question", "context", "answers")}

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (windows, tokens) int64, of all rows one after the other and padded on the right to the longest.

        Targets of all windows: start and end, (windows, 2) int64; the place of "no answer", (windows,) int64; which
        tokens are the context's, (windows, tokens) bool; and of each row what a record needs.
        """
        import torch

        inputs = pad(self.tokenizer, [window for example in examples for window in example["windows"]])
        first, end, none = torch.tensor([piece for example in examples for piece in example["pieces"]]).T
        place = torch.arange(inputs["input_ids"].shape[1])
        targets = {
            "truth": torch.tensor([pair for example in examples for pair in example["truth"]]),
            "none": none,
            "context": (place >= first[:, None]) & (place < end[:, None]),
            "rows": [
                {name: example[name] for name in ("question", "context", "answers", "letters", "pieces")}
                for example in examples
            ],
        }
        return Batch([example["id"] for example in examples], inputs, targets)

    def count(self, batch: Batch) -> Tensor:
        """A start and an end for each window."""
        import torch

        return torch.tensor(2.0 * len(batch.targets["none"]))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of start and end over the context and "no answer", summed over the windows."""
        return self._losses(self._logits(model, batch.inputs), batch).sum()

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The best span of each row over all its windows, and whether it is given.

        `label`: the accepted answers, none where there is none; `prediction`: what is given, "" for none; `best`,
        `start` and `score`: the best span's text, where it begins in the context, and the sum of its two logits;
        `null_gap`: how far "no answer" is ahead of it (None where all questions have one); `asks`: the question's first
        word; `windows`; `loss`: that of all windows together.
        """
        import torch

        with torch.no_grad():
            logits = torch.cat([self._logits(model, inputs) for inputs in some_windows(batch.inputs)], dim=1)
        losses = self._losses(logits, batch).double().cpu().numpy()
        found = best_spans(logits, batch.targets["context"], self.max_tokens)
        scores, firsts, lasts = (value.cpu().numpy() for value in found)
        nulls = sums_at(logits, batch.targets["none"]).cpu().numpy()
        scores = np.where(np.isfinite(scores), scores, nulls)  # of a context that gives no piece
        records, begin = [], 0
        for id, row in zip(batch.ids, batch.targets["rows"], strict=True):
            mine = slice(begin, begin + len(row["pieces"]))
            window = int(scores[mine].argmax())
            where, context = begin + window, row["context"]
            begins = row["pieces"][window][0]
            text, start = cut_out(context, row["letters"][window], begins, firsts[where], lasts[where])
            gap = float(nulls[mine].min() - scores[where]) if self.decides else None
            records.append(
                {
                    "id": id,
                    "label": list(row["answers"]),
                    "prediction": "" if gap is not None and gap > self.threshold else text,
                    "best": text,
                    "start": start,
                    "score": float(scores[where]),
                    "null_gap": gap,
                    "asks": (row["question"].lower().split() or [""])[0],
                    "windows": len(row["pieces"]),
                    "loss": float(losses[mine].sum()),
                }
            )
            begin = mine.stop
        return records

    def decide(self, records: Sequence[Record]) -> dict[str, Any]:
        """The threshold of the best F1 on dev, for every later `predict`; and what it brings there."""
        gaps, spans, truth = ([record[name] for record in records] for name in ("null_gap", "best", "label"))
        self.threshold = answers.best_threshold(gaps, truth, spans)

        def f1(threshold: float) -> float:
            given = ["" if gap > threshold else text for gap, text in zip(gaps, spans, strict=True)]
            return float(np.mean([answers.f1(*pair) for pair in zip(given, truth, strict=True)]))

        return {"threshold": self.threshold, "dev_f1": f1(self.threshold), "dev_f1_at_0": f1(0.0), "rows": len(records)}

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.answers`."""
        return sums.score(answers.scoring_of(records), records)

    def digest(self, row: Row) -> str:
        """Of question and context."""
        return text_hash(row["question"], row["context"])

    def overlong(self, rows: Sequence[Row]) -> Row:
        """The first question on the contexts of the first rows, joined until they fill more than two windows."""
        contexts: list[str] = []
        read = 0
        while read <= 2 * self.tokenizer.model_max_length:
            contexts.append(rows[len(contexts) % len(rows)]["context"])
            read += len(self.tokenizer(contexts[-1], add_special_tokens=False, verbose=False)["input_ids"])
        row = {"id": "overlong", "joined": len(contexts), "context": "\n".join(contexts)}
        return row | {"question": rows[0]["question"], "answers": [], "starts": []}

    def kept(self, row: Row) -> Kept:
        """Question, context, and the data's own id; how long they are."""
        ids = self.tokenizer(row["context"], add_special_tokens=False, verbose=False)["input_ids"]
        measures = {
            "question_words": float(len(row["question"].split())),
            "tokens": float(len(ids)),
            "unknown_tokens": float(ids.count(self.tokenizer.unk_token_id)),
            "windows": float(len(self._cut([self._read(row["question"])], [row["context"]])["input_ids"])),
        }
        return Kept({name: row[name] for name in ("question", "context", "question_id")}, measures)

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """What the sentence nearest to the question adds to it; and never an answer, where some have none."""
        return answer_baselines(train, dev, test, no_answer=self.decides)

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, or of PEFT for an adapter, with how spans are chosen in its settings."""
        save_model(folder, model, self.tokenizer)
        threshold = self.threshold if self.decides else None
        write_note(folder, {"threshold": threshold, "max_tokens": self.max_tokens}, ANSWERING)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """Lines of plain transformers (for an adapter, PEFT) that answer as this task does, however long the text."""
        return SNIPPET.format(
            load=loading(self.auto_class, folder, hub_id),
            length=self.width,
            overlap=self.overlap,
            longest=self.longest_question,
            between=f" + {self.between!r}" if self.between else "",
            ask=ASK_WITH_END.format(end=self.end[0]) if self.end else ASK,
            none=-1 if self.end else 0,
            most=self.max_tokens,
            given=f'best[1] if min(nulls) - best[0] <= {self.threshold!r} else ""' if self.decides else "best[1]",
            best='best, nulls = (float("-inf"), ""), []' if self.decides else 'best = (float("-inf"), "")',
            keep_null=KEEP_NULL.format(none=-1 if self.end else 0) if self.decides else "",
        )

    def _logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Start and end, (2, windows, tokens) float32."""
        import torch

        given = model(**inputs)
        return torch.stack([given.start_logits, given.end_logits]).float()

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Of each window, (windows,)."""
        from torch.nn.functional import cross_entropy

        truth, none = batch.targets["truth"], batch.targets["none"]
        may = batch.targets["context"].scatter(1, none[:, None], True)  # (windows, tokens)
        masked = logits.masked_fill(~may, float("-inf"))
        return sum(cross_entropy(one, truth[:, side], reduction="none") for side, one in enumerate(masked))

    def _apart(self, row: Row) -> Iterator[dict[str, Any]]:
        """Each window of a row, encoded as a row of its own, in few bytes."""
        example = self.encode(row, None)
        for window, inputs in enumerate(example["windows"]):
            small = {name: np.array(ids, np.min_scalar_type(max(ids))) for name, ids in inputs.items()}
            yield example | {
                "id": f"{row['id']}, window {window + 1}",
                "windows": [small],
                "pieces": [example["pieces"][window]],
                "letters": [],  # they are for records
                "truth": [example["truth"][window]],
            }

    def _read(self, question: str) -> str:
        """The question as the tokenizer gets it: as much of it as half a window holds."""
        question = question.strip()
        if len(question.encode()) >= self.longest_question:  # no tokenizer makes more pieces than there are bytes
            cut = self.tokenizer(
                question, add_special_tokens=False, truncation=True, max_length=self.longest_question,
                return_offsets_mapping=True,
            )  # fmt: skip
            question = question[: cut["offset_mapping"][-1][1]]
        return question + self.between

    def _cut(self, questions: list[str], contexts: list[str]) -> Any:
        """The tokenizer's windows of all pairs, one after the other: a BatchEncoding."""
        return self.tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=self.width,
            stride=self.overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def _end_of(self, name: str) -> list[int]:
        """What stands at the end of each window, in one of the model's inputs."""
        return self.end if name == "input_ids" else [int(name == "attention_mask")]


@dataclass(frozen=True)
class Windows:
    """Rows of one window each: those of a split, by their place, and windows of its longer rows, encoded once."""

    rows: Sequence[Row]
    parts: list[int | Row]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Row:
        part = self.parts[index]
        return self.rows[part] if isinstance(part, int) else part


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


SNIPPET = """\
import torch
{load}
question, context = "Who wrote it?", "It was written by Ada Lovelace in London."
how = {{"return_offsets_mapping": True, "return_overflowing_tokens": True, "stride": {overlap}, "max_length": {length}}}
read = tokenizer(question.strip(), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][:{longest}]
windows = tokenizer(question.strip()[: read[-1][1]]{between}, context, truncation="only_second", **how)
{best}
for window, letters in enumerate(windows["offset_mapping"]):
{ask}
    starts, ends = given.start_logits[0].tolist(), given.end_logits[0].tolist()
{keep_null}    pieces = [place for place, part in enumerate(windows.sequence_ids(window)) if part == 1]
    for first in pieces:
        for last in range(first, min(first + {most}, pieces[-1] + 1)):
            span = context[letters[first][0] : letters[last][1]].strip()
            best = max(best, (starts[first] + ends[last], span), key=lambda one: one[0])
print({given})"""

ASK = """\
    inputs = {name: torch.tensor([windows[name][window]]) for name in tokenizer.model_input_names if name in windows}
    given = model(**inputs)"""

ASK_WITH_END = '    given = model(torch.tensor([windows["input_ids"][window] + [{end}]]))'

KEEP_NULL = "    nulls.append(starts[{none}] + ends[{none}])\n"
