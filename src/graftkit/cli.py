"""What can be done outside a recipe? The `graft` command."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from graftkit import __version__
from graftkit.backbone import first_line
from graftkit.batches import fixed_batches
from graftkit.config import parse
from graftkit.data.stream import READERS, read_chunks
from graftkit.download import fetch
from graftkit.errors import UserError
from graftkit.export import ADAPTER, load_saved
from graftkit.hub.config import HubConfig
from graftkit.text import encode, pad, position_limit

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from transformers import PreTrainedTokenizerBase

PREDICT = """\
Say which label each row of a file has, and how likely each label is.

    graft predict runs/reviews new.csv --output answers.csv
    tail -f messages.log | graft predict runs/reviews -

One answer per row, in order: a line of JSON, or of csv where --output ends so. At most 1,024 rows are read at a time,
and no more than a pipe has ready: a slow writer is answered line by line. A bad row ends it, after earlier answers."""


PUSH = """\
Check the model of a run in a process without graftkit, and push it with its card and report, in one commit.

    graft push runs/reviews me/reviews --hub.private

Texts and pictures of the data stay here, unless --hub.with_rows. The token is that of `hf auth login`, or HF_TOKEN."""
EVALUATE = """\
Score a model on rows of your own: tables, metrics and a report, in a run's folder without a model.

    graft evaluate runs/reviews --data.path new.csv
    graft evaluate organisation/model --data.path reviews --data.test test --data.label stars

MODEL is the folder of a run or of a model, or a Hub id: any classifier of texts or pictures whose config names its
labels, of transformers, PEFT or timm. The labels in the data must be written as the model has them."""
PULL = """\
Bring a pushed model with its report back, as a run's folder that the other commands take.

    graft pull me/reviews"""


@dataclass(frozen=True)
class DataPath:
    """Where do the rows lie?"""

    path: str | None = None
    """the data of the run, where they are not where it found them, or where it kept no rows"""


@dataclass(frozen=True)
class PushConfig:
    """All that the user may set of a push."""

    hub: HubConfig = field(default_factory=HubConfig)
    data: DataPath = field(default_factory=DataPath)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 when done; a user's mistake is one line and exit code 2, an interrupt one line and 130."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["push"]:
            push(words[1:])
        elif words[:1] == ["evaluate"]:
            evaluate(words[1:])
        else:
            arguments = _parser().parse_args(words)
            arguments.action(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python writes what it still holds when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> Parser:
    parser = Parser(prog="graft", description="Use what the recipes of graftkit trained.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"graft {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    summary, raw = "label the texts of a file or a pipe", argparse.RawDescriptionHelpFormatter
    command = commands.add_parser("predict", help=summary, description=PREDICT, formatter_class=raw, allow_abbrev=False)
    command.set_defaults(action=predict)
    add = command.add_argument
    add("model", metavar="RUN_OR_MODEL", help="folder of a run or of a model, or a Hub id")
    add("file", metavar="FILE", help="csv, tsv, jsonl or txt (one text a line); - is standard input")
    add("--format", choices=list(READERS), help="of FILE, by default as its name ends; of standard input, txt")
    add("--text", metavar="COLUMN", help="column of the text, by default the run's, else the one named like a text")
    add("--text_pair", metavar="COLUMN", help="column of the second text, by default the run's")
    add("--output", metavar="FILE", help="csv or jsonl file to write, by default jsonl to standard output")
    commands.add_parser("evaluate", help="score a model on rows of your own")
    commands.add_parser("push", help="check a run's model, and share it on the Hub")
    summary = "bring a pushed run back"
    command = commands.add_parser("pull", help=summary, description=PULL, formatter_class=raw, allow_abbrev=False)
    command.set_defaults(action=pull)
    command.add_argument("id", metavar="ID", help="repository on the Hub, such as me/my-model")
    command.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    command.add_argument("--out", metavar="FOLDER", help="folder to make, by default runs/ and the repository's name")
    return parser


def evaluate(words: Sequence[str]) -> None:
    """`graft evaluate MODEL --data.path ...`."""
    from graftkit.appraise import Config, appraise

    named = list(takewhile(lambda word: not word.startswith("-"), words))
    command = "graft evaluate MODEL"
    config = parse(Config, words[len(named) :], description=EVALUATE, command=command)
    names = {*named, config.backbone.name} - {None}
    if len(names) != 1:
        raise UserError(f"say which one model to score: {command} --data.path ... (see graft evaluate --help)")
    appraise(replace(config, backbone=replace(config.backbone, name=names.pop())))


def push(words: Sequence[str]) -> None:
    """`graft push RUN ID [--hub.private ...]`."""
    from graftkit.hub import push as push_run

    named = list(takewhile(lambda word: not word.startswith("-"), words))
    command = "graft push RUN ID"
    config = parse(PushConfig, words[len(named) :], description=PUSH, command=command)
    if len(named) != 2 or config.hub.push_to not in (None, named[1]):
        raise UserError(f"say what to push, and where to: {command} (see graft push --help)")
    push_run(Path(named[0]), replace(config.hub, push_to=named[1]), config.data.path)


def pull(arguments: argparse.Namespace) -> None:
    """`graft pull ID`."""
    from graftkit.hub.pull import pull as pull_run

    out = Path(arguments.out or Path("runs", arguments.id.rpartition("/")[2]))
    commit = pull_run(arguments.id, arguments.revision, out, lambda line: print(line, file=sys.stderr))
    print(f"{arguments.id} at {commit[:8]} is in {out}")


def predict(arguments: argparse.Namespace) -> None:
    """Write one answer per row. The first chunk is read before anything heavy is loaded."""
    output = arguments.output and Path(arguments.output)
    if output and output.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--output {output}: the name must end in .csv or .jsonl")
    if output and arguments.file != "-" and output.resolve() == Path(arguments.file).resolve():
        raise UserError(f"--output {output} is the file to read; name another")
    folder = find_model(arguments.model)
    chunks = read_chunks(arguments.file, arguments.format, _columns_of_run(folder), arguments.text, arguments.text_pair)
    chunks = chain([next(chunks, [])], chunks)
    model, tokenizer = load_classifier(folder)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        with output.open("w", encoding="utf-8", newline="") if output else nullcontext(sys.stdout) as file:
            write = _writer(file, labels, as_csv=bool(output) and output.suffix == ".csv")
            for chunk in chunks:
                found = probabilities(model, tokenizer, [texts for _, texts in chunk])
                for (number, _), row in zip(chunk, found, strict=True):
                    write(number, labels[row.argmax()], [float(f"{value:.7g}") for value in row])  # all that fp32 holds
                file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{output or 'standard output'} cannot be written: {error.strerror}") from error


def _writer(file: TextIO, labels: list[str], *, as_csv: bool) -> Callable[[int, str, list[float]], Any]:
    """What writes the number of a row, its label, and the probability of each label."""
    if as_csv:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "label", "probability", *(f"probability:{label}" for label in labels)])
        return lambda number, label, values: table.writerow([number, label, max(values), *values])

    def write(number: int, label: str, values: list[float]) -> None:
        answer = {"row": number, "label": label, "probability": max(values)}
        answer["probabilities"] = dict(zip(labels, values, strict=True))
        file.write(json.dumps(answer, ensure_ascii=False) + "\n")

    return write


# the model


def find_model(name: str) -> Path:
    """The folder of a run's model, of a model, or of one from the Hub. UserError where it is no classifier."""
    folder = Path(name).expanduser()
    folder = folder if folder.exists() else fetch(name, flag="").folder
    files = [place / file for place in (folder, folder / "model") for file in (ADAPTER, "config.json")]
    config = next((file for file in files if file.exists()), None)
    if config is None and (folder / "config.yaml").exists():
        raise UserError(f"{name}: this run did not finish (no model/); go on with --run.out {name} --run.resume")
    if config is None:
        raise UserError(f"{name} holds neither a run nor a model (no model/, config.json or {ADAPTER})")
    settings = json.loads(config.read_text(encoding="utf-8"))
    kinds = settings.get("architectures") or [settings.get("task_type")]
    if "architecture" in settings or str(kinds[0]).endswith("ForImageClassification"):
        raise UserError(f"{name} is a model for pictures, and graft predict reads texts; report.md says how to ask it")
    if not any(str(kind).endswith(("ForSequenceClassification", "SEQ_CLS")) for kind in kinds):
        raise UserError(f"{name} is no sequence classifier ({kinds[0]}); train one with recipes/text_classify.py")
    return config.parent


def _columns_of_run(folder: Path) -> dict[str, str | None]:
    """The columns that the run of a model read; none known for a model of another origin."""
    record = folder.parent / "run.json"
    if folder.name != "model" or not record.exists():
        return {}
    return json.loads(record.read_text(encoding="utf-8"))["data"]["columns"]


def load_classifier(folder: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A saved model in fp32 on the best device, and its tokenizer, ready to cut and pad. UserError if one is broken."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = load_saved(folder, "AutoModelForSequenceClassification")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: weights of another shape
        raise UserError(f"{folder} cannot be loaded: {first_line(error)}") from error
    if model.config.num_labels < 2 or model.config.problem_type not in (None, "single_label_classification"):
        raise UserError(f"{folder}: this model does not choose one of several labels, so it is not for graft predict")
    tokenizer.model_max_length = min(tokenizer.model_max_length, position_limit(model.config))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu"), tokenizer


def probabilities(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """How likely each label is for each text, or pair of texts: (rows, labels) float32."""
    import numpy as np
    import torch

    examples = [encode(tokenizer, *text) for text in texts]
    lengths = np.array([len(example["input_ids"]) for example in examples], dtype=int)
    found = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    with torch.inference_mode():
        for batch in fixed_batches(lengths, len(texts)):
            inputs = pad(tokenizer, [examples[i] for i in batch])
            logits = model(**{name: values.to(model.device) for name, values in inputs.items()}).logits
            found[batch] = logits.float().softmax(dim=-1).cpu().numpy()
    return found
