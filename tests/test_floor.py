"""Barge-in through real parts: phone, media plane, echo canceller, speech detector, duplex, engine, floor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from engine.api import FRAME, Persona
from engine.echo import EchoStep, EchoStepper
from engine.rows import AudioRows
from engine.slots import SlotTable
from engine.tick import TickEngine
from gateway.duplex import DuplexEvent, Interrupted, Policy
from gateway.floor import Floor
from gateway.media.messages import MediaEvent, RtpMedia
from gateway.media.plane import MediaPlane, MediaSettings
from gateway.media.processing import DuplexProcessing
from gateway.switchboard import Offer, Switchboard
from tests.phone import Phone, bound_socket, speech

PERSONAS = {"default": Persona(), "polite": Persona("polite"), "notice": Persona("notice")}
POLICIES = {"polite": Policy.DUCK, "notice": Policy.NEVER}


class TalkerStepper(EchoStepper):
    """An agent that talks without end, and falls silent when it is told to."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots, 0.0, greeting=False)
        rng = np.random.default_rng(3)
        self._voice = (0.1 * rng.standard_normal(FRAME)).astype(np.float32)
        self.interrupted: list[int] = []
        self.released = 0

    def interrupt(self, slot: int, unheard_frames: int) -> None:
        self._silent[slot] = True
        self.interrupted.append(unheard_frames)

    def release(self, slot: int) -> None:
        self._silent[slot] = False
        self.released += 1

    def step(self, pcm: np.ndarray, active: np.ndarray) -> EchoStep:
        out = np.tile(self._voice, (len(active), 1)) * ~self._silent[:, None]
        return EchoStep(out, np.full(len(active), -1, np.int64), active)


@dataclass
class House:
    rows: AudioRows
    stepper: TalkerStepper
    engine: TickEngine
    processing: DuplexProcessing
    plane: MediaPlane
    switchboard: Switchboard
    floor: Floor
    step_number: int = 1_000
    events: list[DuplexEvent | MediaEvent] = field(default_factory=list)

    async def call(self, persona: str, phone: Phone) -> int:
        call = await self.switchboard.admit(Offer("sip", persona))
        call.on_event(self.events.append)  # type: ignore[arg-type]
        sock = bound_socket()
        phone.peer = sock.getsockname()
        media = RtpMedia("PCMU", 0, phone.sock.getsockname(), 77)
        call.media_opened(self.plane.open_rtp(call.row, sock, media))
        call.answered()
        return call.row

    async def run(self, phone: Phone, seconds: float) -> None:
        for _ in range(round(seconds * 50)):
            phone.say()
            self.step_number += 1
            now = self.step_number * 0.02
            self.plane.tick(now)
            self.engine.run_due(now + 0.005)
            phone.listen(self.step_number)
            if self.step_number % 4 == 0:
                await asyncio.sleep(0)
                self.switchboard.deliver_media_events()
                self.floor.carry()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    rows, stepper = AudioRows(2), TalkerStepper(2)
    engine = TickEngine("talker", stepper, rows, SlotTable(2), 0.005)
    processing = DuplexProcessing(2)
    plane = MediaPlane(rows, MediaSettings(kernel_times=False), processing)
    switchboard = Switchboard(engine, plane, PERSONAS)
    floor = Floor(switchboard, processing, POLICIES)
    made = House(rows, stepper, engine, processing, plane, switchboard, floor)
    engine.begin(made.step_number * 0.02 + 0.005)
    yield made
    plane.close_all()


def caller(silent_s: float) -> Phone:
    """Silence, then speech without a pause."""
    talk = speech()
    return Phone(np.concatenate([np.zeros(int(silent_s * 8_000), np.int16), talk, talk]))


def loudness(phone: Phone, first: int, last: int) -> float:
    """dBFS of what was heard in [first, last) steps."""
    from gateway.media import g711

    heard = [p for step, _, _, p in phone.heard if first <= step < last]
    pcm = g711.decode(np.frombuffer(b"".join(heard), np.uint8), 0).astype(np.float64) / 32_768
    return float(10 * np.log10(np.mean(pcm**2) + 1e-12))


async def test_a_caller_who_goes_on_speaking_silences_a_polite_agent(house: House) -> None:
    phone = caller(2.0)
    await house.call("polite", phone)
    await house.run(phone, 5.0)
    cuts = [event for event in house.events if isinstance(event, Interrupted)]
    assert len(cuts) == 1 and len(house.stepper.interrupted) == 1
    cut_step = 1_000 + cuts[0].at // 480
    assert loudness(phone, 1_060, 1_095) > -30
    assert loudness(phone, cut_step + 8, cut_step + 30) < -55, "nothing stale is sent after the cut"


async def test_the_agent_may_speak_again_when_the_caller_has_finished(house: House) -> None:
    phone = caller(2.0)
    await house.call("polite", phone)
    await house.run(phone, 2.0 + 2 * len(speech()) / 8_000 + 3.0)
    assert house.stepper.released >= 1
    assert loudness(phone, house.step_number - 25, house.step_number) > -30


@pytest.mark.parametrize("persona", ["notice", "default"])
async def test_others_are_heard_to_their_end(house: House, persona: str) -> None:
    phone = caller(2.0)
    await house.call(persona, phone)
    await house.run(phone, 5.0)
    assert not house.stepper.interrupted
    assert loudness(phone, 1_150, 1_240) > -30


async def test_what_the_caller_heard_is_counted_in_the_agents_own_samples(house: House) -> None:
    phone = caller(60.0)
    row = await house.call("polite", phone)
    await house.run(phone, 3.0)
    sent = house.plane.stats(row).samples_out
    spoken = house.plane.spoken_of(row, sent)
    played = int(house.rows.spoken_end[row])
    assert 0 <= played - spoken <= 3 * FRAME
    assert house.plane.spoken_of(row, sent - 4_800) == spoken - 4_800
