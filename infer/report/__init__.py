"""The HTML report of an evaluation: one file that needs no network."""

from infer.report.page import write_report

__all__ = ["write_report"]
