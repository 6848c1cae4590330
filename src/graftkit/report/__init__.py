"""What do we tell people?"""

from graftkit.report.config import ReportConfig, ScoresConfig
from graftkit.report.page import metrics_text, write_report

__all__ = ["ReportConfig", "ScoresConfig", "metrics_text", "write_report"]
