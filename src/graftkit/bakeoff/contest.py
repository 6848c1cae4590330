"""Who wins, and what does test say of it?"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml

from graftkit import __version__
from graftkit.bakeoff import sources
from graftkit.bakeoff.arms import load_recipe, parse_arms, parse_budget
from graftkit.bakeoff.halving import Halving, Standing
from graftkit.bakeoff.page import columns, compare, markdown, recommend, rows_of, text, wrapped
from graftkit.bakeoff.runs import OUTCOME, Runner
from graftkit.config import differences, parse
from graftkit.errors import Stopped, UserError
from graftkit.report.markdown import duration, plural, title, with_interval
from graftkit.run import write_aside

KEPT = "bakeoff.yaml"
BEYOND = 1.02  # times the budget at which test is given up


def bakeoff(recipe: str, budget: str, arms: str, seeds: int, out: str | None, flags: Sequence[str]) -> dict[str, Any]:
    """Let the arms of a recipe compete within a budget; prints and saves the table, and returns it as plain JSON.

    Raises UserError, before anything is run, for settings that the recipe does not take.
    """
    path, seconds = Path(recipe), parse_budget(budget)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: the finalists run with at least one")
    module = load_recipe(path)
    competing = parse_arms(arms, flags, module)
    folder = Path(out or f"runs/bakeoff-{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    paths = sources.named(path, flags, [parse(module.Config, arm.words) for arm in competing])
    settings = {"recipe": recipe, "arms": arms, "flags": list(flags), "seeds": seeds, "graftkit": __version__}
    claim(folder, settings, sources.stamps(paths, folder))
    print(f"{plural(len(competing), 'arm')} in {folder}, within {duration(seconds)}", flush=True)
    runner = Runner(path, folder, lambda line: print(line, flush=True))
    with _told_to_stop(folder):
        halving = Halving(competing, seeds, seconds, runner, time.monotonic)
        winner = halving.go()
        if winner is None:
            print(f"\n{text(rows_of(halving), len(halving.rounds), columns())}", file=sys.stderr)
            raise UserError(f"no arm could be scored within {budget}; what each printed is in {folder}")
        return _tell(halving, winner, runner, folder, budget)


def claim(folder: Path, settings: dict[str, Any], read: dict[str, str]) -> None:
    """Make the folder, or go on in it. UserError where it holds something else, or a bakeoff with other settings.

    The budget may be another: a larger one goes on where a smaller one ended. `read` are stamps of what runs read;
    where one is another than it was, no run that was made before is believed.
    """
    kept = folder / KEPT
    whole = yaml.safe_dump(settings | {"read": read}, sort_keys=False, allow_unicode=True)
    if kept.exists():
        before = yaml.safe_load(kept.read_text(encoding="utf-8"))
        known = before.pop("read", {})
        changed = differences(before, settings)
        if changed:
            raise UserError(f"--out {folder} holds a bakeoff with other settings: {'; '.join(changed)}; name another")
        if stale := sources.changed(known, read):
            print(f"{', '.join(stale)} changed since; what was made before is made anew", flush=True)
            for path in folder.glob(f"*/{OUTCOME}"):
                path.unlink()
            write_aside(kept, whole)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} is not empty; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from error
    write_aside(kept, whole)


def check_alike(standings: Sequence[Standing], folder: Path) -> None:
    """Raise UserError where data, or a checkpoint of the Hub, changed between the runs."""
    seen: dict[str, Any] = {}
    for made_of in (outcome.facts["made_of"] for each in standings for _, outcome in each.runs):
        for what, of in {"the rows": made_of["rows"], **made_of["weights"]}.items():
            if seen.setdefault(what, of) != of:
                raise UserError(
                    f"{folder}: the runs did not read the same: {what} changed between them; remove it and begin anew"
                )


@contextmanager
def _told_to_stop(folder: Path) -> Iterator[None]:
    """Turn an interrupt, or SIGTERM, into a line that says how to go on; the run under way is stopped with it."""

    def leave(number: int, frame: object) -> NoReturn:
        name = signal.Signals(number).name
        raise Stopped(
            f"stopped by {name}; the runs that ended are kept: give the same command with --out {folder} to go on",
            128 + number,
        )

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(halving: Halving, winner: Standing, runner: Runner, folder: Path, budget: str) -> dict[str, Any]:
    """Compare, recommend, ask test of the winner, and print and save all that."""
    check_alike(halving.standings, folder)
    rows, facts = rows_of(halving), winner.runs[0][1].facts
    found = compare(rows, folder, facts["task"])
    lower = bool(facts["headline"].get("lower_is_better"))
    said = recommend(rows, found, lower)
    trial, _ = max(winner.runs, key=lambda run: run[1].rank)
    print(f"{trial.name}: goes on to test", flush=True)
    metrics, why = runner.go_on(trial, BEYOND * halving.budget - halving.elapsed())
    place = folder / trial.name / "run"
    if metrics is None:
        command = shlex.join(["python", str(runner.recipe), *runner.words_to_end(trial)])
        last = f"Test was not asked ({why}); to ask it: {command}"
    else:
        headline = metrics["test"]["headline"]
        last = (
            f"On test, of which no choice was made, {winner.arm.name} (seed {trial.seed}) reaches a "
            f"{title(headline['name'])} of {with_interval(headline)} on {plural(metrics['test']['rows'], 'row')}: "
            f"{place / 'report.html'}"
        )
    took = halving.elapsed()
    hardware = facts["hardware"]
    made = {
        "Time": f"{duration(took)} of {budget}",
        "Command": shlex.join(["graft", *sys.argv[1:]]),
        "Hardware": f"{hardware['cpu']}, {plural(hardware['cores'], 'core')}",
    }
    whole = {
        "arms": rows,
        "rounds": halving.rounds,
        "recommended": winner.arm.name,
        "run": str(place),
        "recommendation": said,
        "test": None if metrics is None else metrics["test"]["headline"],
        "differences": {name: {"p": one.p, **vars(one.interval)} for name, one in found.items()},
        "seconds": round(took, 1),
        "budget": halving.budget,
    }
    write_aside(folder / "bakeoff.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    write_aside(folder / "bakeoff.md", markdown(rows, len(halving.rounds), [said, last], made))
    width, end = columns(), f"{duration(took)} of {budget}; saved in {folder}"
    print(f"\n{text(rows, len(halving.rounds), width)}\n\n{wrapped(said, width)}\n{wrapped(last, width)}\n\n{end}")
    return whole
