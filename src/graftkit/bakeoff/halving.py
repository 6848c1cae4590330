"""Who goes on, and for how long?

Successive halving (Jamieson and Talwalkar 2016; Li et al. 2018) by time: every round has the same share of the budget,
half as many arms and about twice the training. But an arm that begins slowly is not out while there is time for its
whole schedule: where a round leaves enough of it for more arms than half, the best of them run whole at once. Nothing
here starts a process or reads a real clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, Literal

from graftkit.bakeoff.arms import Arm

FINALISTS = 2
FEWEST = 8  # updates below which a run would say nothing
MARGIN = 1.2  # times what an earlier run took to begin and end
CLOSE = 0.92  # share of the time that is given to a run which its estimate may fill
RESERVED = 0.06  # share of the budget kept for test, until it is known what that takes
MOST_RESERVED = 0.3


@dataclass(frozen=True)
class Trial:
    """A run of an arm."""

    arm: Arm
    round: int  # from 1
    seed: int
    epochs: int | None  # None: as the arm's settings say
    max_steps: int | None
    limit: float  # seconds that it is to end in
    most: float  # seconds that it may take where it needs longer to begin

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.arm.slug}-round{self.round}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    state: Literal["done", "failed", "stopped"]
    seconds: float
    why: str = ""
    rank: float | None = None  # of dev, higher is better
    updates: int = 0
    per_epoch: int = 0  # updates; 0 where it is not known
    per_update: float | None = None  # seconds
    overhead: float = 0.0  # seconds beside training
    ending: float = 0.0  # seconds that going on to test would take
    kept: Trial | None = None  # what was run, where that was in an earlier bakeoff in this folder
    facts: dict[str, Any] = field(default_factory=dict)  # for the table


@dataclass
class Standing:
    """How far an arm has come."""

    arm: Arm
    runs: list[tuple[Trial, Outcome]] = field(default_factory=list)  # that count: one, or one for each seed
    round: int = 0  # the last that it was scored in
    state: str = "waits"
    why: str = ""
    speed: Outcome | None = None  # the newest that tells it

    @property
    def rank(self) -> float:
        """The mean over its seeds, higher is better."""
        return mean(outcome.rank for _, outcome in self.runs)

    @property
    def whole(self) -> bool:
        """Whether its score is that of its whole schedule, and not of a part that a round had time for."""
        trial = self.runs[0][0]
        return self.arm.solved or (trial.epochs, trial.max_steps) == (None, self.arm.max_steps)


class Halving:
    """The rounds of a bakeoff; `run` carries a trial out and never takes much longer than its limit."""

    def __init__(
        self,
        arms: Sequence[Arm],
        seeds: int,
        budget: float,
        run: Callable[[Trial], Outcome],
        clock: Callable[[], float],
    ):
        self.standings = [Standing(arm) for arm in arms]
        self.seeds, self.budget, self.run, self.clock = seeds, budget, run, clock
        self.started, self.before = clock(), 0.0  # seconds of runs that were kept from before
        self.rounds = sizes(len(arms))
        self.overheads: list[float] = []  # seconds beside training, of runs that tell
        self.vain = 0.0  # the longest that a run took which did not begin to train

    def elapsed(self) -> float:
        """Seconds of the budget that are spent."""
        return self.clock() - self.started + self.before

    def left(self) -> float:
        """Seconds that may still be spent on arms: what test will take is kept."""
        known = [outcome.ending for each in self.standings for _, outcome in each.runs]
        kept = max(RESERVED * self.budget, 1.25 * max(known, default=0.0))
        return self.budget - self.elapsed() - min(kept, MOST_RESERVED * self.budget)

    def need(self) -> float:
        """Seconds that a run of any arm takes at least, as far as that is known."""
        return MARGIN * min(self.overheads, default=self.vain)

    def go(self) -> Standing | None:
        """Run all rounds; returns the winner, None where no arm could be scored."""
        standing = self.standings
        for number, _ in enumerate(self.rounds[:-1], start=1):
            self._halve(number, standing)
            scored = sorted((each for each in standing if each.runs), key=lambda each: -each.rank)
            whole = self._whole_in_time(scored)
            stays = max(whole, self.rounds[number])
            standing = scored[:stays]
            for each in scored[stays:]:
                each.state = f"out in round {number}"
            if whole == stays:
                self.rounds = [*self.rounds[:number], stays]
                break
        self._decide(len(self.rounds), standing)
        finalists = sorted((each for each in standing if each.runs), key=lambda each: -each.rank)
        for each in finalists:
            each.state = "finalist"
        if finalists:
            finalists[0].state = "won"
        return finalists[0] if finalists else None

    def _whole_in_time(self, scored: Sequence[Standing]) -> int:
        """How many arms, from the best on, can run their whole schedules one after the other in the time left."""
        needs = [self._to_run_whole(each) for each in scored]
        return max(count for count in range(len(needs) + 1) if sum(needs[:count]) <= CLOSE * self.left())

    def _to_run_whole(self, each: Standing) -> float:
        """Seconds that an arm's whole schedule takes, as its runs tell; none where it ran whole, inf if not known."""
        if each.runs and each.whole:
            return 0.0
        seen = each.speed
        if seen is None or seen.per_update is None:
            return math.inf
        return seen.overhead + seen.per_update * updates_of(seen, each.arm.epochs, each.arm.max_steps)

    def _halve(self, number: int, standing: Sequence[Standing]) -> None:
        """A round before the last: each arm runs once.

        What is solved comes first, since it cannot be made shorter; the others share what that leaves.
        """
        for each in (each for each in standing if each.arm.solved):
            half = self.elapsed() + self.left() / 2
            self._advance(each, number, 1.0, half, half)
        end = self.elapsed() + self.left() / (len(self.rounds) - number + 1)
        trained = [each for each in standing if not each.arm.solved]
        for place, each in enumerate(trained):
            now, to_come = self.elapsed(), len(trained) - place
            most = self.left() / to_come
            if most <= self.need():  # rather some arms than none
                most = self.left()
            self._advance(each, number, 0.5 ** (len(self.rounds) - number), now + (end - now) / to_come, now + most)

    def _decide(self, number: int, finalists: Sequence[Standing]) -> None:
        """The last round: whole runs, or as long as time allows; then further seeds of the best two, while they fit.

        The quickest first: what it leaves of its share is there for the others.
        """
        for place, each in enumerate(sorted(finalists, key=self._to_run_whole)):
            share = self.left() / (len(finalists) - place)
            end = self.elapsed() + (share if share > self.need() else self.left())
            self._advance(each, number, 1.0, end, end)
        best = sorted((each for each in finalists if each.runs), key=lambda each: -each.rank)[:FINALISTS]
        scored = [each for each in best if not each.runs[0][1].facts.get("any_seed")]
        for seed in range(1, self.seeds):
            expected = sum(each.runs[0][1].seconds for each in scored)
            if not scored or expected > CLOSE * self.left():
                return
            done = []
            for each in scored:
                left = self.left()
                trial = replace(each.runs[0][0], round=number, seed=seed, limit=left, most=left)
                trial, outcome = self._run(each, trial)
                if outcome.state != "done":  # arms with other seeds than these could not be compared
                    return
                done.append((trial, outcome))
            for each, run in zip(scored, done, strict=True):
                each.runs.append(run)

    def _advance(self, each: Standing, number: int, share: float, end: float, last: float) -> None:
        """Run an arm for this share of its own schedule, or as much of it as ends in time: by `end`, or by `last` where
        it takes long to begin. What it did before stands where that would be no more.
        """
        for _ in range(2):  # once more where the first run shows that it cannot end in time
            now = self.elapsed()
            trial = self._plan(each, number, share, end - now, last - now)
            if trial is None:
                break
            trial, outcome = self._run(each, trial)
            if outcome.state == "done":
                each.runs, each.round = [(trial, outcome)], number
                return
            if outcome.state == "failed":
                break
        if each.runs:
            each.round = number
        elif not each.why:
            each.state, each.why = "no time", "its share of the budget is too short for a run that says anything"

    def _run(self, each: Standing, trial: Trial) -> tuple[Trial, Outcome]:
        """Carry a trial out, and remember what it says of the arm; returns what was run, too."""
        outcome = self.run(trial)
        if outcome.kept is not None:
            trial, self.before = outcome.kept, self.before + outcome.seconds
        if outcome.per_update is not None:
            each.speed = outcome
        if outcome.overhead:
            self.overheads.append(outcome.overhead)
        elif outcome.state == "stopped" and not each.arm.solved:  # of which it is not seen whether it began
            self.vain = max(self.vain, outcome.seconds)
        if outcome.state == "done":
            each.state, each.why = "scored", ""
        else:
            each.why = f"round {trial.round}: {outcome.why}"
            if not each.runs:
                each.state = "failed" if outcome.state == "failed" else "no time"
        return trial, outcome

    def _plan(self, each: Standing, number: int, share: float, limit: float, most: float) -> Trial | None:
        """The next run of an arm; None where there is no time, or it would be no longer than the last one was."""
        arm, seen = each.arm, each.speed
        overhead = seen.overhead if seen else self.need()
        limit = max(limit, min(most, 2 * overhead or most / 2))
        trial = Trial(arm, number, 0, epochs_of(arm, share), steps_of(arm, share), limit, most)
        if each.runs:
            last = each.runs[0][0]
            if arm.solved or (trial.epochs, trial.max_steps) == (last.epochs, last.max_steps):
                return None
        if limit <= overhead:
            return None
        if seen is None or seen.per_update is None:
            return trial
        steps = int((CLOSE * limit - seen.overhead) / max(seen.per_update, 1e-6))
        epochs = trial.epochs if trial.epochs is not None else arm.epochs
        if steps >= updates_of(seen, epochs, trial.max_steps):
            return trial
        before = each.runs[0][1].updates if each.runs else 0
        return replace(trial, max_steps=steps) if steps >= max(FEWEST, 1.2 * before) else None


def sizes(arms: int) -> list[int]:
    """How many arms each round has: half of them each time, until there are two."""
    found = [arms]
    while found[-1] > FINALISTS:
        found.append(max(FINALISTS, math.ceil(found[-1] / 2)))
    return found


def updates_of(seen: Outcome, epochs: int | None, max_steps: int | None) -> float:
    """Updates of so many epochs, or of `max_steps` where that is less; inf where nothing tells."""
    whole = epochs * seen.per_epoch if epochs and seen.per_epoch else math.inf
    return min(whole, math.inf if max_steps is None else max_steps)


def epochs_of(arm: Arm, share: float) -> int | None:
    """Epochs of a share of an arm's schedule, whole ones; None to leave them as they are."""
    if arm.solved or share == 1 or arm.epochs == arm.least_epochs:
        return None
    if arm.epochs is None:
        return 1
    few = max(arm.least_epochs, math.ceil(arm.epochs * share))
    return None if few == arm.epochs else few


def steps_of(arm: Arm, share: float) -> int | None:
    """The most updates of a share of an arm's schedule, where its settings have a limit."""
    return None if arm.max_steps is None or arm.solved else math.ceil(arm.max_steps * share)
