"""What do we tell people?"""

from graftkit.report.config import ReportConfig, RowsReportConfig, ScoresConfig
from graftkit.report.page import metrics_text, write_report

__all__ = ["ReportConfig", "RowsReportConfig", "ScoresConfig", "metrics_text", "write_report"]
