"""What did the checkpoint say before it was trained?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.evaluate import predict_rows
from graftkit.heads import Headed
from graftkit.run import Run
from graftkit.task import Lengths, Record, Task

if TYPE_CHECKING:
    from graftkit.data import Splits


def ask_before(run: Run, task: Task, headed: Headed, splits: Splits, lengths: Lengths) -> list[Record] | None:
    """What the untrained model says of test, to see what training brings; None with a new head, or without test.

    It is asked anew in a run that is resumed: the checkpoint is as it came until the training state is loaded.
    """
    if run.settings.dry_run or run.settings.until == "dev" or headed.head:
        return None
    with run.phase("before"):
        headed.model.to(run.accelerator.device)
        return predict_rows(run.accelerator, task, headed.model, splits.test, lengths["test"])
