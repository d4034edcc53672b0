"""The operators' API over real HTTP: who gets in, what is told, what is refused and how."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
from pydantic import SecretStr

from engine.api import TextSpoken
from gateway.admin_server import AdminServer
from gateway.caps import CallCaps, CapLimits
from gateway.config_phone import AdminSettings, TrunkSettings
from gateway.control import CallControl
from gateway.legs.trunks import Trunks
from gateway.media.messages import DtmfReceived, MediaStats
from gateway.quality import quality_of
from gateway.switchboard import Offer
from tests.sip_house import CONTACT, House, answered_call, open_house, until, until_sent
from tests.sip_wire import OFFER, respond

KEY = "a key for operators only"


@dataclass
class Desk:
    """An operator's program and the gateway it speaks to."""

    house: House
    server: AdminServer
    client: aiohttp.ClientSession
    control: CallControl

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
        url = f"http://127.0.0.1:{self.server.port}{path}"
        async with self.client.request(method, url, json=body) as answer:
            assert answer.content_type == "application/json", await answer.text()
            return answer.status, await answer.json()


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with open_house() as house:
        carrier = TrunkSettings(server="198.51.100.20:5070")
        trunks = Trunks({"carrier": carrier}, {}, house.script.agent.ua, house.shell.transmit)
        caps = CallCaps(CapLimits(True, ("+49",), concurrent=1))
        control = CallControl(house.switchboard, house.line, trunks, caps, "carrier")
        server = AdminServer(control, AdminSettings(port=0, key=SecretStr(KEY)))
        await server.open()
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as client:
            yield Desk(house, server, client, control)
        control.stop()
        await server.stop()


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", KEY, f"Basic {KEY}", f"Bearer {KEY}s"]
)
async def test_without_the_key_every_route_is_401(desk: Desk, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with aiohttp.ClientSession(headers=headers) as stranger:
        for path in ("/v1/calls", "/v1/trunks", "/v1/calls/x/hangup", "/nothing"):
            url = f"http://127.0.0.1:{desk.server.port}{path}"
            async with stranger.get(url) as answer:
                assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_call_is_shown_with_its_line_and_its_end(desk: Desk) -> None:
    call, _ = await answered_call(desk.house)
    status, listed = await desk.ask("GET", "/v1/calls")
    assert status == 200
    (shown,) = listed["calls"]  # type: ignore[misc]
    assert (shown["id"], shown["state"], shown["codec"], shown["srtp"]) == (call.id, "answered", "PCMU", None)
    assert shown["leg"] == "sip" and shown["direction"] == "inbound" and shown["answered_at"] is not None
    assert {"loss", "jitter_ms", "round_trip_ms", "mos", "remote_mos"} <= shown["media"].keys()
    ending = asyncio.ensure_future(
        desk.ask("POST", f"/v1/calls/{call.id}/hangup", {"reason": "closing time"})
    )
    await until(lambda: desk.house.requests("BYE"))
    assert "closing time" in str(desk.house.requests("BYE")[0].headers.get("reason"))
    await desk.house.settle()
    assert await ending == (200, {"ended": True})
    status, shown = await desk.ask("GET", f"/v1/calls/{call.id}")
    assert status == 200 and shown["state"] == "ended" and shown["reason"] == "closing time"
    assert (await desk.ask("GET", "/v1/calls"))[1] == {"calls": []}
    assert (await desk.ask("POST", f"/v1/calls/{call.id}/hangup"))[0] == 404, "it is over"


async def test_operators_follow_text_keys_and_states_and_orders_are_no_text(desk: Desk) -> None:
    call, _ = await answered_call(desk.house)
    url = f"http://127.0.0.1:{desk.server.port}/v1/calls/{call.id}/events"
    async with desk.client.get(url) as stream:
        assert stream.content_type == "text/event-stream"
        call.deliver(TextSpoken(3, " Hello"))
        assert call.media_number is not None
        call.deliver(DtmfReceived(call.row, call.media_number, 0, "7", 120))
        call.press("7", 120, "info")
        call.deliver(TextSpoken(4, "<transfer>"))
        call.end_soon("agent", "done")
        await asyncio.sleep(0)
        await desk.house.settle()
        told = [
            json.loads(line[5:]) for line in (await stream.text()).splitlines() if line.startswith("data:")
        ]
    told = [message for message in told if message["type"] != "stats"]
    assert [message["type"] for message in told] == ["state", "text", "dtmf", "order", "ended"]
    assert told[1]["text"] == " Hello" and told[2]["digit"] == "7" and told[3]["order"] == "transfer"


async def test_hold_resume_and_a_refused_transfer(desk: Desk) -> None:
    call, _ = await answered_call(desk.house)
    for route, direction, held in (("hold", "a=recvonly", True), ("resume", "", False)):
        asking = asyncio.ensure_future(desk.ask("POST", f"/v1/calls/{call.id}/{route}"))
        sent = await until_sent(desk.house, "INVITE")
        theirs = OFFER + (f"{direction}\r\n".encode() if direction else b"")
        desk.house.phone_says(respond(sent, 200, tag="caller", body=theirs, extra=CONTACT))
        assert await asking == (200, {"held": held})
        desk.house.script.sent.clear()
    body = {"to": "sip:desk@198.51.100.30"}
    asking = asyncio.ensure_future(desk.ask("POST", f"/v1/calls/{call.id}/transfer", body))
    sent = await until_sent(desk.house, "REFER")
    desk.house.phone_says(respond(sent, 486, tag="caller"))
    status, told = await asking
    assert status == 502 and told["sip_code"] == 486 and "refused" in str(told["error"])
    assert (await desk.ask("GET", f"/v1/calls/{call.id}"))[1]["state"] == "answered"
    assert (await desk.ask("POST", f"/v1/calls/{call.id}/dtmf", {"digits": "12#"}))[0] == 202


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        ("transfer", {}, "either to"),
        ("transfer", {"to": "desk"}, "target"),
        ("transfer", {"to": 5}, "to must be"),
        ("transfer", {"call": "nobody"}, "no such call"),
        ("dtmf", {}, "digits is missing"),
        ("dtmf", {"digits": "12x"}, "digits"),
        ("dtmf", {"digits": "1", "loud": "yes"}, "unknown field 'loud'"),
        ("hold", ["no"], "object"),
        ("hangup", {"reason": "x" * 300}, "256"),
    ],
)
async def test_a_bad_body_is_named(desk: Desk, route: str, body: object, words: str) -> None:
    call, _ = await answered_call(desk.house)
    status, told = await desk.ask("POST", f"/v1/calls/{call.id}/{route}", body)
    assert status in (400, 404) and words in str(told["error"])
    assert not call.ended.is_set()


async def test_bodies_are_bounded_and_must_be_json(desk: Desk) -> None:
    call, _ = await answered_call(desk.house)
    url = f"http://127.0.0.1:{desk.server.port}/v1/calls/{call.id}/dtmf"
    for data, status in ((b'{"digits": "' + b"1" * 9000 + b'"}', 413), (b"{", 400), (b"\xff\xfe", 400)):
        async with desk.client.post(url, data=data, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == status and "error" in await answer.json()
    async with desk.client.post(url, data=b"digits=1") as answer:
        assert answer.status == 400
    assert (await desk.ask("DELETE", "/v1/calls"))[0] == 405
    assert (await desk.ask("GET", "/v2/calls"))[0] == 404


async def test_a_browser_s_call_can_be_hung_up_but_not_held(desk: Desk) -> None:
    call = await desk.house.switchboard.admit(Offer("webrtc"))
    for route, body in (("hold", None), ("dtmf", {"digits": "1"}), ("transfer", {"to": "sip:a@b"})):
        assert (await desk.ask("POST", f"/v1/calls/{call.id}/{route}", body))[0] == 409
    assert (await desk.ask("POST", f"/v1/calls/{call.id}/hangup"))[0] == 200


async def test_a_call_is_placed_and_each_refusal_names_its_cap(desk: Desk) -> None:
    assert (await desk.ask("POST", "/v1/calls", {"to": "+1900"}))[1]["cap"] == "prefixes"
    assert (await desk.ask("POST", "/v1/calls", {"to": "ann"}))[0] == 400
    assert (await desk.ask("POST", "/v1/calls", {"to": "+4930", "persona": "nobody"}))[0] == 404
    status, placed = await desk.ask("POST", "/v1/calls", {"to": "+4930", "persona": "anna"})
    assert status == 202 and placed["state"] == "new" and placed["direction"] == "outbound"
    invite = await until_sent(desk.house, "INVITE")
    desk.house.phone_says(respond(invite, 180, extra=CONTACT))
    assert (await desk.ask("GET", f"/v1/calls/{placed['id']}"))[1]["state"] == "ringing"
    status, told = await desk.ask("POST", "/v1/calls", {"to": "+4931"})
    assert status == 429 and told["cap"] == "concurrent"
    desk.house.phone_says(respond(invite, 603, extra=CONTACT))
    await until(lambda: not desk.house.switchboard.calls)
    shown = (await desk.ask("GET", f"/v1/calls/{placed['id']}"))[1]
    assert shown["state"] == "ended" and shown["code"] == 603 and shown["answered_at"] is None


async def test_trunks_are_told_by_name_and_state(desk: Desk) -> None:
    assert desk.control.trunks is not None
    desk.control.trunks.start(0.0)
    options = desk.house.requests("OPTIONS")[0]
    told = (await desk.ask("GET", "/v1/trunks"))[1]
    assert told["trunks"] == [{"name": "carrier", "server": "198.51.100.20:5070", "up": None, "code": None}]
    answer = respond(options, 200, tag="carrier")
    desk.house.script.agent.ua.receive_datagram(answer, desk.house.script.address, 0.1, "udp")
    while (event := desk.house.script.agent.ua.next_event()) is not None:
        desk.control.trunks.receive(event)
    (trunk,) = (await desk.ask("GET", "/v1/trunks"))[1]["trunks"]  # type: ignore[misc]
    assert trunk["up"] is True and trunk["code"] == 200


def test_quality_falls_with_loss_delay_and_the_other_side_s_reports() -> None:
    clean = quality_of(MediaStats(packets_received=1000, delay_ms=40.0))
    assert clean.mos > 4.3 and clean.loss == 0.0
    lossy = quality_of(MediaStats(packets_received=950, lost=50, delay_ms=40.0, remote_loss=0.1))
    assert lossy.loss == pytest.approx(0.05) and lossy.mos < 4.2 and lossy.remote_mos < lossy.mos
    far = quality_of(MediaStats(packets_received=1000, round_trip_ms=800.0))
    assert far.mos < 3.8
    assert quality_of(MediaStats()).loss == 0.0
