"""Plots as inline SVG: no library, no script, colours from the style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from infer.verify.reliability import Bin

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 14, 44


@dataclass(frozen=True)
class _Frame:
    """The plotting area: x and y from 0 to 1 inside of it, y upwards."""

    height: int = _HEIGHT

    def x(self, share: float) -> float:
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(self, share: float) -> float:
        return round(self.height - _BOTTOM - share * (self.height - _BOTTOM - _TOP), 2)

    def bar(self, left: float, right: float, share: float, kind: str, title: str) -> str:
        x, y = self.x(left), self.y(share)
        width, height = round(self.x(right) - x, 2), round(self.y(0) - y, 2)
        return (
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}">'
            f"<title>{escape(title)}</title></rect>"
        )

    def text(self, x: float, y: float, text: str, kind: str = "tick", anchor: str = "middle") -> str:
        return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'

    def x_axis(self, ticks: Sequence[tuple[float, str]], label: str) -> str:
        base = self.y(0)
        parts = [f'<line class="axis" x1="{self.x(0)}" y1="{base}" x2="{self.x(1)}" y2="{base}"/>']
        parts += [self.text(self.x(at), base + 16, text) for at, text in ticks]
        return "".join([*parts, self.text(self.x(0.5), self.height - 8, label, "label")])

    def y_axis(self, ticks: Sequence[tuple[float, str]]) -> str:
        parts = []
        for at, text in ticks:
            y = self.y(at)
            parts.append(f'<line class="grid" x1="{self.x(0)}" y1="{y}" x2="{self.x(1)}" y2="{y}"/>')
            parts.append(self.text(self.x(0) - 7, y + 4, text, anchor="end"))
        return "".join(parts)

    def svg(self, title: str, *parts: str) -> str:
        inner = "".join(parts)
        return (
            f'<svg viewBox="0 0 {_WIDTH} {self.height}" role="img" aria-label="{escape(title)}" '
            f'preserveAspectRatio="xMidYMid meet">{inner}</svg>'
        )


_SHARES = [(i / 5, f"{20 * i} %") for i in range(6)]


def reliability_diagram(bins: Sequence[Bin], reference: Sequence[Bin] | None) -> str:
    """Accuracy over confidence: bars for the bundle, rings for FP32, a dashed line where both are equal.

    Args:
        bins, reference: from :meth:`infer.verify.reliability.Reliability.bins`.
    """
    frame = _Frame()
    bars = [
        frame.bar(
            b.start + 0.004,
            b.end - 0.004,
            b.accuracy,
            "bar",
            f"{b.start:.0%} to {b.end:.0%}: {b.images} images, confidence {b.confidence:.1%}, correct {b.accuracy:.1%}",
        )
        for b in bins
        if b.accuracy is not None
    ]
    rings = [
        f'<circle class="ring" cx="{frame.x(b.confidence)}" cy="{frame.y(b.accuracy)}" r="4">'
        f"<title>FP32: {b.images} images, confidence {b.confidence:.1%}, correct {b.accuracy:.1%}</title>"
        "</circle>"
        for b in reference or ()
        if b.confidence is not None and b.accuracy is not None
    ]
    diagonal = f'<line class="diagonal" x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" y2="{frame.y(1)}"/>'
    axes = frame.y_axis(_SHARES), frame.x_axis(_SHARES, "confidence of the top-1")
    return frame.svg("Reliability diagram", axes[0], *bars, axes[1], diagonal, *rings)


def confidence_histogram(bins: Sequence[Bin]) -> str:
    """Share of the images in each bin of confidence."""
    total = sum(b.images for b in bins) or 1
    frame = _Frame()
    bars = [
        frame.bar(b.start + 0.004, b.end - 0.004, b.images / total, "bar", f"{b.images} images")
        for b in bins
        if b.images
    ]
    return frame.svg(
        "Histogram of confidence", frame.y_axis(_SHARES), *bars, frame.x_axis(_SHARES, "confidence of the top-1")
    )


def decade_histogram(counts: Sequence[int], first: int, kind: str, title: str) -> str:
    """Images by decade of their divergence from FP32, with the counts above the bars.

    Args:
        counts: of 10^first to 10^(first + 1), and so on.
        first: exponent of the first.
        kind: class in the style sheet.
        title: for people who cannot see it.
    """
    frame = _Frame(190)
    top = max([*counts, 1])
    step = 1 / len(counts)
    parts = []
    for i, count in enumerate(counts):
        if not count:
            continue
        share = 0.88 * count / top  # room for the number above
        text = f"{count} images, 1e{first + i} to 1e{first + i + 1} nats"
        parts.append(frame.bar((i + 0.06) * step, (i + 0.94) * step, share, kind, text))
        parts.append(frame.text(frame.x((i + 0.5) * step), frame.y(share) - 4, str(count)))
    ticks = [(i * step, f"1e{first + i}") for i in range(0, len(counts) + 1, 2)]
    return frame.svg(title, *parts, frame.x_axis(ticks, "divergence from FP32, nats"))
