"""Which text comes of this one?

The decoder is taught with the true text before it (teacher forcing), by the model's own shift. What it writes for a row
is found by beam search, bounded in length; the rows beside it in a batch change nothing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.backbone import ON_THIS_MACHINE, BackboneConfig, resolve
from graftkit.baselines import target_baselines
from graftkit.config import AtLeastOne, Fraction, Positive
from graftkit.errors import UserError
from graftkit.export import load_saved, save_model
from graftkit.heads import Headed, load_headless
from graftkit.metrics import generation, sums
from graftkit.metrics.generation import LOSS_ALONE, SCORING
from graftkit.snippets import loading
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import CHUNK, describe_lengths, load_tokenizer, pad, position_limit, text_hash

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from graftkit.data import Splits
    from graftkit.run import Run

IGNORED = -100  # where a target has ended: no loss
NEARLY_ALL, ROOM = 99, 1.5  # a text may be half as long again as 99% of the training targets
PRETRAINED_LR = 5e-4  # from here on, a rate is for a network that starts from nothing
READ = ("input_ids", "attention_mask")  # of what a tokenizer makes of a source

SNIPPET = """\
{load}
texts = ["a text"]
read = [{prefix}text for text in texts]
inputs = tokenizer(read, truncation=True, max_length={length}, padding=True, return_tensors="pt")
inputs = {{name: inputs[name] for name in ("input_ids", "attention_mask")}}
written = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(folder))
print(tokenizer.batch_decode(written, skip_special_tokens=True))"""


@dataclass(frozen=True)
class TargetConfig:
    """What is learnt of the texts to write?"""

    max_length: AtLeastOne | None = None
    """tokens that are learnt of a target; by default as many as are read of a source"""
    smoothing: Fraction = 0.0
    """share of each target that is spread over all tokens (label smoothing); losses on dev and test are without it"""


@dataclass(frozen=True)
class GenerateConfig:
    """How does it write?"""

    beams: AtLeastOne = 4
    """how many beginnings of a text are followed at once (beam search); 1 takes the likeliest token each time"""
    max_new_tokens: AtLeastOne | None = None
    """longest text that it writes, in tokens; by default half as long again as 99% of the training targets"""
    max_seconds: Positive | None = None
    """stop writing a batch after so many seconds; what then comes out depends on the machine, and the report says so"""


def load_reader(config: BackboneConfig, target: TargetConfig, generate: GenerateConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint that reads one text and writes another.

    UserError for a checkpoint that cannot, and for a target, or a text to write, longer than it has positions for.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(config, fast=False)
    settings = AutoConfig.from_pretrained(resolve(config.name, config.revision), **ON_THIS_MACHINE)
    _check_kind(config.name, settings)
    limit = position_limit(settings)
    for name, asked in (("target.max_length", target.max_length), ("generate.max_new_tokens", generate.max_new_tokens)):
        if asked is not None and asked > limit:
            raise UserError(f"--{name} {asked}: this checkpoint writes at most {limit} tokens")
    if hasattr(tokenizer, "tgt_lang") and getattr(tokenizer, "src_lang", None) is not None:
        raise UserError(
            f"--backbone.name {config.name}: {type(tokenizer).__name__} wants a code for each language, which this "
            "recipe does not give it yet; take a T5, BART or Marian"
        )
    return tokenizer


def _check_kind(name: str, settings: Any) -> None:
    """Raise UserError for a checkpoint that has no encoder, or no decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if settings.is_encoder_decoder:
        return
    cure = "take one with an encoder and a decoder, such as a T5, BART or Marian"
    if settings.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(f"--backbone.name {name}: {settings.model_type} reads texts and writes none; {cure}")
    raise UserError(
        f"--backbone.name {name}: {settings.model_type} has no encoder, and goes on with a text rather than read one "
        f"and write another: that is recipes/generate.py; or {cure}"
    )


def load_writer(config: BackboneConfig, seed: int) -> Headed:
    """A checkpoint with an encoder and a decoder, which brings its head."""
    return load_headless(config, "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", seed)


def say_what_is_new(run: Run, backbone: BackboneConfig, strategy: str, lr: float | str) -> None:
    """Say that nobody trained the demo's network; warn of a learning rate that would undo what others learnt."""
    if backbone.name == "demo-t5":
        run.say(
            "demo-t5 is a small T5 that nobody has trained: it knows no language, and learns from these rows alone; "
            "for your own texts name a pretrained checkpoint (--backbone.name)"
        )
    elif strategy in ("full", "last") and lr != "auto" and lr >= PRETRAINED_LR:
        run.say(
            f"--train.lr {lr:g} is for a network that starts from nothing, and undoes what a pretrained one knows; "
            "try 1e-4 for T5 and 3e-5 for BART and Marian, and fewer --train.epochs",
            warning=True,
        )


class SequenceToSequence:
    """A text for a text: cross-entropy over the tokens of the target, and beam search."""

    name = "text2text-generation"
    lower = SCORING.lower
    calibrates = False
    decides = False
    cuts = True
    workers = 0
    auto_class = "AutoModelForSeq2SeqLM"
    headline = "log_loss"  # it needs no text, and texts of dev after each epoch may take longer than the epoch
    headlines = generation.HEADLINES

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prefix: str, target: TargetConfig, generate: GenerateConfig
    ) -> None:
        self.tokenizer, self.prefix, self.generate = tokenizer, prefix, generate
        self.labels: list[str] = []
        self.smoothing = target.smoothing
        self.target_length = target.max_length or tokenizer.model_max_length
        self.most = generate.max_new_tokens  # tokens that it writes at most; None until `bound`
        self.writes = True  # whether `predict` is asked for texts, or for the loss alone
        self._check_room()

    def bound(self, targets: np.ndarray) -> None:
        """Settle how long a text may become, from the tokens of the training targets (rows,), unless the user did."""
        if self.most is None:
            nearly_all = np.percentile(targets, NEARLY_ALL, method="inverted_cdf")
            self.most = min(int(np.ceil(ROOM * nearly_all)), self.target_length)

    def counts(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each source with its prefix, and of each target, before they are cut: (rows,) int32 both."""
        found: list[tuple[int, int]] = []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            found += self._count(chunk["source"], chunk["target"])
        sources, targets = np.array(found, np.int32).T
        return sources, targets

    def _count(self, sources: Sequence[str], targets: Sequence[str]) -> list[tuple[int, int]]:
        read = self.tokenizer([self.prefix + text for text in sources], verbose=False)["input_ids"]
        wanted = self.tokenizer(text_target=list(targets), verbose=False)["input_ids"]
        return list(zip(map(len, read), map(len, wanted), strict=True))

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read and written of each row, (rows,) int32."""
        return self._kept_of(*self.counts(rows))

    def _kept_of(self, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.minimum(sources, self.tokenizer.model_max_length) + np.minimum(targets, self.target_length)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The inputs of the encoder, and the tokens of the target, each cut to its limit."""
        found = self.tokenizer(self.prefix + row["source"], truncation=True, max_length=self.tokenizer.model_max_length)
        read = {name: found[name] for name in READ}
        wanted = self.tokenizer(text_target=row["target"], truncation=True, max_length=self.target_length)
        return {
            "id": row["id"],
            **read,
            "wanted": wanted["input_ids"],
            "target": row["target"],
        }

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (rows, source tokens) int64, padded on the right, and labels (rows, target tokens), -100 after them.

        The model makes what its decoder reads of the labels, since models differ in how they shift them.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        wanted = [torch.tensor(example["wanted"]) for example in examples]
        labels = pad_sequence(wanted, batch_first=True, padding_value=IGNORED)
        inputs = pad(self.tokenizer, examples) | {"labels": labels}
        targets = {"texts": [example["target"] for example in examples]}
        return Batch([example["id"] for example in examples], inputs, targets)

    def count(self, batch: Batch) -> Tensor:
        """Tokens of the targets."""
        return (batch.inputs["labels"] != IGNORED).sum().float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, with label smoothing, summed over the tokens of the targets."""
        return self._losses(model, batch, self.smoothing).sum()

    def _losses(self, model: nn.Module, batch: Batch, smoothing: float) -> Tensor:
        """(rows, target tokens); 0 after the end."""
        from torch.nn.functional import cross_entropy

        logits, labels = model(**batch.inputs).logits.float(), batch.inputs["labels"]
        how = {"ignore_index": IGNORED, "reduction": "none", "label_smoothing": smoothing}
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), **how).view_as(labels)

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The text that the model writes for each row, None while it is not asked to; `label` is the true one.

        `loss` is that of all `tokens` of the target together, without smoothing; `ended` says how the text came to its
        end: by itself ("end"), at its greatest length ("length") or by the clock ("time").
        """
        losses = self._losses(model, batch, 0.0).detach().sum(dim=1).double().cpu().tolist()
        tokens = (batch.inputs["labels"] != IGNORED).sum(dim=1).cpu().tolist()
        texts, ends = self._write(model, batch) if self.writes else ([None] * len(batch.ids), [None] * len(batch.ids))
        named = zip(batch.ids, batch.targets["texts"], texts, losses, tokens, ends, strict=True)
        return [dict(zip(("id", "label", "prediction", "loss", "tokens", "ended"), row, strict=True)) for row in named]

    def _write(self, model: nn.Module, batch: Batch) -> tuple[list[str], list[str]]:
        """The text of each row, and how it ended."""
        from transformers import StoppingCriteriaList

        clock = Clock(self.generate.max_seconds)
        settings = self.settings(model)
        limit = settings.max_time
        settings.max_time = None  # `clock` stops it, and remembers that it did
        inputs = {name: values for name, values in batch.inputs.items() if name != "labels"}
        stops = StoppingCriteriaList([] if limit is None else [clock])
        written = model.generate(**inputs, generation_config=settings, stopping_criteria=stops)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        last = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        forced = (
            settings.forced_eos_token_id is not None
        )  # then a text of the greatest length ends so, though it is cut
        room = self.most - forced
        whole = [bool(set(ids[:room]) & set(last)) for ids in written[:, 1:].tolist()]  # the first starts the decoder
        ended = ["time" if clock.struck and not (end and self.generate.beams == 1) else None for end in whole]
        return texts, [why or ("end" if end else "length") for why, end in zip(ended, whole, strict=True)]

    def settings(self, model: nn.Module) -> GenerationConfig:
        """The checkpoint's own settings of generation, such as its length penalty, with those of this run.

        Its shortest and longest text are left out, since they are of the rows that it learnt before.
        """
        found = copy.deepcopy(model.generation_config)
        chosen = {"num_beams": self.generate.beams, "max_new_tokens": self.most, "max_time": self.generate.max_seconds}
        unused = ["max_length", "min_length", "min_new_tokens"]
        unused += ["temperature", "top_k", "top_p"]  # nothing is drawn
        unused += ["early_stopping", "length_penalty"] if self.generate.beams == 1 else []  # they are of beams
        for name, value in {**dict.fromkeys(unused), **chosen, "do_sample": False}.items():
            setattr(found, name, value)
        return found

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.generation`; of records without texts, the loss alone."""
        return sums.score(LOSS_ALONE if records[0]["prediction"] is None else SCORING, records)

    def digest(self, row: Row) -> str:
        """Of source and target."""
        return text_hash(row["source"], row["target"])

    def overlong(self, rows: Sequence[Row]) -> None:
        """None: how a source is cut shows in no number here, and texts may change with the last digit of one."""

    def kept(self, row: Row) -> Kept:
        """Source and target, with the tokens of both before they are cut."""
        [(source, target)] = self._count([row["source"]], [row["target"]])
        content = {"source": row["source"], "target": row["target"]}
        return Kept(content, {"source_tokens": float(source), "target_tokens": float(target)})

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The source itself, and the training target of the most similar source."""
        return target_baselines(train, test)

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, or of PEFT where the model is an adapter, with the settings of generation."""
        save_model(folder, model, self.tokenizer)
        self.settings(model).save_pretrained(folder)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        from transformers import GenerationConfig

        model = load_saved(folder, self.auto_class)
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        plain.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """Lines of plain transformers (for an adapter, PEFT) that write what this task writes."""
        return SNIPPET.format(
            load=loading(self.auto_class, folder, hub_id, also=["GenerationConfig"]),
            prefix=f"{self.prefix!r} + " if self.prefix else "",
            length=self.tokenizer.model_max_length,
        )

    def _check_room(self) -> None:
        """Raise UserError where the prefix leaves no room for a text, or special tokens none for a target."""
        longest = self.tokenizer.model_max_length
        taken = len(self.tokenizer(self.prefix)["input_ids"])
        if taken >= longest:
            raise UserError(
                f"--data.prefix {self.prefix!r}: it takes {taken} tokens, and the model reads {longest}; shorten it"
            )
        special = len(self.tokenizer(text_target="")["input_ids"])
        if self.target_length <= special:
            raise UserError(
                f"--target.max_length {self.target_length}: {special} are special tokens, which leaves none for text"
            )


class Clock:
    """Stops a batch after so many seconds, and remembers it."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.started, self.struck = seconds, time.monotonic(), False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether each row is to stop, (rows,) bool."""
        import torch

        self.struck = self.struck or time.monotonic() - self.started >= self.seconds
        return torch.full((len(input_ids),), self.struck, dtype=torch.bool, device=input_ids.device)


def measure_pairs(run: Run, task: SequenceToSequence, splits: Splits) -> dict[str, np.ndarray]:
    """Tokens that are read and written of each row of each split; says how many are cut, and bounds what is written."""
    counts = {name: task.counts(getattr(splits, name)) for name in ("train", "dev", "test")}
    task.bound(counts["train"][1])
    reads, writes = task.tokenizer.model_max_length, task.target_length
    sources, targets = describe_lengths(counts["train"][0], reads), describe_lengths(counts["train"][1], writes)
    cut = {
        split: {"sources": int((source > reads).sum()), "targets": int((target > writes).sum()), "rows": len(source)}
        for split, (source, target) in counts.items()
    }
    beyond = int((counts["test"][1] > task.most).sum())
    special = task.tokenizer.num_special_tokens_to_add(pair=False)
    run.record["lengths"] = sources | {"special_tokens": special, "targets": targets, "cut": cut}
    how = {"beams": task.generate.beams, "max_new_tokens": task.most, "max_seconds": task.generate.max_seconds}
    run.record["generation"] = how | {"longer_references": beyond}
    for name, facts in (("source", sources), ("target", targets)):
        half, most, nearly_all, longest = facts["percentiles"].values()
        run.say(
            f"tokens of a {name}: half have at most {half}, 90% {most}, 99% {nearly_all}, the longest {longest}; "
            f"{facts['truncated_rows']} ({facts['truncated_share']:.1%}) of train are cut to {facts['max_length']}"
        )
    for split, found in cut.items():
        if found["targets"]:
            share = found["targets"] / found["rows"]
            run.say(
                f"{found['targets']:,} of {found['rows']:,} targets of {split} ({share:.1%}) are longer than "
                f"{writes} tokens, and their ends are not learnt or measured by the loss. Set --target.max_length",
                warning=True,
            )
    beams = "the likeliest token each time" if task.generate.beams == 1 else f"{task.generate.beams} beams"
    run.say(f"texts are written by {beams}, of at most {task.most} tokens")
    return {split: task._kept_of(*pair) for split, pair in counts.items()}
