"""Page: the files of web/ as they go over HTTP: held in memory, typed, revalidated by their hash.

Read once at start: a file changed on disk is served after a restart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
INDEX = "index.html"


class PageMissing(Exception):
    """The page's files are not where the installation should have put them."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, ready to be sent."""

    body: bytes
    content_type: str
    etag: str


def folder() -> Path:
    """web/ of a checkout, or what the wheel carries of it. Raises PageMissing."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "web_assets", here.parent / "web"):
        if (candidate / INDEX).is_file():
            return candidate
    raise PageMissing(f"the web page is missing: {here / 'web_assets'}; install moshi-gateway again")


class Page:
    """The assets by name; nothing outside the folder, and no type that is not listed, is ever served."""

    def __init__(self, root: Path) -> None:
        self.assets = {path.name: _asset(path) for path in sorted(root.iterdir()) if path.suffix in TYPES}

    def response(self, name: str, request: web.Request) -> web.Response:
        """200, or 304 for a browser that has it. Raises HTTPNotFound."""
        asset = self.assets.get(name)
        if asset is None:
            raise web.HTTPNotFound
        headers = {
            "Content-Type": asset.content_type,
            "ETag": f'"{asset.etag}"',
            # No build step, so no hash in the names: ask each time, and mostly hear 304.
            "Cache-Control": "no-cache",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        known = request.if_none_match or ()
        if any(tag.value == asset.etag for tag in known):
            return web.Response(status=304, headers=headers)
        return web.Response(body=asset.body, headers=headers)


def _asset(path: Path) -> Asset:
    body = path.read_bytes()
    return Asset(body, TYPES[path.suffix], hashlib.sha256(body).hexdigest()[:24])
