"""How does it write?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.run import Run

if TYPE_CHECKING:
    from torch import nn

    from graftkit.data import Splits
    from graftkit.tasks.causal_language_modelling import CausalLanguageModelling

LEFT_OUT = "no samples are drawn, since they begin with rows of test, and --run.keep_rows false lets none be kept"


def draw_samples(run: Run, task: CausalLanguageModelling, model: nn.Module, splits: Splits, when: str) -> None:
    """Let the model go on from a few rows of test, and keep what it writes in the record as `when`, before or after.

    The rows stand at even distances in test; chance follows from the run's seed and the row's place among them. None in
    a dry run, in one until dev, or where no rows may be kept.
    """
    import numpy as np

    if run.settings.dry_run or run.settings.until == "dev":
        return
    if not run.settings.keep_rows:
        run.record["samples"] = {"settings": {}, "rows": []}
        if when == "before":
            run.say(LEFT_OUT)
        return
    count = min(task.generate.samples, len(splits.test))
    places = np.linspace(0, len(splits.test) - 1, count).astype(int).tolist()
    with run.phase(f"samples {when}"):
        model.to(run.accelerator.device)
        rows = [splits.test[place] for place in places]
        written = run.once(lambda: [task.write(model, row, run.seed + number) for number, row in enumerate(rows)])
    settings = {name: getattr(task.generate, name) for name in ("temperature", "top_p", "max_new_tokens")}
    kept = run.record.setdefault("samples", {"settings": settings, "rows": [{"id": row["id"]} for row in rows]})
    for sample, (begins, text) in zip(kept["rows"], written, strict=True):
        sample |= {"begins": begins, when: text}
