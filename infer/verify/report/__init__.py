"""The HTML report of an evaluation: one file that needs no network."""

from infer.verify.report.page import write_report

__all__ = ["write_report"]
