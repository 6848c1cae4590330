"""How is an arm run?"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from graftkit.bakeoff.halving import Outcome, Trial
from graftkit.report.markdown import duration, in_brackets, shorten, title
from graftkit.report.reading import read_run
from graftkit.run import write_aside

LOOKS = 0.2  # seconds between two looks at a run
SEEN, SEEN_SECONDS = 4, 1.0  # updates, and seconds of them, from which a run's end is told
KEPT = 0.8  # share of the updates that there is time for, from which a run is not made anew
GRACE = 20.0  # seconds in which a run that is asked to stop may save itself
OUTCOME = "outcome.json"  # what came of a run that is done


class Runner:
    """Runs a recipe until dev in a process of its own, so that memory is given back and a crash ends one arm alone."""

    def __init__(self, recipe: Path, folder: Path, say: Callable[[str], None]):
        self.recipe, self.folder, self.say = recipe, folder, say

    def __call__(self, trial: Trial) -> Outcome:
        """Carry a trial out, or take what an earlier bakeoff in this folder made of it."""
        place, of = self.folder / trial.name, f"{trial.arm.name}, round {trial.round}, seed {trial.seed}"
        if (outcome := read_kept(place, trial)) is not None:
            self.say(f"{of}: {_said(outcome)}, as it was made before")
            return outcome
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self.say(f"{of}: starts, with {duration(trial.limit)} to go")
        started = time.monotonic()
        words = [*words_of(trial), "--run.until", "dev", "--run.out", str(place / "run")]
        with open(place / "output.txt", "w", encoding="utf-8") as output:
            command = [sys.executable, str(self.recipe), *words]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            try:
                in_time = _watch(process, place, started, trial)
            finally:
                stop(process)
        outcome = read_outcome(place, time.monotonic() - started, process.returncode, in_time=in_time)
        if outcome.state == "done":
            found = asdict(outcome) | {"kept": {"epochs": trial.epochs, "max_steps": trial.max_steps}}
            write_aside(place / OUTCOME, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        self.say(f"{of}: {_said(outcome)}")
        return outcome

    def go_on(self, trial: Trial, limit: float) -> tuple[dict[str, Any] | None, str]:
        """Let a run go on to test and its report; returns its metrics, or None and why there are none."""
        place = self.folder / trial.name
        if not (place / "run" / "report.html").exists():
            command = [sys.executable, str(self.recipe), *self.words_to_end(trial)]
            with open(place / "test.txt", "w", encoding="utf-8") as output:
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
                try:
                    process.wait(timeout=max(0.0, limit))
                except subprocess.TimeoutExpired:
                    return None, "the time was up"
                finally:
                    stop(process)
            if process.returncode != 0:
                return None, _last_line(place / "test.txt")
        return json.loads((place / "run" / "metrics.json").read_text(encoding="utf-8")), ""

    def words_to_end(self, trial: Trial) -> list[str]:
        """The settings with which a run goes on to test."""
        return [*words_of(trial), "--run.out", str(self.folder / trial.name / "run"), "--run.resume"]


def read_kept(place: Path, trial: Trial) -> Outcome | None:
    """What an earlier bakeoff made of a trial; None where there is nothing, or where it was much shorter."""
    if not (place / OUTCOME).exists():
        return None
    found = json.loads((place / OUTCOME).read_text(encoding="utf-8"))
    kept = replace(trial, **found["kept"])
    if kept != trial and (kept.max_steps or math.inf) < KEPT * (trial.max_steps or math.inf):
        return None
    return Outcome(**found | {"kept": kept})


def words_of(trial: Trial) -> list[str]:
    """The settings of a run, but for where and how far."""
    words = [*trial.arm.words]
    words += [] if trial.epochs is None else ["--train.epochs", str(trial.epochs)]
    words += [] if trial.max_steps is None else ["--train.max_steps", str(trial.max_steps)]
    return [*words, "--run.seed", str(trial.seed)]


def stop(process: subprocess.Popen) -> None:
    """Ask a run to stop, unless it ended, and wait; one that does not is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _watch(process: subprocess.Popen, place: Path, started: float, trial: Trial) -> bool:
    """Wait for a run; False where its time is up, or where it is seen before that it would be."""
    while True:
        try:
            process.wait(timeout=LOOKS)
            return True
        except subprocess.TimeoutExpired:
            if is_late(time.monotonic() - started, read_pace(place), trial):
                return False


def is_late(now: float, pace: Mapping[str, float] | None, trial: Trial) -> bool:
    """Whether a run of so many seconds will not end in time.

    One that has not begun to train, or is done with that, may take all that can be spared: to stop it gains nothing.
    One that takes long to begin may train for as long, since to begin once more would cost as much.
    """
    if pace is None or pace["to_go"] == 0:
        return now > trial.most
    began = now - pace["trained"]
    return now + pace["to_go"] > max(trial.limit, min(trial.most, 2 * began))


def read_pace(place: Path) -> dict[str, float] | None:
    """How fast a run is that is under way: seconds per update, seconds to go, and the number of updates of an epoch.

    None until that can be told.
    """
    plan = json.loads(_read(place / "run" / "run.json") or "{}").get("plan")  # train keeps it before its first update
    lines = [
        json.loads(line)
        for line in _read(place / "run" / "timing.jsonl").splitlines(keepends=True)
        if line[-1:] == "\n"
    ]
    lines = [line for line in lines if line.get("update")]
    if plan is None or not lines:
        return None
    first, last = lines[0], lines[-1]
    updates, seconds = last["update"] - first["update"], last["seconds"] - first["seconds"]
    if updates < SEEN or seconds < SEEN_SECONDS:
        return None
    planned, per_update = plan["updates"], seconds / updates
    return {
        "to_go": (planned - last["update"]) * per_update,
        "per_update": per_update,
        "per_epoch": plan["updates_per_epoch"],
        "updates": last["update"],
        "planned": planned,
        "trained": seconds,
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not there yet
        return ""


def _last_line(path: Path) -> str:
    """What a run said last, which is why it failed."""
    lines = [line.strip() for line in _read(path).splitlines() if line.strip()]
    return shorten((lines or ["it said nothing"])[-1].removeprefix("error: "), 300)


def read_outcome(place: Path, seconds: float, code: int, *, in_time: bool) -> Outcome:
    """What came of a run that has ended with this exit code, after so many seconds."""
    if in_time and code != 0:
        return Outcome("failed", seconds, _last_line(place / "output.txt"))
    if not in_time and code != 0:
        pace = read_pace(place)
        if pace is None:
            return Outcome("stopped", seconds, f"its time was up after {duration(seconds)}, before it could be scored")
        why = f"its {pace['planned']} updates at {pace['per_update']:.2g} s did not fit in its share of the budget"
        overhead = 1.3 * (seconds - pace["trained"])  # the model is yet to be saved, and dev asked
        return Outcome("stopped", seconds, why, None, pace["updates"], pace["per_epoch"], pace["per_update"], overhead)
    return _read_done(place, seconds)


def _read_done(place: Path, seconds: float) -> Outcome:
    run = read_run(place / "run")
    headline, training, phases = run["dev"]["headline"], run.get("training") or {}, run["seconds"]
    trained, updates = phases["train"], training.get("updates", 0)
    splits, backbone = run["data"]["splits"], run["backbone"]
    rows = {split: facts["rows"] for split, facts in splits.items()}
    asked = phases.get("evaluate", 0.0) * rows["test"] / rows["dev"]
    weights = [path.stat().st_size for path in (place / "run" / "model").glob("*.safetensors")]
    return Outcome(
        "done",
        seconds,
        rank=-headline["value"] if headline.get("lower_is_better") else headline["value"],
        updates=updates,
        per_epoch=(run.get("plan") or {}).get("updates_per_epoch", 0),  # of a head that is solved there is no plan
        per_update=trained / updates if updates else None,
        overhead=seconds - trained,
        ending=seconds - trained + asked,
        facts={
            "headline": headline,
            "rows": run["dev"]["rows"],
            "task": run["task"],
            "parameters": run["adapt"]["trained_parameters"],
            "bytes": sum(weights),
            "updates": updates,
            "any_seed": not run.get("solver", {}).get("by_chance", True) and not training,
            "training": trained,
            "made_of": {
                "rows": {split: facts["sha256"] for split, facts in splits.items()},
                "weights": {f"{backbone['name']} {backbone.get('revision') or ''}".strip(): backbone.get("commit")},
            },
            "hardware": run["hardware"],
        },
    )


def _said(outcome: Outcome) -> str:
    """An outcome in a few words."""
    if outcome.state != "done":
        return f"{outcome.state} after {duration(outcome.seconds)}: {outcome.why}"
    headline = outcome.facts["headline"]
    return f"dev {title(headline['name'])} {in_brackets(headline)} in {duration(outcome.seconds)}"
