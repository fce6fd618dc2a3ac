"""The report in a real browser: it renders, sorts, shows its pictures, runs no name and asks for nothing."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image
from report_data import EVIL, hostile, verification

from infer.verify.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=2000",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")


@pytest.fixture
def browse(tmp_path):
    """``browse(address, *flags)``: run headless Chromium with an empty profile; what it prints."""

    def run(address, *flags):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, address]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return done.stdout.decode()

    return run


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report, and what it is about."""
    result = verification()
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, result)
    return path, result


def column(dom, number):
    """Cells of a column of the table of classes, as text."""
    table = dom[dom.index('<table id="class-table">') :]
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr")[1:]]
    return [row[number] for row in rows]


def expected(result, key):
    return [f"{value:.2f}" for value in sorted(key(row) for row in result.details.classes)]


@pytest.mark.parametrize("falling", [False, True])
def test_the_address_sorts_the_classes(browse, report, falling):
    path, result = report
    dom = browse(f"{path.as_uri()}#sort={'-' if falling else ''}top1", "--dump-dom")
    values = expected(result, lambda row: row.top1)
    assert column(dom, 3) == values[:: -1 if falling else 1]
    assert len(set(values)) > 3
    order = "descending" if falling else "ascending"
    assert re.findall(r'<th [^>]*data-key="(\w+)"[^>]*aria-sort="(\w+)"', dom) == [("top1", order)]


def probed(path, script):
    """A copy of the report without its policy and with ``script`` at the end."""
    html = path.read_text("utf-8")
    html = re.sub(r"<meta http-equiv.*?>", "", html)
    copy = path.with_name("probed.html")
    copy.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


PROBE = """addEventListener("load", () => {
  const heads = [...document.querySelectorAll("#class-table th button")];
  const widths = [...document.images].map((image) => image.naturalWidth);
  const loaded = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length;
  const box = document.getElementById("filter");
  box.value = "CLASS 1";
  box.dispatchEvent(new Event("input"));
  const shown = document.getElementById("shown").textContent;
  heads[5].click();
  const wide = document.documentElement.scrollWidth > innerWidth;
  setTimeout(() => { document.title = JSON.stringify([widths, loaded, shown, location.hash, wide]); }, 50);
});"""


def test_pictures_filter_and_buttons(browse, report):
    path, _ = report
    dom = browse(probed(path, PROBE).as_uri(), "--dump-dom", "--window-size=500,900")
    widths, loaded, shown, address, wide = json.loads(re.search("<title>(.*?)</title>", dom)[1])
    assert widths == [64] * 24
    assert (loaded, shown, address) == (
        0,
        "3 classes",
        "#sort=-change",
    )  # it is sorted by the change already, so the other way
    assert not wide  # on a narrow screen the tables scroll, not the page
    changes = [text.replace("\N{MINUS SIGN}", "-") for text in column(dom, 5)]
    assert changes == sorted(changes, key=float, reverse=True)
    assert sum("hidden" in row for row in re.findall(r"<tr[^>]*>", dom)) == 9  # class 1, 10 and 11 are left


SIZES = """addEventListener("load", () => {
  const size = (text) => {
    const picture = text.ownerSVGElement;
    return parseFloat(getComputedStyle(text).fontSize) * picture.clientWidth / picture.viewBox.baseVal.width;
  };
  const plots = [...document.querySelectorAll("svg text")].map(size);
  const others = [...document.querySelectorAll("small, figcaption, td, dd, p, a")]
    .map((part) => parseFloat(getComputedStyle(part).fontSize));
  document.title = JSON.stringify([innerWidth, Math.min(...plots), Math.min(...others)]);
});"""


def test_no_text_is_smaller_than_eleven_pixels(browse, report):
    """In frames, since a window has a least width."""
    path, _ = report
    inner, widths = probed(path, SIZES), [320, 360, 455, 500, 700, 850, 1280]
    outer = inner.with_name("frames.html")
    frames = "".join(
        f'<iframe src="{inner.name}" width="{width}" height="800" style="border:0"></iframe>' for width in widths
    )
    get = "[...document.querySelectorAll('iframe')].map((one) => JSON.parse(one.contentDocument.title))"
    then = f'addEventListener("load", () => setTimeout(() => {{ document.title = JSON.stringify({get}); }}, 50))'
    outer.write_text(f"{frames}<script>{then}</script>")
    dom = browse(outer.as_uri(), "--dump-dom", "--allow-file-access-from-files", "--window-size=1400,900")
    found = json.loads(re.search("<title>(.*?)</title>", dom)[1])
    assert [inside for inside, _, _ in found] == widths
    assert all(min(plots, others) >= 11 for _, plots, others in found), found


@pytest.fixture
def server():
    """A web server that remembers what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{http.server_port}", asked
        http.shutdown()


def test_names_run_nothing_and_load_nothing(browse, tmp_path, server):
    address, asked = server
    write_report(tmp_path / "evil.html", hostile())
    dom = browse((tmp_path / "evil.html").as_uri(), "--dump-dom")
    assert "<title>net int8 on openvino</title>" in dom
    assert "&lt;script&gt;" in dom
    # Should the escaping ever fail, the policy of the page still stops both.
    html = (tmp_path / "evil.html").read_text("utf-8")
    leak = f'<img src="http://{address}/leak"><script>document.title = "owned"</script>'
    (tmp_path / "evil.html").write_text(html.replace("<main>", f"<main>{leak}"), encoding="utf-8")
    dom = browse((tmp_path / "evil.html").as_uri(), "--dump-dom")
    assert "/leak" in dom and "<title>net int8 on openvino</title>" in dom
    assert asked == []
    without = probed(tmp_path / "evil.html", "")
    assert "<title>owned</title>" in browse(without.as_uri(), "--dump-dom")  # the probe does leak without the policy
    assert asked == ["/leak"]
    assert EVIL not in html


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_draws_in_light_and_dark(browse, report, tmp_path, theme):
    path, _ = report
    picture = tmp_path / "page.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    browse(path.as_uri(), f"--screenshot={picture}", "--window-size=1100,1400", *dark)
    pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (1400, 1100)
    background = pixels[5, 5]
    assert (background.mean() > 200) == (theme == "light")
    blue = (pixels[..., 2] > 180) & (pixels[..., 0] < 130)  # the bars of the plots
    assert blue.sum() > 5_000
