"""The report as one HTML file that needs no network."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto; padding: 20px;
color: #1a1f29; background: #fff; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th, td { padding: 3px 10px; text-align: left;
border-bottom: 1px solid #dfe3e9; vertical-align: top; overflow-wrap: anywhere; } .wide { overflow-x: auto; }
.ok { color: #15803d; } .failed { color: #c02626; } .not-done { color: #8a5a00; } pre { white-space: pre-wrap; }
nav li { display: inline; margin-right: 14px; } nav ul { padding: 0; }
@media (prefers-color-scheme: dark) { body { color: #e6e9ee; background: #12151b; } th, td { border-color: #2d3440; }
.ok { color: #5ccb81; } .failed { color: #ff8a80; } .not-done { color: #f5a742; } a { color: #6ea2ff; } }
"""


def render(report: dict[str, Any]) -> str:
    """The page of what ``report.json`` holds."""
    parts = report["parts"]
    links = "".join(f'<li><a href="#{part["name"]}">{escape(part["title"])}</a></li>' for part in parts)
    worth = "".join(f"<li>{escape(text)}</li>" for text in report["advice"]) or "<li>Nothing could be measured.</li>"
    state = "" if report["finished"] else "<p><strong>Not finished.</strong></p>"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>GPU check</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{_STYLE}</style></head><body><h1>GPU check</h1><p>{escape(report['started'])}</p>{state}"
        f'<nav aria-label="Contents"><ul><li><a href="#worth">What is worth changing</a></li>{links}</ul></nav>'
        f'<section id="worth"><h2>What is worth changing</h2><ul>{worth}</ul></section>{"".join(map(_part, parts))}'
        "</body></html>\n"
    )


def _part(part: dict[str, Any]) -> str:
    mark = part["outcome"].replace(" ", "-")
    why = f": {escape(part['why'])}" if part["why"] else ""
    notes = f"<pre>{escape(chr(10).join(part['notes']))}</pre>" if part["notes"] else ""
    return (
        f'<section id="{part["name"]}"><h2>{escape(part["title"])}</h2>'
        f'<p class="{mark}"><strong>{escape(part["outcome"])}</strong>{why} ({part["seconds"]:.1f} s)</p>'
        f"{_table(part['rows'], part['title'])}{notes}</section>"
    )


def _table(rows: list[dict[str, Any]], name: str) -> str:
    if not rows:
        return ""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th scope="col">{escape(text.replace("_", " "))}</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(row.get(key)))}</td>" for key in heads) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name)}"><table>'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return str(value)
