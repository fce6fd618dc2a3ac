"""``GET /``: one small page for people. It loads nothing, and its policy would not let it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infer.serve.endpoint import route
from infer.serve.exchange import Exchange
from infer.serve.service import Service


class Page:
    """The route. The page holds nothing of the models, so it needs no token; what it asks for does."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._html = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        self._headers = {
            "content-security-policy": policy(self._html),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }

    def routes(self) -> list[Route]:
        """``GET /``."""
        return [route(self._service, "GET", "/", "page", self.page, public=True)]

    async def page(self, exchange: Exchange, request: Request) -> Response:
        """The page."""
        return Response(self._html, media_type="text/html", headers=self._headers)


def policy(html: str) -> str:
    """A Content-Security-Policy that allows the page's own style and script, and requests to this server."""

    def hashed(tag: str) -> str:
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {hashed('script')}; style-src {hashed('style')}; img-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
