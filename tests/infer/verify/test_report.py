"""The page as text: complete, well-formed, escaped, and nothing that would need a network."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import pytest
from report_data import EVIL, hostile, jpeg_size, verification

from infer.bundle.accuracy_record import Diagnosis
from infer.errors import InputError
from infer.verify.report import write_report
from infer.verify.report.page import render
from infer.verify.tensor_errors import TensorError

VOID = {"meta", "img", "input", "br", "line"}


class Page(HTMLParser):
    """Elements with their attributes and text; fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        return " ".join(data for tag, data in self.texts if tag not in ("style", "script"))


def test_everything_is_there():
    result = verification()
    page = Page(render(result))
    text = page.text()
    record = result.accuracy.to_json()
    for expected in (
        "net int8 on openvino", "Passed", "good enough", "Diagnosis (ok):", "as published", f"{record['top1']:.2f} %",
        f"FP32 {record['reference_top1']:.2f} %", f"{record['lost']} lost, {record['gained']} gained",
        f"{record['ece']:.2f} pts", "short side to 256, bilinear", "top-1 77.31 %; a paper", "Most frequent confusions",
    ):  # fmt: skip
        assert expected in text, expected
    assert len(page.all("svg")) == 4
    assert all(svg["aria-label"] for svg in page.all("svg"))
    assert "could not be read" not in text
    marks = [attributes.get("class") for attributes in page.all("p")]
    assert "suspected verdict" not in marks and "passed verdict" in marks


def test_pictures_are_inside_and_decode():
    images = Page(render(verification())).all("img")
    assert len(images) == 24
    for image in images:
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert jpeg_size(base64.b64decode(data)) == (64, 64)
        assert re.fullmatch(r"a picture of the class class \d+", image["alt"])


def test_the_bars_are_as_high_as_the_figures():
    result = verification()
    html = render(result)
    svg = html[html.index('aria-label="Reliability diagram.') :]
    svg = svg[: svg.index("</svg>")]
    filled = [b for b in result.details.reliability if b.images]
    legend, plot = svg.split("</g>")
    heights = [float(h) for h in re.findall(r'<rect class="bar" [^>]*height="([\d.]+)"', plot)]
    full = 346 - 52 - 44
    assert heights == pytest.approx([full * b.accuracy for b in filled], abs=0.02)
    rings = [b for b in result.details.reference_reliability if b.images]
    assert plot.count('<circle class="ring"') == len(rings)
    assert legend.count('<circle class="ring"') == 1
    for text in ("bundle", "FP32", "well calibrated"):
        assert f">{text}</text>" in legend
    for text in ("correct", "confidence of the top-1"):
        assert f">{text}</text>" in plot
    biggest = max(filled, key=lambda b: b.images)
    assert f"Most images at {biggest.start:.0%} to {biggest.end:.0%}: {biggest.images} images" in svg


def test_names_cannot_run_or_load_anything():
    page = Page(render(hostile()))
    assert len(page.all("script")) == 1
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    handlers = [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert handlers == []
    text = page.text()
    assert text.count(EVIL) > 50
    assert {image["alt"] for image in page.all("img")} <= {f"a picture of the class {EVIL}{i}" for i in range(5)}


def test_nothing_needs_a_network():
    html = render(verification())
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:image/jpeg;base64,[^\"]*", "", html))
    page = Page(html)
    assert page.all("link") == page.all("iframe") == []
    assert all("src" not in attributes for attributes in page.all("script"))
    assert "url(" not in html and "@import" not in html


def test_the_policy_allows_only_the_style_and_the_script_of_the_page():
    html = render(verification())
    policy = next(meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        content = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not re.search(r'<[^>]+ style="', html)  # the policy would drop it


def test_the_table_of_classes_sorts_by_numbers():
    result = verification()
    html = render(result)
    keys = [head["data-key"] for head in Page(html).all("th") if "data-key" in head]
    assert keys == ["class", "name", "images", "top1", "fp32", "change", "agreement"]
    table = html[html.index('<table id="class-table">') :]
    rows = re.findall(r"<tr><td.*?</tr>", table[: table.index("</table>")])
    assert len(rows) == 12
    worst_first = sorted(result.details.classes, key=lambda row: (row.top1 - row.reference_top1, row.top1, row.index))
    assert worst_first != result.details.classes
    for row, expected in zip(rows, worst_first, strict=True):
        values = [float(value) for value in re.findall(r'data-value="([^"]+)"', row)]
        change = expected.top1 - expected.reference_top1
        wanted = [
            expected.index, expected.images, expected.top1, expected.reference_top1, change, expected.agreement,
        ]  # fmt: skip
        assert values == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_worst_class_is_first_and_the_order_is_said():
    result = verification()
    html = render(result)
    heads = [head for head in Page(html).all("th") if "data-key" in head]
    assert [(head["data-key"], head["aria-sort"]) for head in heads if "aria-sort" in head] == [("change", "ascending")]
    assert "Sorted by the change against FP32" in html
    for sign, tone in (("&minus;", "lost"), (r"\+", "gained")):
        cells = re.findall(rf"<td ([^>]*)>{sign}\d", html)
        assert cells and all(f'class="number {tone}"' in cell for cell in cells)
    unsure = render(verification(reference=False))
    assert [head["data-key"] for head in Page(unsure).all("th") if "aria-sort" in head] == ["top1"]


def test_on_paper_there_are_the_worst_fifty():
    result = verification([f"class {i}" for i in range(80)], images=800)
    html = render(result)
    table = html[html.index('<table id="class-table">') :]
    rows = re.findall(r"<tr( class=later)?><td", table[: table.index("</table>")])
    assert rows == [""] * 50 + [" class=later"] * (len(rows) - 50) and len(rows) == 80
    assert '<p class="on-paper">The worst 50 of 80 classes.</p>' in html
    paper = html[html.index("@media print") : html.index("</style>")]
    assert re.search(r"\.later[^{]*\{ display: none", paper) and ".on-paper { display: block" in paper
    assert "table-header-group" in paper and "break-inside: avoid" in paper
    assert "section { border: 0; padding: 0; margin-top: 14px; }" in paper  # sections may break: no half-empty pages
    assert "on-paper" not in re.sub("<style>.*?</style>", "", render(verification()), flags=re.DOTALL)


def test_contents_lead_to_every_section_and_names_are_used_once():
    html = render(verification(failures=["x: damaged"]))
    page = Page(html)
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    sections = [attributes["id"] for attributes in page.all("section") if "id" in attributes]
    links = [link["href"] for link in page.all("a")]
    assert links == [f"#{name}" for name in sections] + [f"#{name}" for name in sections]
    assert "classes" in sections and "images-could-not-be-read" in sections


def test_what_scrolls_can_be_reached_with_the_keyboard():
    page = Page(render(replace(verification(failures=["x"]), layers=[TensorError("a", 1.0, 0.05, 0.0)])))
    scrolling = [
        attributes for _, attributes in page.elements
        if {"wide", "failures"} & set((attributes.get("class") or "").split())
    ]  # fmt: skip
    assert len(scrolling) == 4
    for attributes in scrolling:
        assert attributes["tabindex"] == "0" and attributes["role"] == "region" and attributes["aria-label"]


def test_numbers_and_times_are_written_one_way():
    layers = [TensorError("a", 12.345, 0.0123456, 0.001), TensorError("b", 9.0, 12.0, 0.0)]
    html = render(replace(verification(measured="2026-11-04T07:05:09+00:00"), layers=layers))
    assert '<time datetime="2026-11-04T07:05:09+00:00">4 November 2026, 07:05 UTC</time>' in html
    assert ">1.235e-02<" in html and ">1.200e+01<" in html
    nats = re.findall(r"<span>([^<]*) nats</span>", html)
    assert len(nats) == 24 and all(re.fullmatch(r"\d\.\d\de[+-]\d\d", text) for text in nats)
    assert re.search(r"largest difference \d+\.\d{3}<", html)


def test_without_a_reference():
    result = verification(reference=False)
    page = Page(render(replace(result, accuracy=msgspec.structs.replace(result.accuracy, reference=None))))
    assert page.all("img") == []
    assert len(page.all("svg")) == 2
    assert "\N{EN DASH}" in page.text() and "Reference none" in page.text().replace("  ", " ")


def test_failed_and_untrained_are_said():
    found = Diagnosis("pre-processing", "look at the images")
    result = verification(outcome="failed", diagnosis=found, failures=[f"image {i}: damaged" for i in range(130)])
    result.manifest.model.trained = False
    page = Page(render(result))
    text = page.text()
    assert {"failed verdict", "suspected verdict"} <= {attributes.get("class") for attributes in page.all("p")}
    assert "Diagnosis (pre-processing): look at the images" in " ".join(text.split())
    assert "Failed" in text and "Passed" not in text
    assert "Untrained: random weights" in text
    assert "130 images could not be read" in text
    assert "image 99: damaged" in text and "image 100: damaged" not in text and "and 30 more" in text


def test_layers_are_shown_when_they_were_compared():
    layers = [TensorError("layer1.0.relu", 12.34, 0.05, 0.001), TensorError("exact", float("inf"), 0.05, 0.0)]
    text = Page(render(replace(verification(), layers=layers))).text()
    assert "layer1.0.relu" in text and "12.3" in text and "0.100" in text


def test_written_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "new/report.html"
    write_report(path, verification())
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(InputError, match=r"report.html cannot be written \(No space left\)"):
            write_report(path, verification(seed=1))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_file_names_that_are_not_unicode(tmp_path):
    write_report(tmp_path / "x.html", verification(name="\udcff{i}.jpg"))
    assert "udcff" in (tmp_path / "x.html").read_text("utf-8")
