"""The page: verdict and figures first, then plots, tables and images. One file, no network, no foreign script.

A content security policy in the page allows nothing but the one style sheet and the one script by their hashes, and
images that are inside. Markup in a name that slipped through the escaping could neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from infer.errors import InputError
from infer.files import write_bytes
from infer.verify.deviations import DECADES
from infer.verify.report.charts import confidence_histogram, decade_histogram, reliability_diagram
from infer.verify.report.tables import class_table, confusion_table, layer_table, picture_cards

if TYPE_CHECKING:
    from infer.bundle.accuracy_record import Figures
    from infer.verify.run import Verification

_FAILURES = 100
# Not strftime's, which speaks the language of the machine.
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: its heading.
        content: HTML.
    """

    title: str
    content: str

    @property
    def anchor(self) -> str:
        """Its name in the address: the words of the title without the numbers."""
        return "-".join(re.findall("[a-z]+", self.title.lower()))


def write_report(path: Path, result: Verification) -> None:
    """Write the report of ``result`` to ``path`` in one step.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_bytes(path, render(result).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"--report: {path} cannot be written ({error.strerror})") from error


def render(result: Verification) -> str:
    """The page as HTML."""
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    model = result.manifest.model
    title = f"{model.name} {result.manifest.precision} on {result.accuracy.target}"
    sections = _sections(result)
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{_header(result, title)}\n{_contents(sections)}<main>\n{_tiles_of(result)}{''.join(map(_section, sections))}"
        f"</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _header(result: Verification, title: str) -> str:
    found = result.accuracy
    kind, diagnosis = found.outcome, found.diagnosis
    untrained = "" if result.manifest.model.trained else '<p class="failed verdict">Untrained: random weights</p>'
    mark = "diagnosis" if diagnosis.kind in ("ok", "unknown", "subset") else "suspected verdict"
    return (
        f'<header><h1>{escape(title)}</h1><p class="sub">{found.figures.images:,} images of {escape(found.data)}, '
        f'{_time(found.measured)}</p>{untrained}<p class="{kind} verdict"><strong>{kind.capitalize()}</strong> '
        f'{escape(found.verdict)}</p><p class="{mark}"><strong>Diagnosis '
        f"({escape(diagnosis.kind)}):</strong> {escape(diagnosis.text)}</p></header>"
    )


def _readable(written: str) -> str:
    """A time of a record as people write it; what is none stays as it is."""
    try:
        at = datetime.fromisoformat(written).astimezone(UTC)
    except ValueError:
        return written
    return f"{at.day} {_MONTHS[at.month - 1]} {at:%Y, %H:%M} UTC"


def _time(written: str) -> str:
    return f'<time datetime="{escape(written)}">{escape(_readable(written))}</time>'


def _tiles_of(result: Verification) -> str:
    return f'<section class="tiles" aria-label="Figures">{"".join(_tiles(result.accuracy.figures))}</section>\n'


def _sections(result: Verification) -> list[Section]:
    details, labels = result.details, result.labels
    parts = []
    reliability = (
        "Share of correct images in each bin of confidence. Where bars and rings reach the dashed line, probabilities "
        "can be taken at their word."
    )
    charts = _figure(reliability_diagram(details.reliability, details.reference_reliability), reliability)
    charts += _figure(confidence_histogram(details.reliability), "How many images have which confidence.")
    parts.append(Section("Calibration of the probabilities", f'<div class="charts">{charts}</div>'))
    if details.divergences is not None:
        same, other = details.divergences.tolist()
        charts = _figure(
            decade_histogram(same, DECADES[0], "bar", "Divergence of images with the same top-1"),
            f"{sum(same):,} images with the same top-1 as FP32.",
        ) + _figure(
            decade_histogram(other, DECADES[0], "bar other", "Divergence of images with another top-1"),
            f"{sum(other):,} images with another top-1.",
        )
        parts.append(Section("Distance from FP32", f'<div class="charts">{charts}</div>'))
    if details.differing:
        note = (
            "<p>Other top-1 first, then by divergence of the probabilities. The pictures are what the network saw.</p>"
        )
        parts.append(Section("Images that differ most from FP32", note + picture_cards(details.differing, labels)))
    if details.classes:
        parts.append(Section("Classes", class_table(details.classes)))
        parts.append(Section("Most frequent confusions", confusion_table(details.confusions, labels)))
    if result.layers:
        parts.append(Section("Quantised tensors, worst first", layer_table(result.layers)))
    parts.append(Section("How it was measured", _facts(result)))
    if result.failures:
        parts.append(Section(f"{len(result.failures):,} images could not be read", _failures(result.failures)))
    return parts


def _section(section: Section) -> str:
    return (
        f'<section id="{section.anchor}"><h2><a href="#{section.anchor}">{escape(section.title)}</a></h2>'
        f"{section.content}</section>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#{one.anchor}">{escape(one.title)}</a></li>' for one in sections)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _tiles(found: Figures) -> list[str]:
    def fp32(value: float | None, unit: str = " %") -> str:
        return "" if value is None else f"FP32 {value:.2f}{unit}"

    tiles = []
    if found.top1 is not None and found.top1_interval is not None:
        low, high = found.top1_interval
        interval = f"{low:.2f} to {high:.2f} % (95 %)"
        tiles.append(_tile("Top-1", f"{found.top1:.2f} %", fp32(found.reference_top1), interval))
        tiles.append(_tile("Top-5", f"{found.top5:.2f} %", fp32(found.reference_top5)))
    if found.real_top1 is not None:
        counted = f"{found.real_images:,} images"
        tiles.append(_tile("Top-1, real labels", f"{found.real_top1:.2f} %", fp32(found.reference_real_top1), counted))
    if found.agreement is not None:
        changes = "" if found.lost is None else f"{found.lost} lost, {found.gained} gained"
        tiles.append(_tile("Agreement", f"{found.agreement:.2f} %", f"{found.disagreeing} other top-1", changes))
        tiles.append(_tile("SQNR of logits", found.sqnr_text, f"largest difference {found.max_logit_difference:.3f}"))
    if found.ece is not None:
        tiles.append(_tile("Calibration error", f"{found.ece:.2f} pts", fp32(found.reference_ece, " pts")))
    return tiles


def _tile(name: str, value: str, *notes: str) -> str:
    below = "".join(f"<small>{escape(note)}</small>" for note in notes if note)
    return f"<div><span>{escape(name)}</span><strong>{escape(value)}</strong>{below}</div>"


def _facts(result: Verification) -> str:
    found, manifest = result.accuracy, result.manifest
    model, spec = manifest.model, manifest.preprocessing
    plan = next((plan for plan in manifest.plans if plan.target == found.target), None)
    facts = {
        "Bundle": f"{model.name}, {manifest.precision}, built {_readable(manifest.created)}",
        "Weights": model.weights + (f", sha256 {model.weights_sha256[:16]}" if model.weights_sha256 else ""),
        "Target": found.target + (f" {plan.version}" if plan else "") + f", {found.device}",
        "Reference": found.reference or "none",
        "Data": f"{found.data}: {found.figures.images:,} images",
        "Pre-processing": f"short side to {spec.resize}, {spec.interpolation}, antialiased; centre crop "
        f"{spec.crop}; RGB; mean {_triple(spec.mean)}; std {_triple(spec.std)}",
        "Calibration error": "expected calibration error, 15 bins of equal width (Guo et al. 2017)",
    }
    if model.top1 is not None:
        top5 = "" if model.top5 is None else f", top-5 {model.top5:.2f} %"
        facts["Published accuracy"] = f"top-1 {model.top1:.2f} %{top5}; {model.published or 'source not recorded'}"
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _triple(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _failures(failures: list[str]) -> str:
    lines = "".join(f"<li>{escape(failure)}</li>" for failure in failures[:_FAILURES])
    more = f"<p>and {len(failures) - _FAILURES:,} more</p>" if len(failures) > _FAILURES else ""
    return (
        f'<ul class="failures" role="region" aria-label="Images that could not be read" tabindex="0">{lines}</ul>{more}'
    )
