"""How does a recipe do over several seeds, or over folds of its rows?

Each is a run of its own, in a folder within that of all: RUN/seed-0, RUN/fold-1. What they say together follows from
their tables alone: over seeds the report reads the folders, of folds the tables of test are joined into one.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from graftkit.config import differences, is_first_process, to_yaml
from graftkit.data.splits import check_folds
from graftkit.errors import Stopped, UserError
from graftkit.report import metrics_text, write_report
from graftkit.report.config import check_unused
from graftkit.report.metric_modules import measure_named
from graftkit.report.reading import read_run
from graftkit.report.tables import (
    GROUP,
    MEASURE,
    read_baselines,
    read_measures,
    read_predictions,
    read_rows,
    table_hashes,
    write_baselines,
    write_measures,
    write_predictions,
    write_rows,
)
from graftkit.run import Run, check_resume, not_kept, open_run, write_aside
from graftkit.text import describe_lengths

SAME = ("task", "headline", "labels", "backbone", "adapt", "images", "report")
"""What the record of all has from the first run, since it is the same in each."""


def several_asked(config: Any) -> bool:
    """Whether more than one model is to be trained: `--run.seeds`, or `--data.folds` without `--data.fold`."""
    return config.run.seeds is not None or (config.data.folds is not None and config.data.fold is None)


def check_plain(config: Any, what: str) -> None:
    """Raise UserError, before anything is done, for what only runs on rows of one class each can; `what` names others.

    `config`: of a recipe with the sections `report` and `hub`.
    """
    check_unused(config.report, what)
    if config.hub.push_to is not None:
        raise UserError(f"--hub.push_to {config.hub.push_to}: not with {what} yet; push the run's model/ by hand")


def run_several(recipe: str, main: Callable[[Any], Any], config: Any) -> dict[str, Any]:
    """Run a recipe once per seed or fold, and report over them; returns the metrics.

    With `--run.resume`, finished runs are kept, one that was stopped goes on, and the rest are made. A dry run tries
    the first. Raises UserError, before anything is trained, for settings that do not go together.
    """
    check_several(config)
    parts = one_by_one(config)
    if config.run.dry_run or config.adapt.explain:
        return main(next(iter(parts.values())))
    if config.run.resume and config.run.out is not None and is_first_process():
        _prepare_to_resume(Path(config.run.out), config, list(parts))
    run = open_run(recipe, config)
    run.once(lambda: check_kept(run.folder, parts))
    claimed = run.once(lambda: _claim(run))
    for place, (name, part) in enumerate(parts.items(), start=1):
        folder = run.folder / name
        if run.once(lambda folder=folder: is_finished(folder)):
            run.say(f"{name} went to its end before, and is kept")
            continue
        if run.main:
            print(f"\n{name} ({place} of {len(parts)})", flush=True)
        going_on = run.once(lambda folder=folder: (folder / "config.yaml").exists())
        try:
            main(_placed(part, folder, resume=going_on))
        except Stopped as stopped:
            words = str(stopped).replace(f"--run.out {folder}", f"--run.out {run.folder}")
            raise Stopped(words, stopped.code) from stopped
        finally:
            if run.main and claimed is not None:
                _settle(run.folder, claimed, list(parts))
        claimed = None
        run.save_record()  # the time that was spent, should it be stopped before the next is done
        gc.collect()  # what trained holds itself in cycles, and a GPU has no room for two
    return _report(run, list(parts))


def check_several(config: Any) -> None:
    """Raise UserError for seeds or folds that cannot be, or cannot be together."""
    seeds, folds = config.run.seeds, config.data.folds
    flag = "--data.folds" if seeds is None else "--run.seeds"
    if config.run.until == "dev":
        raise UserError(f"--run.until dev with {flag}: what several models say together is of test; leave one out")
    if seeds is not None:
        if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            said = ",".join(map(str, seeds))
            raise UserError(f"--run.seeds {said}: name two seeds or more, each once, from 0 up; for one use --run.seed")
        if config.run.seed:
            raise UserError(f"--run.seed {config.run.seed} does nothing beside --run.seeds; leave one of them out")
        if folds is not None and config.data.fold is None:
            raise UserError(
                "--run.seeds and --data.folds together would be a model for each pair: choose one of them, or one "
                "fold with --data.fold"
            )
    else:
        check_folds(replace(config.data, fold=1))
    if hasattr(config, "hub") and config.hub.push_to is not None:
        count = folds if seeds is None else len(seeds)
        example = f"RUN/{next(iter(one_by_one(config)))}"
        raise UserError(
            f"--hub.push_to with {flag}: there will be {count} models; leave it out, and push one of them with "
            f"graft push {example} {config.hub.push_to}"
        )


def one_by_one(config: Any) -> dict[str, Any]:
    """The settings of each run, by the name of its folder."""
    if config.run.seeds is None:
        return {
            f"fold-{fold}": replace(config, data=replace(config.data, fold=fold))
            for fold in range(1, config.data.folds + 1)
        }
    cut = config.run.seeds[0] if config.data.seed is None else config.data.seed
    return {
        f"seed-{seed}": replace(
            config, run=replace(config.run, seeds=None, seed=seed), data=replace(config.data, seed=cut)
        )
        for seed in config.run.seeds
    }


def is_finished(folder: Path) -> bool:
    """Whether a run went to its end: its page is what is written last."""
    return (folder / "report.html").exists()


def check_kept(folder: Path, parts: Mapping[str, Any]) -> None:
    """Raise UserError where a run that is there already has other settings."""
    if not any(part.run.resume for part in parts.values()):
        return
    for name, part in parts.items():
        if (folder / name / "config.yaml").exists():
            check_resume(_placed(part, folder / name, resume=True))


def _placed(part: Any, folder: Path, *, resume: bool) -> Any:
    return replace(part, run=replace(part.run, out=str(folder), resume=resume, overwrite=False))


def _prepare_to_resume(folder: Path, config: Any, names: Sequence[str]) -> None:
    """Let a folder go on to which seeds were added, or in which folds were trained one by one."""
    path, now = folder / "config.yaml", to_yaml(config, leave_out=not_kept(config))
    if path.exists():
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = differences(saved, yaml.safe_load(now))
        if saved["run"].get("seeds") and changed and all(line.startswith("run.seeds:") for line in changed):
            write_aside(path, now)
    elif any((folder / name / "config.yaml").exists() for name in names):
        write_aside(path, now)


@dataclass(frozen=True)
class Claimed:
    """What was done to make a folder ready, to be undone where no run in it can begin."""

    before: Path | None  # an earlier run, set aside
    folder: bool  # whether the folder was made
    config: bool  # whether config.yaml was


def _claim(run: Run) -> Claimed:
    """Make the folder; an earlier run that shall be overwritten is set aside until the data are found good."""
    before = None
    try:
        if run.settings.overwrite and run.folder.exists():
            place = Path(tempfile.mkdtemp(prefix=f"{run.folder.name}.before-", dir=run.folder.parent))
            before = run.folder.rename(place / run.folder.name)
        made = not run.folder.exists()
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run.out {run.folder} cannot be made: {error.strerror}") from error
    new = not (run.folder / "config.yaml").exists()
    if new:
        write_aside(run.folder / "config.yaml", run.config_yaml)
    return Claimed(before, made, new)


def _settle(folder: Path, claimed: Claimed, names: Sequence[str]) -> None:
    """Once a first run has claimed its folder, drop what was there before; where none could, put that back."""
    if not any((folder / name).exists() for name in names):
        if claimed.config:
            (folder / "config.yaml").unlink(missing_ok=True)
        if claimed.folder:
            folder.rmdir()
        if claimed.before is not None:
            claimed.before.rename(folder)
    if claimed.before is not None:
        shutil.rmtree(claimed.before.parent)


# what they say together


def _report(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """Record what the runs have in common, join the tables of folds, and write the report."""
    with run.phase("report"):
        run.record |= run.once(lambda: _gather(run, names))
    run.save_record()
    metrics = run.once(lambda: write_report(run.folder))
    if run.main:
        print(f"\n{metrics_text(metrics)}\n\nreport: {run.folder / 'report.html'}", flush=True)
    run.end()
    return metrics


def _gather(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """What run.json says of all runs; for folds, their tables are joined."""
    records = {name: read_run(run.folder / name) for name in names}
    check_same(run.folder, records)
    first = records[names[0]]
    facts = {name: first[name] for name in SAME if name in first}
    warnings, notes = (_remarks(records, kind) for kind in ("warnings", "notes"))
    facts |= {
        "warnings": [*run.record["warnings"], *warnings],
        "notes": [*run.record["notes"], *(note for note in notes if not note.startswith(tuple(names)))],
        "seconds": {name: record["seconds"]["total"] for name, record in records.items()} | run.record["seconds"],
    }
    if run.settings.seeds is not None:
        seeds = [{"name": name, "seed": record["seed"]} for name, record in records.items()]
        same = {name: first.get(name) for name in ("data", "lengths")}
        return facts | same | {"seed": run.settings.seeds, "seeds": seeds}
    return facts | _gather_folds(run.folder, records, facts["labels"])


def check_same(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError where runs did not read the same rows: of seeds all splits, of folds those that were cut."""
    prints = {}
    for name, record in records.items():
        fold = record["data"].get("fold")
        prints[name] = [fold["of"]["sha256"]] if fold else [s["sha256"] for s in record["data"]["splits"].values()]
    first = next(iter(prints))
    for name, found in prints.items():
        if found != prints[first] or records[name]["labels"] != records[first]["labels"]:
            raise UserError(
                f"{folder / name} read other rows than {folder / first}: the data changed in between; remove the one "
                "that read the wrong rows, and go on with --run.resume"
            )


def _remarks(records: Mapping[str, Mapping[str, Any]], kind: str) -> list[str]:
    """What the runs warned of or noted: what all of them did once, the rest with the name of the run."""
    said = {name: record.get(kind) or [] for name, record in records.items()}
    common = [line for line in next(iter(said.values())) if all(line in lines for lines in said.values())]
    return common + [f"{name}: {line}" for name, lines in said.items() for line in lines if line not in common]


def _gather_folds(folder: Path, records: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    """Join the folds' tables of test, fold by fold, as those of one run; what its record then says."""
    places = [folder / name for name in records]
    predicted = [read_predictions(place, "test")[1] for place in places]
    write_predictions(folder, "test", list(chain.from_iterable(predicted)), labels)
    write_rows(folder, "test", chain.from_iterable(read_rows(place, "test") for place in places))
    measured = join_measures([read_measures(place, "test") for place in places])
    write_measures(folder, "test", measured)
    simple = [read_baselines(place) for place in places]
    if all(simple):
        ids = list(chain.from_iterable(found[0] for found in simple))
        names = [name for name in simple[0][1] if all(name in found[1] for found in simple)]
        write_baselines(
            folder, ids, {name: list(chain.from_iterable(found[1][name] for found in simple)) for name in names}
        )
    first = next(iter(records.values()))
    facts: dict[str, Any] = {"tables": table_hashes(folder), "folds": _describe_folds(records)}
    if names := (first.get("report") or {}).get("metrics"):
        facts["metrics"] = {"test": measure_named(names, labels, list(chain.from_iterable(predicted)))[0]}
    facts["data"] = {name: first["data"].get(name) for name in ("path", "subset", "columns", "bad_rows", "dropped")}
    facts["data"] |= {
        "sources": {"test": first["data"]["sources"]["train"]},
        "splits": {"test": first["data"]["fold"]["of"]},
        "sizes": first["data"].get("sizes"),
    }
    if first.get("lengths") and f"{MEASURE}tokens" in measured[0]:
        import numpy as np

        tokens = np.array([row[f"{MEASURE}tokens"] for row in measured]) + first["lengths"].get("special_tokens", 0)
        cuts = "windowed_rows" not in first["lengths"]
        facts["lengths"] = describe_lengths(tokens, first["lengths"]["max_length"], cuts=cuts)
    return facts


def _describe_folds(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The folds in the order of the joined tables: how many rows each tested, and how many it learnt from."""
    splits = {name: record["data"]["splits"] for name, record in records.items()}
    return [
        {"name": name} | {split: each[split]["rows"] for split in ("train", "dev", "test")}
        for name, each in splits.items()
    ]


def join_measures(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of tables of measures, one after the other; groups are numbered on, since no fold parts one."""
    rows, done = [], 0
    for table in tables:
        columns = {name: values.tolist() for name, values in table.items()}
        if GROUP in columns:
            columns[GROUP] = [number + done for number in columns[GROUP]]
            done = max(columns[GROUP]) + 1
        rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows
