"""Plots as inline SVG: no library, no script, colours from the style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from infer.verify.reliability import Bin

_WIDTH, _HEIGHT = 420, 320
# The text grows on small screens (page.css), up to 17 units: a tick of the y axis then takes 50, the axis label 17.
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 26, 18, 52
_LEGEND = 26


@dataclass(frozen=True)
class _Frame:
    """The plotting area: x and y from 0 to 1 inside of it, y upwards.

    Attributes:
        height: of the picture.
        above: room for a legend.
    """

    height: int = _HEIGHT
    above: int = 0

    def x(self, share: float) -> float:
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(self, share: float) -> float:
        top = _TOP + self.above
        return round(self.height - _BOTTOM - share * (self.height - _BOTTOM - top), 2)

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
        parts += [self.text(self.x(at), base + 18, text) for at, text in ticks]
        return "".join([*parts, self.text(self.x(0.5), self.height - 8, label, "label")])

    def y_axis(self, ticks: Sequence[tuple[float, str]], label: str) -> str:
        parts = []
        for at, text in ticks:
            y = self.y(at)
            parts.append(f'<line class="grid" x1="{self.x(0)}" y1="{y}" x2="{self.x(1)}" y2="{y}"/>')
            parts.append(self.text(self.x(0) - 7, y + 4, text, anchor="end"))
        middle = self.y(0.5)
        turned = (
            f'<text class="label" x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
            f"{escape(label)}</text>"
        )
        return "".join([*parts, turned])

    def svg(self, name: str, about: str, *parts: str) -> str:
        """The picture; ``name`` and ``about`` are what it is called and shows, for those who cannot see it."""
        inner = "".join(parts)
        return (
            f'<svg viewBox="0 0 {_WIDTH} {self.height}" role="img" aria-label="{escape(f"{name}. {about}")}" '
            f'preserveAspectRatio="xMidYMid meet">{inner}</svg>'
        )


_SHARES = [(i / 5, f"{20 * i} %") for i in range(6)]


def _ring(x: float, y: float, title: str = "") -> str:
    """A ring with a rim in the colour of the card, so that it shows on a bar, too."""
    name = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle class="rim" cx="{x}" cy="{y}" r="5"/><circle class="ring" cx="{x}" cy="{y}" r="5">{name}</circle>'


def _legend(frame: _Frame, *, reference: bool) -> str:
    y = 16
    parts = [f'<rect class="bar" x="{_LEFT}" y="{y - 6}" width="14" height="12"/>']
    parts.append(frame.text(_LEFT + 20, y + 4, "bundle", "key", "start"))
    at = _LEFT + 92
    if reference:
        parts += [_ring(at + 6, y), frame.text(at + 18, y + 4, "FP32", "key", "start")]
        at += 76
    parts.append(f'<line class="diagonal" x1="{at}" y1="{y}" x2="{at + 22}" y2="{y}"/>')
    parts.append(frame.text(at + 28, y + 4, "well calibrated", "key", "start"))
    return f'<g class="legend">{"".join(parts)}</g>'


def reliability_diagram(bins: Sequence[Bin], reference: Sequence[Bin] | None) -> str:
    """Accuracy over confidence: bars for the bundle, rings for FP32, a dashed line where both are equal.

    Args:
        bins, reference: from :meth:`infer.verify.reliability.Reliability.bins`.
    """
    frame = _Frame(_HEIGHT + _LEGEND, _LEGEND)
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
        _ring(
            frame.x(b.confidence),
            frame.y(b.accuracy),
            f"FP32: {b.images} images, confidence {b.confidence:.1%}, correct {b.accuracy:.1%}",
        )
        for b in reference or ()
        if b.confidence is not None and b.accuracy is not None
    ]
    diagonal = f'<line class="diagonal" x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" y2="{frame.y(1)}"/>'
    axes = frame.y_axis(_SHARES, "correct"), frame.x_axis(_SHARES, "confidence of the top-1")
    legend = _legend(frame, reference=bool(rings))
    return frame.svg("Reliability diagram", _gaps(bins), legend, axes[0], *bars, axes[1], diagonal, *rings)


def _gaps(bins: Sequence[Bin]) -> str:
    """Where confidence and accuracy part most, and where most images are."""
    filled = [(b, b.confidence, b.accuracy) for b in bins if b.confidence is not None and b.accuracy is not None]
    if not filled:
        return "No image has a confidence"
    most = max(filled, key=lambda one: one[0].images)
    far = max(filled, key=lambda one: abs(one[1] - one[2]))
    return " ".join(
        f"{what} {b.start:.0%} to {b.end:.0%}: {b.images} images, {confidence:.1%} confident, {accuracy:.1%} correct."
        for what, (b, confidence, accuracy) in (("Most images at", most), ("Widest gap at", far))
    )


def confidence_histogram(bins: Sequence[Bin]) -> str:
    """Share of the images in each bin of confidence."""
    total = sum(b.images for b in bins) or 1
    frame = _Frame()
    bars = [
        frame.bar(
            b.start + 0.004,
            b.end - 0.004,
            b.images / total,
            "bar",
            f"{b.start:.0%} to {b.end:.0%}: {b.images} images, {b.images / total:.1%}",
        )
        for b in bins
        if b.images
    ]
    most = max(bins, key=lambda b: b.images)
    about = f"{most.images / total:.1%} of the images have a confidence of {most.start:.0%} to {most.end:.0%}"
    axes = frame.y_axis(_SHARES, "images"), frame.x_axis(_SHARES, "confidence of the top-1")
    return frame.svg("Histogram of confidence", about, axes[0], *bars, axes[1])


def decade_histogram(counts: Sequence[int], first: int, kind: str, name: str) -> str:
    """Images by decade of their divergence from FP32, with the counts above the bars.

    Args:
        counts: of 10^first to 10^(first + 1), and so on.
        first: exponent of the first.
        kind: class in the style sheet.
        name: what it is called.
    """
    frame = _Frame(220)
    top = max([*counts, 1])
    step = 1 / len(counts)
    parts = []
    for i, count in enumerate(counts):
        if not count:
            continue
        share = 0.88 * count / top  # room for the number above
        text = f"{count} images, 1e{first + i} to 1e{first + i + 1} nats"
        parts.append(frame.bar((i + 0.06) * step, (i + 0.94) * step, share, kind, text))
        parts.append(frame.text(frame.x((i + 0.5) * step), frame.y(share) - 4, _short(count)))
    ticks = [(i * step, f"1e{first + i}") for i in range(0, len(counts) + 1, 2)]
    base = frame.y_axis([(0, "0")], "images")
    most = max(range(len(counts)), key=lambda i: counts[i])
    about = "No image" if not any(counts) else (
        f"Most, {counts[most]} of {sum(counts)} images, lie between 1e{first + most} and 1e{first + most + 1} nats"
    )  # fmt: skip
    return frame.svg(name, about, base, *parts, frame.x_axis(ticks, "divergence from FP32, nats"))


def _short(count: int) -> str:
    """As few characters as a narrow bar has room for: 950, 2k, 95k, 950k, 9M."""
    value = float(count)
    for unit in ("", "k", "M"):
        if value < 999.5:
            return f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}G"
