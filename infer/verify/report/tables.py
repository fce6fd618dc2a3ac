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

_LAYERS = 20


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.2f}"


def _number(value: float | None, text: str) -> str:
    """A cell that sorts by ``value``; without one, last."""
    data = "" if value is None else f' data-value="{value:.6g}"'
    return f'<td class="number"{data}>{text}</td>'


def _head(columns: Sequence[tuple[str, str, str]]) -> str:
    """Heads that sort when pressed; (key in the address, text, explanation)."""
    cells = (
        f'<th scope="col" data-key="{key}" title="{escape(about)}"><button type="button">{escape(text)}</button></th>'
        for key, text, about in columns
    )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


_CLASS_COLUMNS = (
    ("class", "Class", "index in the order of the model"),
    ("name", "Name", "class name"),
    ("images", "Images", "with this true class"),
    ("top1", "Top-1 %", "share of them the bundle gets right"),
    ("fp32", "FP32 %", "share of them FP32 gets right"),
    ("change", "Change", "points of top-1 against FP32"),
    ("agreement", "Agreement %", "share of them with the same top-1 as FP32"),
)


def class_table(rows: Sequence[ClassRow]) -> str:
    """The table of all classes; its script sorts it by any column."""
    lines = []
    for row in rows:
        change = None if row.reference_top1 is None else row.top1 - row.reference_top1
        cells = (
            _number(row.index, str(row.index)),
            f"<td>{escape(row.label)}</td>",
            _number(row.images, str(row.images)),
            _number(row.top1, _percent(row.top1)),
            _number(row.reference_top1, _percent(row.reference_top1)),
            _number(change, "&ndash;" if change is None else _signed(change)),
            _number(row.agreement, _percent(row.agreement)),
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<p class="filter"><label>Filter by name <input type="search" id="filter" autocomplete="off"></label> '
        f'<span id="shown" aria-live="polite">{len(rows)} classes</span></p>'
        f'<div class="wide tall"><table id="classes">{_head(_CLASS_COLUMNS)}'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "&minus;")


def _plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A table whose last ``numbers`` columns are aligned as numbers; cells are HTML."""
    first = len(heads) - numbers
    marks = ["" if i < first else ' class="number"' for i in range(len(heads))]
    head = "".join(f'<th scope="col"{mark}>{text}</th>' for mark, text in zip(marks, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide tall"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


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
    return _plain_table(("True class", "Taken for", "Images", "FP32"), rows, 2)


def layer_table(errors: Sequence[TensorError]) -> str:
    """The worst quantised tensors."""
    rows = [
        (
            escape(e.tensor),
            f"{e.sqnr_db:.1f}" if math.isfinite(e.sqnr_db) else "exact",
            f"{100 * e.clipped:.3f}",
            f"{e.scale:.4g}",
        )
        for e in errors[:_LAYERS]
    ]
    return _plain_table(("Tensor", "SQNR dB", "Clipped %", "Scale"), rows, 3)


def picture_cards(items: Sequence[Deviation], labels: Sequence[str]) -> str:
    """The images that differ most, with what the network saw."""
    return f'<ul class="cards">{"".join(_card(item, labels) for item in items)}</ul>'


def _card(item: Deviation, labels: Sequence[str]) -> str:
    data, name = base64.b64encode(item.thumbnail).decode(), printable(item.name)
    true = labels[item.target] if item.target >= 0 else None
    flip = '<span class="flip">other top-1</span>' if item.flipped else '<span class="same">same top-1</span>'
    distance = f"{item.divergence:.3g} nats" if math.isfinite(item.divergence) else "not finite"
    return (
        f'<li><img src="data:image/jpeg;base64,{data}" alt="{escape(name)}">'
        f"<div>{flip} <span>{distance}</span><dl>"
        f"<dt>True</dt><dd>{'unknown' if true is None else escape(true)}</dd>"
        f"{_answer('Bundle', item.predicted, item.score, item.target, labels)}"
        f"{_answer('FP32', item.reference, item.reference_score, item.target, labels)}"
        f'</dl><p class="name" title="{escape(name)}">{escape(_short(name))}</p></div></li>'
    )


def _short(name: str) -> str:
    """The file with its folder."""
    return "/".join(name.split("/")[-2:])


def _answer(who: str, index: int, score: float, target: int, labels: Sequence[str]) -> str:
    kind = "" if target < 0 else ' class="right"' if index == target else ' class="wrong"'
    chance = f"{score:.1%}" if math.isfinite(score) else "not a number"
    return f"<dt>{who}</dt><dd{kind}>{escape(labels[index])} <span>{chance}</span></dd>"
