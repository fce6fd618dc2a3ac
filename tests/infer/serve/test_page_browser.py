"""The page in a real browser: pictures dropped, pasted and chosen, by keyboard, as a screen reader sees it."""

from __future__ import annotations

import base64
import json

import pytest
from chromium import CHROMIUM, Chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Chromium(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def page(browser, tiny_server):
    browser.open(tiny_server.url)
    browser.until("document.getElementById('model').textContent.includes('openvino')")
    browser.events.clear()
    return browser


def files(*named):
    """JavaScript: a DataTransfer with files."""
    parts = "".join(
        f"t.items.add(new File([Uint8Array.from(atob({json.dumps(base64.b64encode(data).decode())}), "
        f"(c) => c.charCodeAt(0))], {json.dumps(name)}, {{type: {json.dumps(kind)}}}));"
        for name, data, kind in named
    )
    return f"(() => {{ const t = new DataTransfer(); {parts} return t; }})()"


ANSWERS = "[...document.querySelectorAll('#answers > li')].map((li) => li.innerText)"


def test_it_says_which_model_answers(page):
    text = page.evaluate("document.getElementById('model').textContent")
    assert text.startswith("tiny, version 1: tiny, fp32, on openvino, CPU (")
    page.evaluate(
        "const s = document.getElementById('models'); s.selectedIndex = 1; s.dispatchEvent(new Event('change'))"
    )
    assert page.evaluate("document.getElementById('model').textContent").startswith("tiny, version 2")


def test_pictures_are_dropped(page, pictures, runner):
    named = [
        ("a.jpg", pictures[0], "image/jpeg"),
        ("<b>.png", pictures[1], "image/png"),
        ("bad.jpg", b"no", "image/jpeg"),
    ]
    page.evaluate(f"window.dispatchEvent(new DragEvent('drop', {{dataTransfer: {files(*named)}, cancelable: true}}))")
    page.until(f"{ANSWERS}.length === 3 && document.getElementById('status').textContent.startsWith('3 answers')")
    bad, second, first = page.evaluate(ANSWERS)
    for text, name, prediction in zip(
        (first, second), ("a.jpg", "<b>.png"), runner.classify(pictures[:2]), strict=True
    ):
        lines = text.split("\n")
        assert lines[0] == name
        best = prediction.top[0]
        assert next(line for line in lines[1:] if "%" in line) == f"{best.label}: {100 * best.score:.1f} %"
        assert " ms in all; in the server, ms: decode " in lines[-1]
    assert "not an image" in bad and "%" not in bad
    shown = page.until(
        "[...document.images].every((i) => i.complete) && [...document.images].map((i) => i.naturalWidth)"
    )
    assert shown == [0, 51, 50]


def test_a_picture_is_pasted(page, pictures, runner):
    transfer = files(("p.webp", pictures[2], "image/webp"))
    page.evaluate(f"window.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: {transfer}}}))")
    page.until(f"{ANSWERS}.length === 1 && {ANSWERS}[0].includes('%')")
    label = runner.classify(pictures[2:3])[0].top[0].label
    assert page.until("document.getElementById('status').textContent.startsWith('p.webp')")
    assert page.evaluate("document.getElementById('status').textContent") == f"p.webp: {label}"


def test_the_keyboard_is_enough(page, pictures, tmp_path):
    """Tab to the button, press it, and choose a file in the dialogue that it opens."""
    (tmp_path / "k.jpg").write_bytes(pictures[0])
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.evaluate("document.activeElement.blur()")
    for _ in range(6):
        page.press("Tab", 9)
        if page.evaluate("document.activeElement.id") == "choose":
            break
    assert page.evaluate("document.activeElement.id") == "choose"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter", 13, "\r")
    page.until("true")
    opened = [event for event in page.events if event.get("method") == "Page.fileChooserOpened"]
    assert opened
    page.call(
        "DOM.setFileInputFiles", files=[str(tmp_path / "k.jpg")], backendNodeId=opened[0]["params"]["backendNodeId"]
    )
    page.until(f"{ANSWERS}.length === 1 && {ANSWERS}[0].startsWith('k.jpg') && {ANSWERS}[0].includes('%')")


def test_what_a_screen_reader_sees(page):
    tree = page.tree()
    roles = [role for role, _ in tree]
    assert ("heading", "What is on a picture") in tree and ("button", "Choose pictures") in tree
    assert ("list", "Answers") in tree and "main" in roles and "status" in roles
    assert any(role == "combobox" and name.startswith("Model") for role, name in tree)
    assert not [role for role, name in tree if role in ("button", "combobox", "textbox", "img", "image") and not name]
    assert page.evaluate("document.documentElement.lang") == "en"


def test_it_asks_its_own_server_only(page, tiny_server, pictures):
    page.events.clear()
    page.evaluate("location.reload()")
    page.until(
        "document.readyState === 'complete' && document.getElementById('model').textContent.includes('openvino')"
    )
    asked = [e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked and all(address.startswith((tiny_server.url, "blob:")) for address in asked)
    errors = [e["params"]["entry"] for e in page.events if e.get("method") == "Log.entryAdded"]
    assert [one for one in errors if one["level"] == "error" and "favicon" not in one.get("url", "")] == []


def test_the_policy_stops_what_does_not_belong_to_it(page, tiny_server):
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)"
    )
    assert page.evaluate("window.owned === undefined")


def test_on_a_narrow_screen_nothing_is_cut(page):
    page.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
    try:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_a_server_with_tokens_asks_for_one(browser, serve, tmp_path, pictures):
    token = "correct-horse-battery"
    (tmp_path / "tokens").write_text(token)
    with serve(tokens=tmp_path / "tokens") as server:
        browser.open(server.url)
        browser.until("document.getElementById('model').textContent.startsWith('authorization: ')")
        assert browser.evaluate("!document.getElementById('keys').hidden")
        browser.evaluate(
            f"const k = document.getElementById('key'); k.value = {json.dumps(token)};"
            "k.dispatchEvent(new Event('change'))"
        )
        browser.until("document.getElementById('model').textContent.includes('openvino')")
        transfer = files(("a.jpg", pictures[0], "image/jpeg"))
        browser.evaluate(f"window.dispatchEvent(new DragEvent('drop', {{dataTransfer: {transfer}}}))")
        browser.until(f"{ANSWERS}.length === 1 && {ANSWERS}[0].includes('%')")
        browser.open("about:blank")
