"""Calls from a real Firefox through the page: a tone as its microphone, its addresses hidden behind names."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.live_gateway import live_gateway
from tests.peers import LOOPBACK, Program

pytestmark = pytest.mark.peer
PREFERENCES = {
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    "media.peerconnection.ice.loopback": True,
    "media.autoplay.default": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.normandy.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
}
READY_S = 60.0


class Tab:
    """One page of a browser that is told what to do by WebDriver BiDi."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._count = 0
        self._context = ""

    async def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        while True:
            answer = await asyncio.wait_for(self._socket.receive_json(), READY_S)
            if answer.get("id") == self._count:
                assert answer["type"] == "success", answer
                return dict(answer["result"])

    async def open(self, url: str) -> None:
        tree = await self.ask("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]
        await self.ask("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def reload(self) -> None:
        await self.ask("browsingContext.reload", context=self._context, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        result = await self.ask(
            "script.evaluate",
            expression=expression,
            target={"context": self._context},
            awaitPromise=True,
        )
        assert result["type"] == "success", result
        return result["result"].get("value")

    async def until(self, expression: str, within_s: float = 15.0) -> None:
        script = f"""new Promise((done, fail) => {{
            setTimeout(() => fail(document.body.innerText), {within_s * 1000});
            setInterval(() => ({expression}) && done(true), 50) }})"""
        assert await self.evaluate(script)


@asynccontextmanager
async def firefox(folder: Path) -> AsyncIterator[Tab]:
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("Firefox is not installed (Debian package firefox-esr)")
    profile = folder / "profile"
    profile.mkdir()
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    command = [
        program,
        "--headless",
        "--profile",
        str(profile),
        "--remote-debugging-port",
        "0",
        "about:blank",
    ]
    with Program(command, folder, {**os.environ, "HOME": str(folder)}) as browser:
        port = await asyncio.to_thread(
            browser.wait_for, r"WebDriver BiDi listening on ws://\S+:(\d+)", READY_S
        )
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://{LOOPBACK}:{port[1]}/session", max_msg_size=0) as socket,
        ):
            tab = Tab(socket)
            await tab.ask("session.new", capabilities={})
            yield tab


async def test_firefox_calls_is_heard_hears_and_leaves_no_call_behind_when_it_reloads(tmp_path: Path) -> None:
    async with live_gateway(slots=2) as gateway, firefox(tmp_path) as tab:
        await tab.open(gateway.url.replace(LOOPBACK, "localhost"))
        for _ in range(2):
            await tab.evaluate("document.querySelector('#call').click()")
            await tab.until("document.body.dataset.state === 'talking'")
            (call,) = gateway.switchboard.calls.values()
            # Its figures come from the browser's own counts of what it received.
            await tab.until("/[0-9]+ ms/.test(document.body.innerText)")
            stats = call.plane.stats(call.row)
            assert stats.packets_received >= 25 and stats.lost <= 2
            rows, row = gateway.engine.rows, call.row
            heard = rows.read_heard(row, int(rows.heard_end[row]) - 12_000, 12_000)
            assert abs(heard).max() > 0.05, "its tone was heard"
            await tab.reload()
            await gateway.until_calls(0)
            assert call.ended_by == "caller"
