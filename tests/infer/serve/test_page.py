"""The page: what it is made of."""

from __future__ import annotations

import re

import pytest


@pytest.fixture(scope="module")
def page(tiny_server):
    with tiny_server.client() as http:
        return http.get("/")


def test_nothing_comes_from_the_network(page):
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.findall(r"https?://|//[a-z]|@import|url\(", page.text)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page.text)
    assert len(page.text) < 10_000


def test_the_policy_allows_the_page_alone(page):
    policy = dict(rule.strip().partition(" ")[::2] for rule in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in page.headers["content-security-policy"]
    assert policy["connect-src"] == "'self'" and policy["img-src"] == "blob:"


def test_no_handler_stands_in_a_tag(page):
    """The policy would not run it."""
    assert not re.findall(r"<[^>]+ on[a-z]+=", page.text.partition("<script>")[0])
    assert "innerHTML" not in page.text


def test_the_page_is_small_and_says_nothing_of_the_machine(page, tiny, root):
    assert str(tiny) not in page.text and str(root) not in page.text
