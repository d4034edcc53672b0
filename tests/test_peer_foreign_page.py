"""The page that docs/browser.md tells others to write, served from another origin, in a real Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.chromium import chromium
from tests.live_gateway import live_gateway
from tests.peers import Gateway

pytestmark = pytest.mark.peer

DOCUMENT = Path(__file__).parent.parent / "docs" / "browser.md"
PAGE = """<!doctype html><script>{script}
window.told = [];
</script>"""


def foreign_site() -> web.Application:
    """Somebody's site whose only page holds the document's script."""
    found = re.search(r"```js\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert found
    page = PAGE.replace("{script}", found[1])

    async def serve(request: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    site = web.Application()
    site.router.add_get("/", serve)
    return site


async def test_a_page_of_another_origin_calls_hears_of_it_and_hangs_up(tmp_path: Path) -> None:
    async with TestServer(foreign_site(), host="127.0.0.1") as server, chromium() as browser:
        origin = str(server.make_url("")).rstrip("/")
        tiny = {"MG_ENGINE__KIND": "tiny", "MG_ENGINE__SLOTS": "1", "OMP_NUM_THREADS": "1"}
        with Gateway(tmp_path, MG_HTTP__ORIGINS=origin, **tiny) as gateway:
            page = await browser.new_page()
            await page.goto(origin)
            await page.evaluate(
                "async (url) => { window.hangUp = await call(url, (message) => told.push(message)); }",
                gateway.page.rstrip("/"),
            )
            for kind in ("agent_started", "text", "stats"):
                await page.wait_for_function(f"told.some(({{type}}) => type === '{kind}')", timeout=20_000)
            started = await page.evaluate("told.find(({type}) => type === 'agent_started')")
            assert started["at_ms"] >= 0 and started["over_caller"] in (True, False)
            assert await page.evaluate("window.hangUp().then(({status}) => status)") == 204
            assert gateway.slots_used() == 0


async def test_a_page_that_is_not_listed_is_refused_before_it_costs_a_slot() -> None:
    async with (
        TestServer(foreign_site(), host="127.0.0.1") as server,
        chromium() as browser,
        live_gateway() as gateway,
    ):
        page = await browser.new_page()
        await page.goto(str(server.make_url("")))
        failed = await page.evaluate(
            "(url) => call(url, () => {}).then(() => null, (error) => String(error))", gateway.url
        )
        assert failed and not gateway.switchboard.calls
