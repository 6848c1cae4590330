"""What do we tell people?"""

from graftkit.report.page import metrics_text, write_report

__all__ = ["metrics_text", "write_report"]
