"""What is measured of a model, and told of it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftkit.config import Share
from graftkit.errors import UserError


@dataclass(frozen=True)
class RowsReportConfig:
    """What is told of rows, whatever the task?"""

    group: str | None = None
    """column of the data whose equal values belong together, such as a patient: intervals then draw whole groups"""

    slice: ClassVar[list[str] | None] = None
    metrics: ClassVar[list[str] | None] = None
    explain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.group == "":
            raise UserError("--report.group: name a column of the data, or leave it out")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data that are read for the report alone."""
        return tuple(dict.fromkeys([*([self.group] if self.group else []), *(self.slice or [])]))


@dataclass(frozen=True)
class ScoresConfig(RowsReportConfig):
    """What is measured on rows of one class each, and told of them?"""

    slice: list[str] | None = None
    """columns of the data by whose values errors are counted, beside what is looked at anyway (length, brightness ...)
    """
    metrics: list[str] | None = None
    """metrics of the evaluate library to add, by name, such as roc_auc; those of scikit-learn come with graftkit"""


@dataclass(frozen=True)
class ReportConfig(ScoresConfig):
    """What is measured of the model, and told of it?"""

    calibrate: bool = True
    """fit one temperature on dev and fold it into the last layer, so that stated probabilities can be believed"""
    alpha: Share = 0.1
    """share of rows whose set of likely classes may miss the true one, and of answers that may be wrong where the model
    abstains when it is not sure"""
    audit: bool = False
    """look for labels that are probably wrong, and for rows of test that are nearly the same as one of train"""
    explain: bool = False
    """say which words, or parts of a picture, moved the model on its worst errors and least certain rows of test"""


def check_unused(settings: ScoresConfig, what: str) -> None:
    """Raise UserError for a setting that only rows of one class each have a use for; `what` names these rows."""
    plain = ReportConfig()
    for name in ("calibrate", "alpha", "audit", "explain", "metrics", "slice"):
        value = getattr(settings, name, getattr(plain, name))
        if value != getattr(plain, name):
            shown = ",".join(value) if isinstance(value, list) else str(value).lower()
            raise UserError(f"--report.{name} {shown}: does nothing for {what}; leave it out")
