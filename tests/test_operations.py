"""The agent's orders, the watch over long and silent calls, and the words about a call's line."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from engine.api import TextSpoken
from gateway.config import LimitSettings, PersonaSettings, Settings
from gateway.config_phone import OutboundSettings, TrunkSettings
from gateway.legs.sip_leg import SipLeg
from gateway.legs.trunks import Trunks
from gateway.operations import Operations, log_quality
from gateway.phone_metrics import PhoneMetrics
from gateway.watch import WatchLimits
from gateway.watcher import CallWatcher
from tests.phone import Phone, speech
from tests.sip_house import House, answered_call, open_house, until, until_sent
from tests.sip_wire import respond


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


def operations(house: House, **settings: object) -> Operations:
    return Operations(house.switchboard, house.line, None, Settings(**settings))  # type: ignore[arg-type]


async def test_the_agent_hangs_up_after_its_goodbye(house: House) -> None:
    running = operations(house)
    call, _ = await answered_call(house)
    call.deliver(TextSpoken(9, " Goodbye."))
    call.deliver(TextSpoken(10, "<hangup>"))
    await until(lambda: house.requests("BYE"))
    await house.settle()
    assert call.ended_by == "agent" and call.ended.is_set()
    await running.stop()


async def test_the_agent_transfers_to_its_persona_s_desk_and_keeps_who_was_refused(house: House) -> None:
    desk = PersonaSettings(transfer_to="sip:desk@198.51.100.30")
    running = operations(house, personas={"default": desk})
    call, _ = await answered_call(house)
    for _ in range(2):
        call.deliver(TextSpoken(10, "<transfer>"))
    refer = await until_sent(house, "REFER")
    assert "sip:desk@198.51.100.30" in str(refer.headers.get("refer-to"))
    house.phone_says(respond(refer, 480, tag="caller"))
    await until(lambda: not running.orders._obeying)
    assert not call.ended.is_set() and not house.requests("REFER"), "a second order while one is under way"
    await running.stop()


async def test_an_order_to_transfer_without_a_desk_is_no_transfer(house: House) -> None:
    running = operations(house)
    call, _ = await answered_call(house)
    call.deliver(TextSpoken(1, "<transfer>"))
    await until(lambda: not running.orders._obeying)
    assert not house.requests("REFER") and not call.ended.is_set()
    await running.stop()


async def test_a_call_that_lasts_too_long_is_hung_up_with_the_reason(house: House) -> None:
    watcher = CallWatcher(house.switchboard, WatchLimits(max_call_s=60.0), WatchLimits())
    call, _ = await answered_call(house)
    watcher.look(1000.0)
    watcher.look(1059.0)
    assert call.ended_by == ""
    watcher.look(1060.0)
    await until(lambda: house.requests("BYE"))
    assert "as long as it may" in str(house.requests("BYE")[0].headers.get("reason"))
    await house.settle()
    assert not watcher._watches, "nothing is kept of a call that is over"


async def test_a_caller_who_says_nothing_is_hung_up_and_one_who_speaks_is_not(house: House) -> None:
    watcher = CallWatcher(house.switchboard, WatchLimits(caller_silence_s=10.0), WatchLimits())
    call, _ = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    await house.settle()
    caller = Phone(np.tile(speech(), 10))
    caller.peer = ("127.0.0.1", call.leg.port)
    for second in range(40):
        for _ in range(25):
            caller.say()
            house.bench.step()
        watcher.look(float(second))
    assert call.ended_by == "", "he speaks"
    for _ in range(100):
        house.bench.step()
    for second in range(40, 62):
        watcher.look(float(second))
    assert call.ended_by == "gateway" and "silent" in call.end_reason


def test_a_call_out_ends_at_the_shorter_of_both_limits() -> None:
    class Nobody:
        def on_admitted(self, listener: object) -> None:
            pass

    limits = LimitSettings(max_call_s=100.0)
    settings = Settings(limits=limits, outbound=OutboundSettings(max_call_s=50.0))
    watcher = Operations(Nobody(), None, None, settings).watcher  # type: ignore[arg-type]
    assert watcher.limits["inbound"].max_call_s == 100.0
    assert watcher.limits["outbound"].max_call_s == 50.0


async def test_the_end_of_a_call_tells_of_its_line_and_of_nobody(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trunks = Trunks(
        {"carrier": TrunkSettings(server="198.51.100.20")}, {}, house.script.agent.ua, house.shell.transmit
    )
    trunks.start(0.0)
    metrics = PhoneMetrics(house.switchboard, house.script.agent.ua, trunks)
    running = operations(house)
    call, _ = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    caller = Phone(speech())
    caller.peer = ("127.0.0.1", call.leg.port)
    for _ in range(50):
        caller.say()
        house.bench.step()
    call.end_soon("agent", "done")
    await house.settle()
    (line,) = [r.getMessage() for r in caplog.records if " line: " in r.getMessage()]
    assert "codec=PCMU srtp=none loss=0.0000" in line and "mos=4." in line
    assert "sip:" not in line and "ann" not in line
    registry = CollectorRegistry()
    registry.register(metrics)
    told = generate_latest(registry).decode()
    assert 'sip_responses_total{code="200",method="INVITE"} 1.0' in told
    assert "call_mos_count 1.0" in told and 'sip_trunk_up{trunk="carrier"} 0.0' in told
    assert 'sip_messages_total{result="malformed"} 0.0' in told
    await running.stop()


async def test_a_browser_s_call_has_no_such_line(house: House, caplog: pytest.LogCaptureFixture) -> None:
    from gateway.switchboard import Offer

    call = await house.switchboard.admit(Offer("webrtc"))
    log_quality(call)
    assert " line: " not in caplog.text
