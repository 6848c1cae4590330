"""Which settings are best?

Optuna (Akiba et al. 2019, arXiv 1907.10902) draws the settings of each trial by what earlier ones scored on dev (TPE,
Bergstra et al. 2011), and ends a trial whose dev score falls behind. A trial is a run of its own, in a process of its
own. Test is asked of the best alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from graftkit.adapt import solves
from graftkit.bakeoff import sources
from graftkit.bakeoff.arms import load_recipe
from graftkit.bakeoff.runs import stop
from graftkit.config import differences, parse
from graftkit.errors import UserError
from graftkit.report.markdown import duration, escape, fenced, in_brackets, shorten, table, title, with_interval
from graftkit.run import write_aside
from graftkit.search_space import draw_words, names_in, read_space, rounded, settle, values_read

if TYPE_CHECKING:
    from types import ModuleType

    from optuna import Study
    from optuna.samplers import TPESampler
    from optuna.trial import FrozenTrial, Trial

LOOKS = 0.5  # seconds between two looks at a trial
FIRST = 5  # trials that are drawn by chance, and that none is measured against
HOPELESS = 3  # trials that all fail, after which there is no other
WEIGHTS = ("checkpoints", "model", "adapter")  # folders of a run, which the best trial alone keeps

Run = Callable[[Sequence[str], Path, Callable[[], bool]], int]
"""Runs a command, whose output goes into a file, until it ends or the function says to stop it; its exit code."""


def search(
    recipe: Path,
    specs: Sequence[str],
    flags: Sequence[str],
    *,
    trials: int,
    seconds: float | None,
    seed: int,
    out: Path,
    run: Run | None = None,
) -> None:
    """Try `trials` settings of what is varied, or as many as begin in time; then ask test of the best.

    `flags` are settings of all trials. What was tried before in the folder `out` is kept; a trial that was stopped goes
    on. Writes search.md, which says what came out. `run` starts a trial.
    """
    module = load_recipe(recipe)
    space = read_space(specs, flags, module)
    paths = sources.named(recipe, flags, [parse(module.Config, flags)], values_read(space))
    read = sources.stamps(paths, out)
    settings = {"recipe": str(recipe), "vary": list(specs), "settings": list(flags), "seed": seed, "read": read}
    start, begun = run or run_command, time.monotonic()
    try:
        with _alone(out), _terminated_as_interrupted():
            study = _open_study(out, settings)
            while (trial := _next_trial(study, trials, seed, begun, seconds)) is not None:
                words = draw_words(space, trial, flags, module)
                named = {*names_in(flags), *(one.name for one in space)} - {*names_in(words)}
                trial.set_user_attr("not_read", sorted(named))
                _try(study, trial, module, recipe, words, out, start)
                print(f"trial {trial.number + 1} of {trials}: {_told(study.trials[trial.number])}", flush=True)
                _keep_weights(study, out)
                _check_hopeful(study)
            text = _conclude(study, recipe, out, start)
    except KeyboardInterrupt:
        print(f"stopped; what was tried is in {out}, and the same command goes on", file=sys.stderr)
        raise
    print(f"\n{text}\nThis table is in {out / 'search.md'}")


# trials


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make the folder, and hold it; UserError where that cannot be, or another search holds it."""
    _optuna()
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}") from error
    try:
        _lock(held, out)
        yield
    finally:
        os.close(held)


def _lock(folder: int, out: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"--out {out}: another graft search is at work in it; wait for it, or name another") from error


def _open_study(out: Path, settings: dict[str, Any]) -> Study:
    """The study in a folder, a new one where there is none; UserError where that was begun with other settings."""
    optuna = _optuna()
    _claim_kept(out, settings)
    return optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{(out / 'search.db').resolve()}",
        direction="maximize",  # scores of which less is better are told with a minus
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST),
        load_if_exists=True,
    )


def _claim_kept(out: Path, settings: dict[str, Any]) -> None:
    """Begin in the folder, or go on in it; UserError where it holds something else, or what trials read has changed."""
    kept = out / "search.yaml"
    if kept.exists():
        before = _read_settings(kept)
        stale = sources.changed(before.pop("read", settings["read"]), settings["read"])
        changed = differences(before, {name: value for name, value in settings.items() if name != "read"})
        if stale and not changed:
            raise UserError(
                f"--out {out} holds a search of other data: {', '.join(stale)} changed since; name another folder"
            )
        if changed:
            raise UserError(f"--out {out} holds a search with others: {'; '.join(changed)}; name another folder")
    elif any(out.iterdir()):
        raise UserError(f"--out {out} holds something that is no search; name another folder")
    write_aside(kept, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _read_settings(kept: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(kept.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{kept} holds no settings of a search; name another folder with --out")
    return settings


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("graft search needs Optuna; install it: pip install 'graftkit[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _next_trial(study: Study, trials: int, seed: int, begun: float, seconds: float | None) -> Trial | None:
    """The trial that was stopped, or a new one; None where there are enough, or time is up."""
    from optuna.trial import Trial, TrialState

    known = study.get_trials(deepcopy=False)
    open_ones = [trial for trial in known if trial.state == TrialState.RUNNING]
    late = seconds is not None and time.monotonic() - begun >= seconds
    if late or (not open_ones and len(known) >= trials):
        return None
    number = open_ones[0].number if open_ones else len(known)
    # a sampler for each trial: what it draws follows from the seed and earlier trials, also where a search goes on
    study.sampler = _sampler(seed * 100_003 + number)
    return Trial(study, open_ones[0]._trial_id) if open_ones else study.ask()


def _sampler(seed: int) -> TPESampler:
    """TPE, but for numbers that are rounded, so that what is run is what it learns from."""
    from optuna.distributions import FloatDistribution
    from optuna.samplers import TPESampler

    class Rounding(TPESampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            value = super().sample_independent(study, trial, name, distribution)
            floating = isinstance(distribution, FloatDistribution)
            return rounded(value, distribution.low, distribution.high) if floating else value

    return Rounding(seed=seed, n_startup_trials=FIRST)


def _try(
    study: Study, trial: Trial, module: ModuleType, recipe: Path, words: Sequence[str], out: Path, run: Run
) -> None:
    """Run a trial until dev, and tell the study what came of it."""
    from optuna.trial import TrialState

    folder, output, started = out / f"trial-{trial.number:03d}", out / f"trial-{trial.number:03d}.txt", time.monotonic()
    before = trial.user_attrs.get("seconds", 0.0)  # of an earlier part
    trial.set_user_attr("words", list(words))
    pruned, why = False, ""
    try:
        config = settle(module, words)
        computed = config.adapt.strategy == "head" and solves(config.adapt)
        behind = _Behind(trial, folder, 1 if computed else config.train.epochs)
        code = run(_command(recipe, words, folder, "--run.until", "dev"), output, behind)
        pruned = behind()  # also where the run was faster than the looks at it
        why = "" if code == 0 else _last_line(output) or f"exit code {code}"
    except UserError as error:  # settings that do not go together
        why = str(error)
    finally:
        trial.set_user_attr("seconds", round(before + time.monotonic() - started, 1))
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif why:
        trial.set_user_attr("why", why)
        study.tell(trial, state=TrialState.FAIL)
    else:
        headline = json.loads((folder / "run.json").read_text(encoding="utf-8"))["dev"]["headline"]
        trial.set_user_attr("headline", headline)
        study.tell(trial, -headline["value"] if headline.get("lower_is_better") else headline["value"])


class _Behind:
    """Whether a trial's dev score has fallen behind those of others after as many epochs (Vizier's median rule)."""

    def __init__(self, trial: Trial, folder: Path, epochs: int | None):
        self.trial, self.folder, self.epochs, self.seen, self.found = trial, folder, epochs, 0, False
        self.reported = len(
            trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        )  # by an earlier part

    def __call__(self) -> bool:
        """Look at what the trial has logged since the last look."""
        for score in _dev_scores(self.folder)[self.seen :]:
            self.seen += 1
            if self.found or self.seen <= self.reported or self.seen == self.epochs:  # after its last epoch it is done
                continue
            self.trial.report(score, self.seen)
            self.found = self.trial.should_prune()
        return self.found


def _dev_scores(folder: Path) -> list[float]:
    """The headline on dev after each epoch of a run so far, higher is better."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:  # it has just begun
        return []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    sign = -1 if record["lower_is_better"] else 1
    return [sign * event["dev"][record["headline"]] for event in events if "dev" in event]


def _command(recipe: Path, words: Sequence[str], folder: Path, *more: str) -> list[str]:
    resume = ["--run.resume"] if (folder / "config.yaml").exists() else []
    return [sys.executable, str(recipe), *words, "--run.out", str(folder), *resume, *more]


def run_command(command: Sequence[str], output: Path, done: Callable[[], bool]) -> int:
    """Run a command until it ends or `done` says so; then it is asked to stop, and saves itself."""
    with open(output, "a", encoding="utf-8") as file:
        # in a session of its own, since Ctrl-C here is told to it once, by `stop`
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while not done():
                try:
                    return process.wait(timeout=LOOKS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            stop(process)
        return process.returncode


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the search as Ctrl-C does: with its trial saved."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return shorten(lines[-1].removeprefix("error: "), 300) if lines else ""


def _check_hopeful(study: Study) -> None:
    """Raise UserError where all of the first trials failed."""
    from optuna.trial import TrialState

    known = study.get_trials(deepcopy=False)
    if len(known) >= HOPELESS and all(trial.state == TrialState.FAIL for trial in known):
        raise UserError(f"the first {len(known)} trials failed, the last with: {known[-1].user_attrs['why']}")


def _keep_weights(study: Study, out: Path) -> None:
    """Remove the weights of all trials but the best, which is to go on to test."""
    best = _best(study)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial is not best:
            for name in WEIGHTS:
                shutil.rmtree(out / f"trial-{trial.number:03d}" / name, ignore_errors=True)


def _best(study: Study) -> FrozenTrial | None:
    """The trial that scored best on dev, the first of equals."""
    scored = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.value is not None and "headline" in trial.user_attrs
    ]
    return max(scored, key=lambda trial: (trial.value, -trial.number), default=None)


# what came out


def _conclude(study: Study, recipe: Path, out: Path, run: Run) -> str:
    """Let the best trial go on to test, and write search.md; returns its text."""
    best = _best(study)
    if best is None:
        raise UserError(f"no trial has ended, so there is nothing to choose from; see {out}, or allow more time")
    folder, words = out / f"trial-{best.number:03d}", best.user_attrs["words"]
    asked = study.user_attrs.get("asked", [])  # numbers of the trials of which test was asked
    if best.number not in asked:
        study.set_user_attr("asked", asked := [*asked, best.number])
    if not (folder / "report.html").exists():
        print(f"trial {best.number + 1} is the best on dev, and goes on to test", flush=True)
        code = run(_command(recipe, words, folder), out / f"{folder.name}.txt", lambda: False)
        if code != 0:
            raise UserError(f"the best trial did not go on to test: {_last_line(out / f'{folder.name}.txt')}")
    test = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    text = to_markdown(study.get_trials(deepcopy=False), best, asked, test, ["python", str(recipe), *words], folder)
    write_aside(out / "search.md", text)
    return text


def to_markdown(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial,
    asked: Sequence[int],
    test: dict[str, Any],
    command: Sequence[str],
    folder: Path,
) -> str:
    """The trials as a table, the best with its score on test and its command line, and how far to believe it.

    `asked` are the numbers of the trials of which test was asked: one, and another for each later best.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        [
            f"**{trial.number + 1}**" if trial is best else str(trial.number + 1),
            *(escape(_setting(trial, name)) for name in names),
            in_brackets(trial.user_attrs["headline"]) if "headline" in trial.user_attrs else "",
            duration(trial.user_attrs["seconds"]) if "seconds" in trial.user_attrs else "",
            escape(_state(trial)),
        ]
        for trial in trials
    ]
    score = title(best.user_attrs["headline"]["name"])
    header = ("Trial", *map(escape, names), f"{score} on dev", "Time", "What became of it")
    ended = sum("headline" in trial.user_attrs for trial in trials)
    said = (
        f"**Trial {best.number + 1} is the best on dev.** On {test['rows']:,} rows of test{_how_often(asked)}, it has "
        f"{score} {with_interval(test['headline'])}."
    )
    caution = (
        f"It is the best of {ended} that were scored on the same dev rows, and partly so by luck: its score on dev is "
        "better than what to expect of new rows. That is what the score on test is for; where the intervals of other "
        "trials reach its own, these may be as good."
    )
    parts = [
        f"# Which settings are best? {len(trials)} trials",
        said,
        caution,
        table(header, rows, numbers=[len(names) + 1, len(names) + 2]),
        f"Its folder is {escape(str(folder))}. To train it again:",
        fenced(shlex.join(command)),
    ]
    return "\n\n".join(parts) + "\n"


def _how_often(asked: Sequence[int]) -> str:
    if len(asked) == 1:
        return ", asked once"
    *earlier, last = [str(number + 1) for number in asked]
    trials = f"{', '.join(earlier)} and {last}"
    return f", asked {len(asked)} times (of trials {trials}, as the best changed when more trials were asked for)"


def _setting(trial: FrozenTrial, name: str) -> str:
    """What a trial had for a setting, as its command line says it."""
    words = trial.user_attrs.get("words", [])
    return words[len(words) - words[::-1].index(f"--{name}")] if f"--{name}" in words else ""


def _state(trial: FrozenTrial) -> str:
    """What became of a trial, and which settings it had no use for."""
    unread = trial.user_attrs.get("not_read")
    return _ending(trial) + (f"; not read in it, and left out: {', '.join(unread)}" if unread else "")


def _ending(trial: FrozenTrial) -> str:
    from optuna.trial import TrialState

    if trial.state == TrialState.FAIL:
        return f"failed: {trial.user_attrs['why']}"
    return {
        TrialState.COMPLETE: "scored",
        TrialState.PRUNED: f"stopped after epoch {max(trial.intermediate_values, default=0)}: it fell behind",
    }.get(trial.state, "not ended")


def _told(trial: FrozenTrial) -> str:
    """A trial in a line."""
    settings = ", ".join(f"{name} {_setting(trial, name)}" for name in trial.params)
    found = trial.user_attrs.get("headline")
    score = f"dev {title(found['name'])} {in_brackets(found)}" if found else _state(trial)
    return f"{settings}: {score}, {duration(trial.user_attrs['seconds'])}"
