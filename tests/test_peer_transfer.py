"""Attended transfers between real phones: linphone knows Replaces, this baresip does not; and linphone as a
caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.audio import likeness, steady_noise
from tests.linphone import Linphone
from tests.peers import LOOPBACK, Gateway
from tests.softphone import Desk, Line, Softphone, operated

pytestmark = pytest.mark.peer
RATE = 8_000
REFUSED = 'sip_responses_total{code="603",method="REFER"}'
OUT = {
    "MG_OUTBOUND__ENABLED": "true",
    "MG_OUTBOUND__PREFIXES": "phone,bob",
    "MG_OUTBOUND__HOSTS": LOOPBACK,
}


def _pass(seconds: float) -> None:
    threading.Event().wait(seconds)


def _until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        _pass(0.05)


def _answered(desk: Desk) -> int:
    return [call["state"] for call in desk.ask("GET", "/calls")[1]["calls"]].count("answered")


def test_linphone_hears_itself(tmp_path: Path) -> None:
    noise = steady_noise(40, RATE)
    with Gateway(tmp_path, **operated()) as gateway, Linphone(tmp_path / "phone", "ann", noise) as phone:
        phone.dial(gateway.uri)
        _pass(4.0)
        assert Desk(gateway).call()["media"]["lost"] == 0
        # It bends what it plays to a clock of its own, 0.90 to 0.998; what is not the echo has 0.2.
        assert likeness(phone.heard()[RATE:], noise, RATE) >= 0.8
        gateway.wait_for_slots(0, 5.0)


def test_two_linphones_are_joined_and_the_replaced_call_is_ended_by_the_phone(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated(**OUT)) as gateway:
        desk = Desk(gateway)
        with (
            Linphone(tmp_path / "ann", "ann", steady_noise(30, RATE)) as ann,
            Linphone(tmp_path / "bob", "bob", steady_noise(30, RATE, seed=2), answers=True) as bob,
        ):
            ann.dial(gateway.uri)
            first = desk.until(state="answered")
            _, second = desk.ask("POST", "/calls", {"to": bob.uri})
            _until(lambda: _answered(desk) == 2)
            done = desk.ask("POST", f"/calls/{first['id']}/transfer", {"call": second["id"]})
            assert done == (200, {"transferred": True})
            bob.wait_for("Media streams established with sip:ann.* for call 2", 5.0)
            gateway.wait_for_slots(0, 5.0)
            ended = desk.told(second["id"])[-1]
            assert ended["type"] == "ended" and ended["by"] == "caller", "his phone replaced the call"


def test_two_baresips_are_joined_and_we_take_our_leave_of_the_second(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated(**OUT)) as gateway:
        desk = Desk(gateway)
        with (
            Softphone(tmp_path / "colleague", steady_noise(30, RATE), Line(answers=True)) as colleague,
            Softphone(tmp_path / "phone", steady_noise(30, RATE)) as phone,
        ):
            phone.dial(gateway.uri)
            first = desk.until(state="answered")
            _, second = desk.ask("POST", "/calls", {"to": colleague.uri})
            _until(lambda: _answered(desk) == 2)
            done = desk.ask("POST", f"/calls/{first['id']}/transfer", {"call": second["id"]})
            assert done == (200, {"transferred": True})
            gateway.wait_for_slots(0, 5.0)
            ended = desk.told(second["id"])[-1]
            assert (ended["by"], ended["reason"]) == ("gateway", "transferred")
            assert "terminated" not in phone.text.rpartition("Call established")[2].partition("Call with")[0]


def test_a_phone_that_would_transfer_us_is_declined_and_stays_with_the_agent(tmp_path: Path) -> None:
    """linphone asks us by REFER with Replaces to join its other call: 603, and nothing else changes."""
    with Gateway(tmp_path, **operated()) as gateway:
        desk = Desk(gateway)
        noise = steady_noise(30, RATE)
        with (
            Linphone(tmp_path / "ann", "ann", noise) as ann,
            Linphone(tmp_path / "bob", "bob", noise, answers=True) as bob,
        ):
            ann.dial(gateway.uri)
            call = desk.until(state="answered")
            ann.tell("pause")
            desk.until(held_by_caller=True)
            ann.dial(bob.uri)
            ann.tell("transfer 1 --to-call 2")
            _until(lambda: gateway.metrics().get(REFUSED) == 1)
            ann.tell("terminate 2")
            bob.wait_for("ended", 5.0)
            ann.tell("resume 1")
            assert desk.until(held_by_caller=False, state="answered")["id"] == call["id"]


def test_a_baresip_that_would_send_us_elsewhere_is_declined(tmp_path: Path) -> None:
    """This one hangs up then: a refusal is no reason for us to."""
    with Gateway(tmp_path, **operated()) as gateway:
        desk = Desk(gateway)
        with Softphone(tmp_path / "phone", steady_noise(30, RATE)) as phone:
            phone.dial(gateway.uri)
            call = desk.until(state="answered")
            phone.tell("transfer", f"sip:elsewhere@{LOOPBACK}:9")
            phone.wait_for("transfer failure: 603", 5.0)
            gateway.wait_for_slots(0, 5.0)
            assert desk.told(call["id"])[-1]["by"] == "caller"
