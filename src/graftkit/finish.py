"""How does a run end?"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint import aside_then_renamed
from graftkit.evaluate import predict_rows
from graftkit.export import check_saved, load_saved, merged, save_model, snippet
from graftkit.failures import explain_disk
from graftkit.report import metrics_text, write_report
from graftkit.report.tables import write_predictions, write_rows
from graftkit.run import Run
from graftkit.task import Lengths

if TYPE_CHECKING:
    from torch import nn

    from graftkit.data import Splits


def finish(run: Run, task: Any, model: nn.Module, splits: Splits, lengths: Lengths, *, merge: bool) -> dict[str, Any]:
    """Save the model, load it again as anyone would, predict dev and test with that, and write the report.

    The tables are predicted in fp32, whatever the training precision. Returns the metrics.
    """
    folder = run.folder / "model"
    model = merged(model) if merge else model

    def save() -> None:
        with explain_disk(run.folder), aside_then_renamed(folder) as aside:
            save_model(aside, model, task.tokenizer, task.labels)

    with run.phase("save"):
        run.once(save)
        reloaded = load_saved(folder, task.auto_class)
        check_saved(model, reloaded)
    with run.phase("evaluate"):
        reloaded.to(run.accelerator.device)
        for split, rows in (("dev", splits.dev), ("test", splits.test)):
            records = predict_rows(run.accelerator, task, reloaded, rows, lengths[split])
            run.once(lambda split=split, rows=rows, records=records: _write_tables(run, task, split, rows, records))
    run.record["snippet"] = snippet(folder)
    run.save_record()
    metrics = run.once(lambda: write_report(run.folder))
    if run.main:
        load = textwrap.indent(run.record["snippet"], "    ")
        print(
            f"\n{metrics_text(metrics)}\n\nreport: {run.folder / 'report.md'}\nload the model with:\n\n{load}",
            flush=True,
        )
    run.end()
    return metrics


def _write_tables(run: Run, task: Any, split: str, rows: Any, records: list[dict[str, Any]]) -> None:
    with explain_disk(run.folder):
        write_predictions(run.folder, split, records, task.labels)
        write_rows(run.folder, split, rows, keep_rows=run.settings.keep_rows)
