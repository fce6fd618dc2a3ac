"""Tables and picture cards of the report. Every name is escaped: those of images and classes come from strangers."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from infer.names import printable
from infer.verify.class_table import ClassRow, Confusion
from infer.verify.deviations import Deviation
from infer.verify.tensor_errors import TensorError

ARIA_RISING = ' aria-sort="ascending"'
_LAYERS = 20
_PRINTED = 50


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.2f}"


def _number(value: float | None, text: str, more: str = "") -> str:
    """A cell that sorts by ``value``; without one, last. ``more``: classes of the style sheet."""
    data = "" if value is None else f' data-value="{value:.6g}"'
    return f'<td class="number{more}"{data}>{text}</td>'


def _head(columns: Sequence[tuple[str, str, str]], sorted_by: str) -> str:
    """Heads that sort when pressed; (key in the address, text, explanation). The rows are sorted by one, rising."""
    cells = (
        f'<th scope="col" data-key="{key}" data-text="{escape(text)}" title="{escape(about)}; press to sort"'
        f'{ARIA_RISING if key == sorted_by else ""}><button type="button">{escape(text)}</button></th>'
        for key, text, about in columns
    )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def scrolling(content: str, name: str) -> str:
    """What is larger than its place: it scrolls, with the keyboard too, and shows where there is more."""
    return f'<div class="wide tall" role="region" aria-label="{escape(name)}" tabindex="0">{content}</div>'


_CLASS_COLUMNS = (
    ("class", "Class", "index in the order of the model"),
    ("name", "Name", "class name"),
    ("images", "Images", "with this true class"),
    ("top1", "Top-1 %", "share of them the bundle gets right"),
    ("fp32", "FP32 %", "share of them FP32 gets right"),
    ("change", "Change", "points of top-1 against FP32"),
    ("agreement", "Agreement %", "share of them with the same top-1 as FP32"),
)


def _change(row: ClassRow) -> float | None:
    return None if row.reference_top1 is None else row.top1 - row.reference_top1


def _badness(row: ClassRow) -> tuple[float, float, int]:
    """What loses most against FP32 comes first, then what is right least often."""
    return _change(row) or 0.0, row.top1, row.index


def class_table(rows: Sequence[ClassRow]) -> str:
    """The table of all classes, the worst first; its script sorts it by any column. On paper only the worst 50 are."""
    lines = []
    for rank, row in enumerate(sorted(rows, key=_badness)):
        change = _change(row)
        cells = (
            _number(row.index, str(row.index)),
            f"<td>{escape(row.label)}</td>",
            _number(row.images, str(row.images)),
            _number(row.top1, _percent(row.top1)),
            _number(row.reference_top1, _percent(row.reference_top1)),
            _number(change, "&ndash;" if change is None else _signed(change), _tone(change)),
            _number(row.agreement, _percent(row.agreement)),
        )
        lines.append(f"<tr{'' if rank < _PRINTED else ' class=later'}>{''.join(cells)}</tr>")
    compared = any(row.reference_top1 is not None for row in rows)
    order = "by the change against FP32, the greatest loss first" if compared else "by top-1, the lowest first"
    left_out = f'<p class="on-paper">The worst {_PRINTED} of {len(rows):,} classes.</p>' if len(rows) > _PRINTED else ""
    table = (
        f'<table id="class-table">{_head(_CLASS_COLUMNS, "change" if compared else "top1")}'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return (
        f'<p class="order">Sorted {order}; press a head to sort by it.</p>{left_out}'
        '<p class="filter"><label>Filter by name <input type="search" id="filter" autocomplete="off"></label> '
        f'<span id="shown" aria-live="polite">{len(rows)} classes</span></p>' + scrolling(table, "Classes")
    )


def _tone(change: float | None) -> str:
    """Class of a cell, for its colour: what is printed as 0.00 has none."""
    if change is None or abs(change) < 0.005:
        return ""
    return " lost" if change < 0 else " gained"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "&minus;")


def _plain_table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A table whose last ``numbers`` columns are aligned as numbers; cells are HTML."""
    first = len(heads) - numbers
    marks = ["" if i < first else ' class="number"' for i in range(len(heads))]
    head = "".join(f'<th scope="col"{mark}>{text}</th>' for mark, text in zip(marks, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", name)


def confusion_table(confusions: Sequence[Confusion], labels: Sequence[str]) -> str:
    """The most frequent confusions."""
    if not confusions:
        return "<p>No image was taken for another class.</p>"
    rows = [
        (
            escape(labels[c.true]),
            escape(labels[c.predicted]),
            str(c.images),
            "&ndash;" if c.reference_images is None else str(c.reference_images),
        )
        for c in confusions
    ]
    return _plain_table("Most frequent confusions", ("True class", "Taken for", "Images", "FP32"), rows, 2)


def layer_table(errors: Sequence[TensorError]) -> str:
    """The worst quantised tensors."""
    rows = [
        (
            escape(e.tensor),
            f"{e.sqnr_db:.1f}" if math.isfinite(e.sqnr_db) else "exact",
            f"{100 * e.clipped:.3f}",
            f"{e.scale:.3e}",
        )
        for e in errors[:_LAYERS]
    ]
    return _plain_table("Quantised tensors", ("Tensor", "SQNR dB", "Clipped %", "Scale"), rows, 3)


def picture_cards(items: Sequence[Deviation], labels: Sequence[str]) -> str:
    """The images that differ most, with what the network saw."""
    return f'<ul class="cards">{"".join(_card(item, labels) for item in items)}</ul>'


def _card(item: Deviation, labels: Sequence[str]) -> str:
    data, name = base64.b64encode(item.thumbnail).decode(), printable(item.name)
    true = labels[item.target] if item.target >= 0 else None
    flip = '<span class="flip">other top-1</span>' if item.flipped else '<span class="same">same top-1</span>'
    distance = f"{item.divergence:.2e} nats" if math.isfinite(item.divergence) else "not finite"
    return (
        f'<li><img src="data:image/jpeg;base64,{data}" alt="{escape(_seen(item, labels))}">'
        f"<div>{flip} <span>{distance}</span><dl>"
        f"<dt>True</dt><dd>{'unknown' if true is None else escape(true)}</dd>"
        f"{_answer('Bundle', item.predicted, item.score, item.target, labels)}"
        f"{_answer('FP32', item.reference, item.reference_score, item.target, labels)}"
        f'</dl><p class="name" title="{escape(name)}">{escape(_short(name))}</p></div></li>'
    )


def _seen(item: Deviation, labels: Sequence[str]) -> str:
    """What a picture shows, for those who cannot see it: its class, or what FP32 takes it for."""
    if item.target >= 0:
        return f"a picture of the class {labels[item.target]}"
    return f"a picture without a label, which FP32 takes for {labels[item.reference]}"


def _short(name: str) -> str:
    """The file with its folder."""
    return "/".join(name.split("/")[-2:])


def _answer(who: str, index: int, score: float, target: int, labels: Sequence[str]) -> str:
    kind = "" if target < 0 else ' class="right"' if index == target else ' class="wrong"'
    chance = f"{score:.1%}" if math.isfinite(score) else "not a number"
    return f"<dt>{who}</dt><dd{kind}>{escape(labels[index])} <span>{chance}</span></dd>"
