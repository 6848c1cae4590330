"""How does a run end?"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.calibrate import PROBED, calibrate, write_note
from graftkit.checkpoint import aside_then_renamed
from graftkit.evaluate import predict_rows
from graftkit.explain import explain_test
from graftkit.export import HUB_ID, can_merge, check_saved, merge_weights, save_adapter
from graftkit.failures import explain_disk
from graftkit.fingerprint import file_hashes, settings, weight_bytes
from graftkit.report import RowsReportConfig, metrics_text, write_report
from graftkit.report.markdown import plural, title, with_interval
from graftkit.report.metric_modules import measure_named
from graftkit.report.page import measure_split
from graftkit.report.tables import (
    COLUMN,
    GROUP,
    MEASURE,
    of_words,
    table_hashes,
    write_baselines,
    write_measures,
    write_predictions,
    write_rows,
)
from graftkit.run import Run
from graftkit.task import Baseline, Folding, Lengths, Record, Row, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from graftkit.data import Splits

NOT_CALIBRATED = {"temperature": None, "reason": "only rows of one label each are calibrated"}
MERGED_ROWS = 64  # of dev, on which a merged model must answer as its adapter did


def finish(
    run: Run,
    task: Task,
    model: nn.Module,
    splits: Splits,
    lengths: Lengths,
    settings: RowsReportConfig,
    *,
    merge: bool,
    before: Sequence[Record] | None = None,
) -> dict[str, Any]:
    """Choose on dev what is to be chosen, save the model, load it as anyone would, predict dev and test, and report.

    With `--run.until dev` it ends at dev, without a report; when the run is resumed without it, all this is done anew.

    The tables are predicted in fp32, whatever the training precision. With `merge`, an adapter's update is added to the
    weights, and the adapter by itself lies beside the model, in `adapter/`. `before` is what the checkpoint said of
    test before it was trained (`before.ask_before`). Returns the metrics.
    """
    folder = run.folder / "model"
    with run.phase("calibrate"):
        settle(run, task, model, splits, lengths, settings)
    with run.phase("save"):
        reloaded = save(run, task, model, splits, lengths, merge=merge)
    with run.phase("evaluate"):
        reloaded.to(run.accelerator.device)
        ask(run, task, reloaded, splits, "dev", lengths, settings)
    if run.settings.until == "dev":
        return tell_dev(run, settings)
    with run.phase("evaluate"):
        records = ask(run, task, reloaded, splits, "test", lengths, settings)
        run.record["saved"] = describe_saved(run, task, reloaded, folder, splits)
    with run.phase("baselines"):
        run.record["baselines"] = run.once(lambda: ask_baselines(run.folder, task, splits, before))
    run.record |= {"snippet": task.snippet(folder), "hub_snippet": task.snippet(folder, HUB_ID)}
    run.record["report"] = dataclasses.asdict(settings)
    metrics = tell(run)
    if settings.explain:  # once there is a report, since this asks more of the machine than all else
        with run.phase("explain"):
            explain_test(run, task, reloaded, splits.test, records)
        metrics = tell(run)
    if run.main:
        load = textwrap.indent(run.record["snippet"], "    ")
        print(
            f"\n{metrics_text(metrics)}\n\nreport: {run.folder / 'report.html'}\nload the model with:\n\n{load}",
            flush=True,
        )
    run.end()
    return metrics


def ask(
    run: Run, task: Task, model: nn.Module, splits: Splits, split: str, lengths: Lengths, settings: RowsReportConfig
) -> list[Record]:
    """What the model says of a split; its tables are written, and the metrics of `--report.metrics` recorded."""
    rows = getattr(splits, split)
    records = predict_rows(run.accelerator, task, model, rows, lengths[split])
    tables = (run.folder, task, split, rows, records, settings, run.settings.keep_rows)
    run.once(lambda: write_tables(*tables))
    score_by_name(run, task, split, records, settings.metrics)
    return records


def settle(
    run: Run, task: Task, model: nn.Module, splits: Splits, lengths: Lengths, settings: RowsReportConfig
) -> None:
    """Bring the model's numbers into the form of its answers: by a unit, a temperature, or the task's own thresholds.

    The latter two are chosen on dev.
    """
    run.record["calibration"] = NOT_CALIBRATED
    if task.calibrates:
        how = {"wanted": settings.calibrate, "alpha": settings.alpha}
        run.record["calibration"] = calibrate(run, task, model, splits.dev, lengths["dev"], **how)
    if isinstance(task, Folding):
        few = task.collate([task.encode(splits.dev[place], None) for place in range(min(PROBED, len(splits.dev)))])
        task.fold(model, few.to(run.accelerator.device))
    if task.decides:
        run.record["decision"] = task.decide(predict_rows(run.accelerator, task, model, splits.dev, lengths["dev"]))


def tell_dev(run: Run, settings: RowsReportConfig) -> dict[str, Any]:
    """Write the record, with the scores of dev as `dev`, and print the leading one; returns the metrics of dev."""
    run.record["report"] = dataclasses.asdict(settings)
    run.record["tables"] = run.once(lambda: table_hashes(run.folder))
    run.save_record()
    found = run.once(lambda: measure_split(run.folder, "dev"))
    run.record["dev"] = {name: found[name] for name in ("rows", "headline", "scores")}
    run.save_record()
    headline = f"{title(found['headline']['name'])} {with_interval(found['headline'])}"
    if run.main:
        print(f"\ndev   {headline} on {plural(found['rows'], 'row')}; test was left alone", flush=True)
    run.end()
    return {"dev": found}


def tell(run: Run) -> dict[str, Any]:
    """Write record and report of what is in the run's folder; returns the metrics."""
    run.record["tables"] = run.once(lambda: table_hashes(run.folder))
    run.save_record()
    return run.once(lambda: write_report(run.folder))


def save(run: Run, task: Task, model: nn.Module, splits: Splits, lengths: Lengths, *, merge: bool) -> nn.Module:
    """Write the model's folder, and the adapter's where it is merged; returns the model as anyone loads it."""
    folder = run.folder / "model"

    def write(place: Path, into: Callable[[Path], None]) -> None:
        with explain_disk(run.folder), aside_then_renamed(place) as aside:
            into(aside)

    def write_model(aside: Path) -> None:
        task.save(aside, model)
        if run.record["calibration"] != NOT_CALIBRATED:
            write_note(aside, run.record["calibration"])

    if merge and can_merge(model):
        run.once(lambda: write(run.folder / "adapter", lambda aside: save_adapter(aside, model)))
        model = merge_adapter(run, task, model, splits, lengths)
    run.once(lambda: write(folder, write_model))
    reloaded = task.load(folder)
    check_saved(model, reloaded)
    return reloaded


def merge_adapter(run: Run, task: Task, model: nn.Module, splits: Splits, lengths: Lengths) -> nn.Module:
    """The model with its adapter's update added to its weights.

    Raises RuntimeError where it then answers otherwise: that is a fault of a library, and the adapter is saved.
    """
    rows = splits.dev.select(range(min(MERGED_ROWS, len(splits.dev))))
    tokens = None if lengths["dev"] is None else lengths["dev"][: len(rows)]
    before = predict_rows(run.accelerator, task, model, rows, tokens)
    merged = merge_weights(model)
    after = predict_rows(run.accelerator, task, merged, rows, tokens)
    for one, other in zip(before, after, strict=True):
        for name in (name for name, value in one.items() if isinstance(value, float | np.ndarray)):
            if not np.allclose(one[name], other[name], rtol=1e-3, atol=1e-3):
                raise RuntimeError(
                    f"the merged model is not the trained one: {name} of row {one['id']} differs. "
                    f"The adapter is whole, in {run.folder / 'adapter'}"
                )
    return merged


def describe_saved(run: Run, task: Task, model: nn.Module, folder: Path, splits: Splits) -> dict[str, Any]:
    """What the saved folder holds, and what the model says of a row that it has to cut: what others must find too."""
    beside = run.folder / "adapter"
    facts: dict[str, Any] = run.once(
        lambda: {
            "files": file_hashes(folder),
            "settings": settings(folder),
            "weight_bytes": weight_bytes(folder),
            "adapter_bytes": weight_bytes(beside) if beside.exists() else None,  # where it was merged
        }
    )
    return facts | ask_overlong(run.accelerator, task, model, splits.test)


def ask_overlong(accelerator: Accelerator, task: Task, model: nn.Module, rows: Sequence[Row]) -> dict[str, Any]:
    """What the model says of a row, made of these, that it has to cut: `overlong`; nothing where it cuts none."""
    row = task.overlong(rows)
    if row is None:
        return {}
    record = predict_rows(accelerator, task, model, [row], None)[0]
    joined = {"joined_rows": row["joined"]}
    if of_words([record]) or "probabilities" not in record:
        return {"overlong": {**joined, "prediction": record["prediction"]}}
    said = dict(zip(task.labels, record["probabilities"].tolist(), strict=True))
    return {"overlong": {**joined, "probabilities": said}}


def write_tables(
    folder: Path,
    task: Task,
    split: str,
    rows: Sequence[Row],
    records: Sequence[Record],
    settings: RowsReportConfig,
    content: bool,
) -> None:
    """Write the tables of a split: what the model said of each row, the row itself, and what may go with an error.

    Without `content`, a row is known by its digest alone.
    """
    kept = [task.kept(row) for row in rows]
    known = [{"id": row["id"], "sha256": task.digest(row)} for row in rows]
    measured = [
        {"id": row["id"]}
        | {MEASURE + name: value for name, value in one.measures.items()}
        | {COLUMN + name: row[COLUMN + name] for name in settings.slice or []}
        for row, one in zip(rows, kept, strict=True)
    ]
    if settings.group is not None:
        numbers = number_groups([row[COLUMN + settings.group] for row in rows])
        measured = [one | {GROUP: number} for one, number in zip(measured, numbers, strict=True)]
    with explain_disk(folder):
        write_predictions(folder, split, records, task.labels)
        write_rows(
            folder, split, (row | (one.content if content else {}) for row, one in zip(known, kept, strict=True))
        )
        write_measures(folder, split, measured)


def ask_baselines(folder: Path, task: Task, splits: Splits, before: Sequence[Record] | None) -> dict[str, Any]:
    """Write what simple answers say of test, and `before`, what the checkpoint did; returns how each came about."""
    found = task.baselines(splits.train, splits.dev, splits.test)
    if before is not None:
        found |= {"before": Baseline([record["loss"] for record in before], {})}
    if not found:
        return {}
    with explain_disk(folder):
        write_baselines(folder, list(splits.test["id"]), {name: baseline.given for name, baseline in found.items()})
    return {name: baseline.facts for name, baseline in found.items()}


def score_by_name(run: Run, task: Task, split: str, records: Sequence[Record], names: Sequence[str] | None) -> None:
    """Record what the metrics of `--report.metrics` give for a split; one that fails is a warning, not the end."""
    if names:
        found, troubles = run.once(lambda: measure_named(names, task.labels, records))
        run.record.setdefault("metrics", {})[split] = found
        for trouble in troubles:
            run.say(trouble, warning=True)


def number_groups(values: Sequence[str | None]) -> list[int]:
    """A number from 0 for each row, the same for equal values; a row without a value is a group of its own."""
    own = [("row", place) if value is None else ("value", value) for place, value in enumerate(values)]
    numbers = {one: number for number, one in enumerate(dict.fromkeys(own))}  # in no order that tells of the values
    return [numbers[one] for one in own]
