"""Media processes from signalling's side, with planes ticked by hand at the other end of real pipes."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.api import Slot
from engine.echo import EchoEngine
from gateway.config import LogSettings
from gateway.duplex import AgentStarted, Policy
from gateway.media.face import MediaError, MediaSettings
from gateway.media.messages import (
    Closed,
    FirstPacket,
    Latched,
    MediaEvent,
    MediaFailed,
    MediaStats,
    OpusMedia,
    OpusPacket,
)
from gateway.media.pipe import Pipe
from gateway.media.process import spawn_interpreter
from gateway.media.processes import MediaProcesses
from gateway.media.processing import DuplexProcessing, ProcessingSettings
from gateway.media.served import Hello, Ready, ServedPlane
from gateway.media.shared import SharedMedia
from gateway.switchboard import Offer, Refused, Switchboard
from sip.rtcp import ReceiverReport, ReportBlock, SenderReport, build_rtcp, middle_of, parse_rtcp
from tests.audio import align
from tests.phone import Bench, Phone, bound_socket, speech

ROOT = Path(__file__).parent.parent
ROWS, PROCESSES = 4, 2
ENGINE_PHASE_S = 0.005


class Child:
    """A media process that is not one: its plane is ticked by the test."""

    pid = 1

    def __init__(self, end: socket.socket) -> None:
        self.pipe = Pipe(end.dup())
        self.plane: ServedPlane | None = None
        self.killed = False

    def greet(self) -> None:
        (hello, files), *_ = self.pipe.take()
        assert isinstance(hello, Hello)
        self.index = hello.index
        memory = SharedMedia(hello.rows, hello.processes, files[0])
        self.plane = ServedPlane(memory, hello.index, hello, self.pipe)
        self.pipe.put(Ready())
        self.pipe.flush()

    def poll(self) -> int | None:
        return -9 if self.killed else None

    def wait(self) -> int:
        """The plane sees that the gateway is gone once it has taken what was still to be taken."""
        if not self.killed:
            if self.plane is not None:
                self.plane.tick(0.0)
                self.plane.tick(0.02)
                assert self.plane.ended
            self.kill()
        return -9

    def kill(self) -> None:
        self.killed = True
        self.pipe.close()
        if self.plane is not None:
            self.plane.close_all()


class House:
    """Media processes, an echo engine and phones, stepped by hand."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.memory = SharedMedia(ROWS, PROCESSES)
        settings = MediaSettings(kernel_times=False, compiled=False)
        processing = ProcessingSettings(cancel_echo=False)
        self.media = MediaProcesses(self.memory, settings, processing, LogSettings(), self._spawn)
        self.engine = EchoEngine(
            slots=ROWS, delay_s=0.0, greeting=False, phase=ENGINE_PHASE_S, rows=self.memory.rows
        )
        self.step_number = 1_000
        self.engine.begin(self.now + ENGINE_PHASE_S)
        self.events: list[MediaEvent] = []
        self.media.on_events = lambda: self.events.extend(self.media.take_events())
        self.phones: dict[int, Phone] = {}
        self.slots: dict[int, Slot] = {}

    def _spawn(self, end: socket.socket) -> Child:
        self.children.append(Child(end))
        return self.children[-1]

    @property
    def now(self) -> float:
        return self.step_number * 0.02

    async def launch(self) -> None:
        launched = asyncio.ensure_future(self.media.launch())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.greet()
        await launched

    def greet(self) -> None:
        for child in self.children:
            if child.plane is None:
                child.greet()

    async def call(self, row: int, phone: Phone) -> int:
        sock = bound_socket()
        phone.peer = sock.getsockname()
        self.phones[row] = phone
        self.slots[row] = await self.engine.open(row=row)
        number = self.media.open_rtp(row, sock, Bench.media(phone))
        self.media.start(row)
        return number

    async def step(self, standing: int | None = None) -> None:
        """20 ms; the process `standing` does not run."""
        for phone in self.phones.values():
            phone.say()
        self.step_number += 1
        for child in self.children:
            if child.plane is not None and not child.killed and child.index != standing:
                child.plane.tick(self.now)
        self.engine.run_due(self.now + ENGINE_PHASE_S)
        for phone in self.phones.values():
            phone.listen(self.step_number)
        for _ in range(3):
            await asyncio.sleep(0)

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    await made.launch()
    yield made
    await made.media.shut_down()


def echoed(phone: Phone) -> float:
    """How alike what was said and what comes back are, once the delay has settled."""
    settled = slice(12_000, 18_000)
    return align(phone.heard_pcm()[settled] / 32_768, speech()[settled] / 32_768, 2_000).correlation


async def test_a_process_that_starts_slowly_is_told_of_and_one_that_never_does_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.media.process.LONG_S", 0.0)
    monkeypatch.setattr("gateway.media.process.STARTING_S", 0.05)
    caplog.set_level("INFO")
    house = House()
    with pytest.raises(MediaError, match="did not start within"):
        await house.media.launch()
    assert "still starting" in caplog.text
    assert all(child.killed for child in house.children)


async def test_a_phone_hears_octet_for_octet_what_a_plane_in_this_process_sends(house: House) -> None:
    there, here = Phone(speech()), Phone(speech())
    call = await house.call(1, there)
    await house.run(120)
    bench = Bench(ROWS, DuplexProcessing(ROWS, ProcessingSettings(cancel_echo=False)))
    await bench.answer(1, here)
    bench.run(120)
    bench.close()
    assert [payload for *_, payload in there.heard] == [payload for *_, payload in here.heard]
    assert echoed(there) > 0.95
    met = [event for event in house.events if isinstance(event, FirstPacket)]
    assert [(event.row, event.call) for event in met] == [(1, call)]
    stats = house.media.stats(1)
    assert stats.packets_received >= 115 and stats.lost == 0 and stats.level_in_dbfs > -60
    assert stats.remote == there.sock.getsockname() and stats.latched
    assert any(isinstance(event, Latched) for event in house.events)


async def test_reports_cross_on_a_socket_of_their_own(house: House) -> None:
    phone, rtcp, sock, ours = Phone(speech()), bound_socket(), bound_socket(), bound_socket()
    phone.peer, above = sock.getsockname(), ours.getsockname()
    house.phones[1] = phone
    house.slots[1] = await house.engine.open(row=1)
    house.media.open_rtp(1, sock, Bench.media(phone, cname="agent", rtcp_remote=rtcp.getsockname()), ours)
    house.media.start(1)
    await house.run(300)
    assert ours.fileno() == -1 and phone.reports == []
    report = parse_rtcp(rtcp.recv(2_000))[0]
    assert isinstance(report, SenderReport) and report.ssrc == 77
    block = ReportBlock(77, 64, 9, 5, 0, middle_of(report.ntp), 0)
    rtcp.sendto(build_rtcp([ReceiverReport(phone.ssrc, (block,))]), above)
    await house.run(10)
    stats = house.media.stats(1)
    assert stats.remote_loss == pytest.approx(0.25) and stats.round_trip_ms > 0
    rtcp.close()


async def test_rows_are_shared_out_among_the_processes(house: House) -> None:
    for row in range(ROWS):
        await house.call(row, Phone(speech(), ssrc=row + 1))
    await house.run(20)
    for child in house.children:
        assert child.plane is not None
        assert child.plane.open_rows().tolist() == [child.index, child.index + PROCESSES]
    assert all(house.media.stats(row).packets_received > 15 for row in range(ROWS))


async def test_what_was_sent_of_the_agent_is_known_on_this_side(house: House) -> None:
    await house.call(0, Phone(speech()))
    await house.run(100)
    sent = house.media.stats(0).samples_out
    spoken = house.media.spoken_of(0, sent)
    assert 0 < spoken <= sent and house.media.spoken_of(0, sent - 4_800) == spoken - 4_800
    at = house.media.sent_at(0, spoken - 481)
    assert at is not None and house.now - 0.2 < at <= house.now + 0.02


async def test_a_closed_row_is_free_once_its_final_counters_have_come(house: House) -> None:
    call = await house.call(2, Phone(speech()))
    await house.run(30)
    house.media.close(2)
    house.media.close(2)
    with pytest.raises(MediaError, match="taken"):
        house.media.open_rtp(2, bound_socket(), Bench.media(Phone(speech())))
    await house.run(2)
    (closed,) = [event for event in house.events if isinstance(event, Closed)]
    assert (closed.row, closed.call) == (2, call) and closed.stats.packets_received >= 28
    house.slots[2].close()
    await house.run(5)
    again = await house.call(2, Phone(speech(), ssrc=9))
    assert again != call and house.media.stats(2) == MediaStats(remote=house.phones[2].sock.getsockname())


async def test_a_browser_s_packets_cross_both_ways(house: House) -> None:
    sent: list[tuple[int, int]] = []

    def keep(packets: list[tuple[int, OpusPacket]]) -> None:
        sent.extend((row, len(packet.payload)) for row, packet in packets)

    port = house.media.open_opus(3, OpusMedia(), keep)
    await house.engine.open(row=3)
    house.media.start(3)
    for number in range(50):
        port.receive(number, number * 960, b"\xf8\xff\xfe", False, house.now)
        await house.step()
    await house.run(5)
    assert house.media.stats(3).packets_received == 50
    assert len(sent) >= 48 and {row for row, _ in sent} == {3}
    house.media.note_report(3, 0.1, 80.0)
    await house.run(6)
    stats = house.media.stats(3)
    assert stats.remote_loss == pytest.approx(0.1) and stats.round_trip_ms == pytest.approx(80.0)


async def test_who_speaks_is_told_across_the_border(house: House) -> None:
    house.media.processing.set_policy(0, Policy.NEVER)
    await house.call(0, Phone(speech()))
    await house.run(150)
    child = house.children[0]
    assert child.plane is not None and child.plane.duplex._duplex[0].policy is Policy.NEVER
    events = house.media.processing.take_events()
    assert any(row == 0 and isinstance(event, AgentStarted) for row, event in events)
    assert house.media.processing.take_events() == []


async def test_a_process_that_dies_ends_its_own_calls_and_no_others(house: House) -> None:
    calls = {row: await house.call(row, Phone(speech(), ssrc=row + 1)) for row in range(ROWS)}
    await house.run(30)
    house.media.close(3)  # and dies before it could say so
    house.children[1].kill()
    await house.run(2)
    failed = [(event.row, event.call) for event in house.events if isinstance(event, MediaFailed)]
    assert failed == [(1, calls[1])]
    assert [e.row for e in house.events if isinstance(e, Closed)] == [3]
    assert house.media.missing() and house.media.restarts == 1
    house.media.close(1)
    await house.run(30)
    assert [e.row for e in house.events if isinstance(e, Closed)] == [3, 1]
    assert all(house.media.stats(row).packets_received >= 58 for row in (0, 2))


async def test_while_a_process_is_missing_its_callers_are_refused_and_another_takes_its_place(
    house: House,
) -> None:
    house.media.processing.set_policy(1, Policy.NEVER)
    house.children[1].kill()
    await house.run(2)
    assert [house.media.available(row) for row in range(ROWS)] == [True, False, True, False]
    switchboard = Switchboard(house.engine, house.media)
    await switchboard.admit(Offer("sip"))
    with pytest.raises(Refused) as refused:
        await switchboard.admit(Offer("sip"))
    assert (refused.value.code, refused.value.retry_after_s) == (503, 2.0)
    await house.run(5)
    with pytest.raises(MediaError, match="starting again"):
        house.media.open_rtp(1, bound_socket(), Bench.media(Phone(speech())))
    with pytest.raises(MediaError, match="starting again"):
        house.media.open_opus(1, OpusMedia(), lambda packets: None)
    async with asyncio.timeout(5):
        while len(house.children) == PROCESSES:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        house.greet()
        while house.media.missing():
            await asyncio.sleep(0.01)
    phone = Phone(speech())
    await house.call(1, phone)
    await house.run(120)
    assert echoed(phone) > 0.95
    replaced = house.children[-1].plane
    assert replaced is not None and replaced.duplex._duplex[1].policy is Policy.NEVER


async def test_a_process_that_stands_still_is_killed(house: House) -> None:
    await house.call(1, Phone(speech()))
    await house.run(10)
    process = house.media._processes[1]
    for _ in range(4):
        await house.step()
        process.look()
    assert not house.children[1].killed
    for _ in range(4):
        await house.step(standing=1)
        process.look()
    assert house.children[1].killed
    await house.run(1)
    assert any(isinstance(event, MediaFailed) and event.row == 1 for event in house.events)


async def test_packets_for_a_process_that_stands_still_are_bounded(house: House) -> None:
    port = house.media.open_opus(0, OpusMedia(), lambda packets: None)
    for number in range(20_000):
        port.receive(number & 0xFFFF, number * 960, bytes(200), False, house.now)
    process = house.media._processes[0]
    assert process._pipe.waiting <= 256 and process.dropped > 0
    await house.run(5)
    assert house.media.stats(0).packets_received > 0


@pytest.mark.slow
def test_the_process_keeps_its_matrix_products_on_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handed to threads of BLAS, a tick waits for other cores to be free, and takes them from the engine."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "8")
    started: list[dict[str, str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: started.append(env))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        spawn_interpreter(theirs)
    assert started[0]["OPENBLAS_NUM_THREADS"] == started[0]["OMP_NUM_THREADS"] == "1"


def test_the_process_loads_no_torch_no_aiortc_and_no_web_server() -> None:
    code = (
        "import sys, gateway.media.served; "
        "print([n for n in ('torch', 'aiortc', 'aiohttp', 'pipecat') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
