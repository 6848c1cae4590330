"""What can be done outside a recipe? The `graft` command."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from graftkit import __version__
from graftkit.errors import Stopped, UserError

FORMATS = ("csv", "tsv", "jsonl", "txt", "parquet", "conll")  # those of data.stream, which is slow to import
COLUMNS = {
    "text": "text, by default the run's, else the one named like a text",
    "text_pair": "second text, by default the run's",
    "words": "words, by default the run's, else the one named like words; in conll its number",
    "source": "text of which another is written, by default the run's, else the one named like one",
    "prompt": "prompt to answer, by default the run's, else the one named prompt",
    "messages": "messages to answer, by default the run's, else the one named messages",
    "question": "question, by default the run's, else the one named like one",
    "context": "text that holds the answer, by default the run's, else the one named like one",
    "image": "picture, by default the run's, else the one named like one",
}
"""The columns that a user may name, by their roles in data.stream."""
PREDICT = """\
Say of each row of a file what a model says of it: which label it has, and how likely each is; the tags of its words.

    graft predict runs/reviews new.csv --output answers.csv
    tail -f messages.log | graft predict runs/reviews -
    graft predict runs/flowers photos
    graft predict runs/names articles.conll

One answer per row, in order: a line of JSON, or of csv where --output ends so. At most 1,024 rows are read at a time,
and no more than a pipe has ready: a slow writer is answered line by line. A bad row ends it, after earlier answers.

A model that tags words reads lists of words, or texts, which are split at blanks; or files with a word in each line
(conll), which come back with the tag as a last column.

For a model of pictures, FILE is a picture, a folder (with all that lie in and below it), or a table that names a file
in each row: seen from the table's folder, in txt and standard input from the working folder. An answer says its file.
Of pictures 64 are decoded at a time."""
EVALUATE = """\
Score a model on rows of your own: tables, metrics and a report, in a run's folder without a model.

    graft evaluate runs/reviews --data.path new.csv
    graft evaluate organisation/model --data.path reviews --data.test test --data.label stars

MODEL is the folder of a run or of a model, or a Hub id: any classifier of texts, pictures or words whose config names
its labels, of transformers, PEFT or timm. The labels in the data must be written as the model has them."""
PUSH = """\
Check the model of a run in a process without graftkit, and push it with its card and report, in one commit.

    graft push runs/reviews me/reviews --hub.private

Texts and pictures of the data stay here, unless --hub.with_rows. The token is that of `hf auth login`, or HF_TOKEN."""
PULL = """\
Bring a pushed model with its report back, as a run's folder that the other commands take.

    graft pull me/reviews"""
REPORT = """\
Make a run's report (report.html, report.md, metrics.json) again from its saved tables, and print the scores.

    graft report runs/reviews
    graft report runs/reviews --explain
    graft report runs/reviews --audit

RUN is the folder of a run that went to its end, of a pulled run, or of an evaluation. No model is loaded, but for
--explain, which keeps the words or pictures of some 20 rows of test in the folder, and for --audit, which reads the
data again and asks the pretrained checkpoint which labels are probably wrong."""
CALIBRATE = """\
Make a run's probabilities ones that can be believed: a new run with one temperature, fitted on dev, in its last layer.

    graft calibrate runs/reviews

Runs of the recipes are calibrated unless they were given --report.calibrate false. Which class a row gets stays as it
is. The data are not needed."""
SOUP = """\
Average the weights of several runs that began as the same network: one model, no larger and no slower than each.

    graft soup runs/reviews
    graft soup runs/reviews-a runs/reviews-b runs/reviews-c --kind uniform

RUN is the folder of a run, or of a run of several seeds, of a classifier of texts or pictures. A greedy soup (Wortsman
et al. 2022) begins with the run that is best on dev, and takes in another where the average is no worse; the new run
has model, tables and report, and test is asked once. Runs of several seeds drew different heads, whose average is
poor: then a greedy soup keeps one of them, and says so. Runs with --adapt.strategy lp_ft begin with the same head."""
SEARCH = """\
Look for the best settings of a recipe: trials with settings of their own, compared on dev, the best then on test.

    graft search recipes/text_classify.py --vary train.lr=1e-5..1e-3 --vary train.epochs=1..5
    graft search recipes/text_classify.py --vary adapt.strategy=full,lora,last --trials 30 --data.path reviews.csv

--vary takes low..high for numbers (by their logarithm, where high is 10 times low or more), or values with commas
between them. All other settings, --section.field value, are those of every trial. Optuna draws settings by what earlier
trials scored, and a trial whose dev score falls behind is stopped. Each is a run in OUT/trial-000 ...; only the best
keeps its weights. Stopped, the same command goes on; --trials and --time may then be others. Once per trial a process
starts, so on several GPUs each trial has one."""
COMPARE = """\
Say whether a run is better than another on the same test rows, or whether that cannot be told, as Markdown.

    graft compare runs/old runs/new
    graft compare runs/old runs/new runs/newer --fail-if-worse-than 0.01
    graft compare old-0,old-1,old-2 new-0,new-1,new-2

The first is the reference. Runs with commas between them are the seeds of one recipe: means over seeds are compared.
Rows are matched by id, content and label; rows that differ are an error. The score is the reference's headline score.

The exit code is 0, or 2 after an error. With --fail-if-worse-than X it is 1 where a run is shown to be worse than the
reference (p at most 0.05) and the one-sided 95% bound of the difference says by more than X. So a loss that the rows
cannot show passes; the text then says how large it may be."""

BAKEOFF = """\
Say which way of adapting is best here, for that much time: the arms compete, and the better half goes on each round.

    graft bakeoff recipes/text_classify.py --budget 10m --arms head,lp_ft,last,lora,full --data.path reviews.csv
    graft bakeoff recipes/text_classify.py --budget 1h --arms head,lora:adapt.rank=16:train.lr=3e-4,full

An arm is a strategy of the recipe (--adapt.strategy), with settings of its own after colons, in which a list has commas
(lora:adapt.targets=query,value); all other settings are for every arm. Each run has a process of its own, and ends at
dev; the finalists, two at most, run with several seeds. Test is asked of the recommended arm alone, at the end. The
same command with the same --out goes on where it was stopped; where data, recipe or a local checkpoint changed since,
it begins anew."""


@dataclass(frozen=True)
class DataPath:
    """Where do the rows lie?"""

    path: str | None = None
    """the data of the run, where they are not where it found them, or where it kept no rows"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 when done, or its own exit code; a user's mistake is one line and 2, an interrupt 130."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in COMMANDS:
            run, _ = COMMANDS[words[0]]
            return run(words[1:]) or 0
        _parse_command(words[:1])
    except UserError as error:
        _say(f"error: {error}", everywhere=error.everywhere)
        return 2
    except Stopped as stopped:
        _say(str(stopped))
        return stopped.code
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python writes what it still holds when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _say(line: str, *, everywhere: bool = False) -> None:
    """What ends the command: once, of all the processes that torchrun started, or in each that it may show in."""
    from graftkit.config import is_first_process

    if everywhere or is_first_process():
        print(line, file=sys.stderr)


def _parse_command(words: Sequence[str]) -> None:
    """--help and --version; all else is a mistake."""
    parser = Parser(prog="graft", description="Use what the recipes of graftkit trained.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"graft {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    parser.parse_args(words)


def predict(words: Sequence[str]) -> None:
    """`graft predict RUN_OR_MODEL FILE ...`."""
    parser = _parser("predict", PREDICT)
    add = parser.add_argument
    add("model", metavar="RUN_OR_MODEL", help="folder of a run or of a model, or a Hub id")
    files = "csv, tsv, jsonl, parquet, txt (one row a line) or conll; - is standard input; or pictures"
    add("file", metavar="FILE", help=files)
    add("--format", choices=FORMATS, help="of FILE, by default as its name ends; of standard input, txt")
    for role, what in COLUMNS.items():
        add(f"--{role}", metavar="COLUMN", help=f"column of the {what}")
    add("--output", metavar="FILE", help="csv or jsonl file to write, by default jsonl to standard output")
    arguments = parser.parse_args(words)
    from graftkit.predict import predict as predict_file

    predict_file(**vars(arguments))


def evaluate(words: Sequence[str]) -> None:
    """`graft evaluate MODEL --data.path ...`."""
    from graftkit.appraise import Config, appraise
    from graftkit.config import parse

    named = list(takewhile(lambda word: not word.startswith("-"), words))
    command = "graft evaluate MODEL"
    config = parse(Config, words[len(named) :], description=EVALUATE, command=command)
    names = {*named, config.backbone.name} - {None}
    if len(names) != 1:
        raise UserError(f"say which one model to score: {command} --data.path ... (see graft evaluate --help)")
    appraise(replace(config, backbone=replace(config.backbone, name=names.pop())))


def push(words: Sequence[str]) -> None:
    """`graft push RUN ID [--hub.private ...]`."""
    from graftkit.config import parse
    from graftkit.hub import push as push_run
    from graftkit.hub.config import HubConfig

    @dataclass(frozen=True)
    class Config:
        hub: HubConfig = field(default_factory=HubConfig)
        data: DataPath = field(default_factory=DataPath)

    named = list(takewhile(lambda word: not word.startswith("-"), words))
    command = "graft push RUN ID"
    config = parse(Config, words[len(named) :], description=PUSH, command=command)
    if len(named) != 2 or config.hub.push_to not in (None, named[1]):
        raise UserError(f"say what to push, and where to: {command} (see graft push --help)")
    push_run(Path(named[0]), replace(config.hub, push_to=named[1]), config.data.path)


def pull(words: Sequence[str]) -> None:
    """`graft pull ID`."""
    from graftkit.hub.pull import pull as pull_run

    parser = _parser("pull", PULL)
    parser.add_argument("id", metavar="ID", help="repository on the Hub, such as me/my-model")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    parser.add_argument("--out", metavar="FOLDER", help="folder to make, by default runs/ and the repository's name")
    arguments = parser.parse_args(words)
    out = Path(arguments.out or Path("runs", arguments.id.rpartition("/")[2]))
    commit = pull_run(arguments.id, arguments.revision, out, lambda line: print(line, file=sys.stderr))
    print(f"{arguments.id} at {commit[:8]} is in {out}")


def report(words: Sequence[str]) -> None:
    """`graft report RUN`."""
    from graftkit.report import metrics_text, write_report

    parser = _parser("report", REPORT)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--explain", action="store_true", help="say what moved the model on some rows of test")
    parser.add_argument("--audit", action="store_true", help="look for labels that are probably wrong; takes minutes")
    parser.add_argument("--data.path", dest="path", metavar="DATA", help="the data, where the run would not find them")
    arguments = parser.parse_args(words)
    folder = Path(arguments.run)
    if arguments.path and not (arguments.explain or arguments.audit):
        raise UserError("--data.path does nothing without --explain or --audit; leave it out")
    try:
        if arguments.explain:
            _explain(folder, arguments.path)
        if arguments.audit:
            _audit(folder, arguments.path)
        metrics = write_report(folder)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror})") from error
    print(f"{metrics_text(metrics)}\n\nreport: {folder / 'report.md'}")


def _audit(folder: Path, data_path: str | None) -> None:
    """Look at the labels of a run's data, and keep what is found in the run's folder."""
    from graftkit.audit import audit_run

    print(audit_run(folder, data_path))


def _explain(folder: Path, data_path: str | None) -> None:
    """Let the model of a run explain some of its answers, and keep that in the run's folder."""
    from graftkit.explain import check_explainable, choose, explain_run
    from graftkit.hub.rows import content, rows_of_test
    from graftkit.report.reading import read_folder, read_run

    check_explainable(folder, run := read_run(folder))
    reading = read_folder(folder, ("test",))
    chosen = {reading.records["test"][place]["id"] for place in choose(reading.records["test"])}
    rows = rows_of_test(folder, run, data_path)
    explain_run(reading, {row["id"]: content(run, row) for row in rows if row["id"] in chosen})


def calibrate(words: Sequence[str]) -> None:
    """`graft calibrate RUN`."""
    parser = _parser("calibrate", CALIBRATE)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the new run, by default RUN-calibrated")
    arguments = parser.parse_args(words)
    from graftkit.recalibrate import recalibrate
    from graftkit.report import metrics_text

    folder = Path(arguments.run)
    out = Path(arguments.out or folder.with_name(f"{folder.resolve().name}-calibrated"))
    metrics = recalibrate(folder, out)
    print(f"{metrics_text(metrics)}\n\nreport: {out / 'report.html'}")


def soup(words: Sequence[str]) -> None:
    """`graft soup RUN [RUN ...]`."""
    parser = _parser("soup", SOUP)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, or of a run of several seeds")
    parser.add_argument("--kind", choices=("greedy", "uniform"), default="greedy", help="of a choice on dev, or of all")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the new run, by default the first RUN-soup")
    parser.add_argument("--data.path", dest="path", metavar="DATA", help="the data, where the run would not find them")
    arguments = parser.parse_args(words)
    from graftkit.blend import blend, find_runs
    from graftkit.hub.rows import content, rows_of
    from graftkit.report import metrics_text
    from graftkit.report.reading import SPLITS

    named = Path(arguments.runs[0])
    out = Path(arguments.out or named.with_name(f"{named.resolve().name}-soup"))
    readings = find_runs(arguments.runs)
    first = readings[0]
    rows = rows_of(first.folder, first.run, SPLITS, arguments.path)
    for row in (row for some in rows.values() for row in some):
        content(first.run, row)
    metrics = blend(readings, rows, arguments.kind, out, shlex.join(["graft", "soup", *words]))
    print(f"{metrics_text(metrics)}\n\nreport: {out / 'report.html'}")


def search(words: Sequence[str]) -> None:
    """`graft search RECIPE --vary section.field=low..high ... [--section.field value ...]`."""
    parser = _parser("search", SEARCH)
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="file of a recipe: recipes/text_classify.py")
    parser.add_argument("--vary", metavar="NAME=VALUES", action="append", required=True, help="once for each setting")
    parser.add_argument("--trials", metavar="N", type=_count, default=20, help="at most so many; by default 20")
    parser.add_argument("--time", metavar="TIME", help="begin no trial after so long, such as 90s, 30m or 1h30m")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of what is drawn; by default 0")
    parser.add_argument("--out", metavar="FOLDER", help="folder of all trials, by default runs/search-RECIPE")
    own, flags = _part(words)
    arguments = parser.parse_args(own)
    from graftkit.bakeoff.arms import parse_budget
    from graftkit.search import search as search_settings

    search_settings(
        arguments.recipe,
        arguments.vary,
        flags,
        trials=arguments.trials,
        seconds=None if arguments.time is None else parse_budget(arguments.time, "--time"),
        seed=arguments.seed,
        out=Path(arguments.out or f"runs/search-{arguments.recipe.stem}"),
    )


def _part(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are the command's own, and those that are settings of a recipe: --config, and --section.field."""
    parts: tuple[list[str], list[str]] = ([], [])
    ours = True
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            ours = not (name == "--config" or "." in name)
        parts[not ours].append(word)
    return parts


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 1 up")
    return int(word)


def compare(words: Sequence[str]) -> int:
    """`graft compare RUN_A RUN_B ...`; returns the exit code."""
    from graftkit.compare import compare as compare_runs

    parser = _parser("compare", COMPARE)
    parser.add_argument("names", metavar="RUN", nargs="+", help="folder of a run, or several with commas between them")
    parser.add_argument(
        "--fail-if-worse-than",
        dest="worse_than",
        metavar="X",
        type=_loss,
        help="exit with 1 where that is shown; 0 or more",
    )
    parser.add_argument("--output", metavar="FILE", help="Markdown file to write besides")
    return compare_runs(**vars(parser.parse_args(words)))


def bakeoff(words: Sequence[str]) -> None:
    """`graft bakeoff RECIPE --budget TIME --arms ARMS [--section.field value ...]`."""
    parser = _parser("bakeoff", BAKEOFF)
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe, such as recipes/text_classify.py")
    parser.add_argument("--budget", metavar="TIME", required=True, help="for all of it, such as 90s, 10m or 1h")
    parser.add_argument("--arms", metavar="ARMS", required=True, help="with commas between them")
    parser.add_argument("--seeds", metavar="COUNT", type=int, default=3, help="of the finalists, by default 3")
    parser.add_argument("--out", metavar="FOLDER", help="folder of all runs, by default runs/bakeoff-<recipe>-<time>")
    own, flags = _part(words)
    arguments = parser.parse_args(own)
    from graftkit.bakeoff import bakeoff as compete

    compete(**vars(arguments), flags=flags)


def _loss(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number from 0 up to 1")
    return value


def _parser(command: str, description: str) -> Parser:
    how = argparse.RawDescriptionHelpFormatter
    return Parser(prog=f"graft {command}", description=description, formatter_class=how, allow_abbrev=False)


COMMANDS = {
    "predict": (predict, "answer for the rows of a file or a pipe, or for pictures"),
    "evaluate": (evaluate, "score a model on rows of your own"),
    "push": (push, "check a run's model, and share it on the Hub"),
    "pull": (pull, "bring a pushed run back"),
    "report": (report, "make a run's report again from its tables"),
    "calibrate": (calibrate, "make a run's probabilities ones that can be believed"),
    "soup": (soup, "average the weights of several runs into one model"),
    "search": (search, "look for the best settings of a recipe"),
    "compare": (compare, "say whether a run is better than another, or cannot be told to be"),
    "bakeoff": (bakeoff, "say which way of adapting is best here, for that much time"),
}
"""What each command runs, with the words after it, and what it is for."""
