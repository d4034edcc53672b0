"""ServedPlane: the media plane in a process of its own, and that process's main().

Its clock is the process's one thread: no event loop, no model and no other Python runs beside it. What is
asked comes through a Pipe at each tick, what happened goes back the same way, audio and counters lie in
SharedMedia. It ends when the gateway's end of the pipe is gone, and never by a signal meant for the gateway.
"""

from __future__ import annotations

import gc
import select
import signal
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.config import LogSettings
from gateway.duplex import DuplexEvent
from gateway.logs import configure
from gateway.media import commands as ask
from gateway.media import shared
from gateway.media.clock import MediaClock
from gateway.media.face import MediaSettings
from gateway.media.messages import Address, MediaEvent, OpusPacket
from gateway.media.opus_port import OpusArrival, OpusPort
from gateway.media.pipe import Item, Pipe
from gateway.media.plane import Asked, MediaPlane
from gateway.media.processing import DuplexProcessing, ProcessingSettings
from gateway.media.shared import SharedMedia

READ_TICKS = 5
"""Counters are written every 0.1 s."""
HEALTH_TICKS = 50
MOST_WAITING = 100
"""Ticks that the gateway may be behind before its browsers' packets are dropped: 2 s."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first thing a media process is told; the memory's file comes with it."""

    rows: int
    processes: int
    index: int
    """Which of the processes this one is."""
    settings: MediaSettings
    processing: ProcessingSettings
    log: LogSettings


@dataclass(frozen=True, slots=True)
class Ready:
    """All is compiled; ticks follow."""


class Packet(NamedTuple):
    """A decrypted packet for a WebRTC row. Many: a tuple is quicker told than a dataclass."""

    row: int
    call: int
    arrival: OpusArrival


@dataclass(frozen=True, slots=True)
class Moved:
    """A row's packets go elsewhere now."""

    row: int
    call: int
    remote: Address | None
    latched: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What one tick has to say."""

    events: list[MediaEvent] = field(default_factory=list)
    duplex: list[tuple[int, DuplexEvent]] = field(default_factory=list)
    packets: list[tuple[int, bytes, int, bool]] = field(default_factory=list)
    """Row, and the fields of its OpusPacket."""
    moved: list[Moved] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.events or self.duplex or self.packets or self.moved)


class ServedPlane(MediaPlane):
    """A plane that is asked and tells through a pipe."""

    def __init__(self, memory: SharedMedia, index: int, hello: Hello, pipe: Pipe) -> None:
        self.duplex = DuplexProcessing(hello.rows, hello.processing)
        super().__init__(memory.rows, hello.settings, self.duplex, memory.ledger)
        self.ended = False
        """The gateway is gone."""
        self._table, self._health = memory.table, memory.health[index]
        self._pipe = pipe
        self._ports: dict[int, OpusPort] = {}
        self._where: dict[int, tuple[Address | None, bool]] = {}
        self._ticks = 0

    def tick(self, now: float) -> None:
        """20 ms of every call of this process, and what is to be told of it."""
        try:
            super().tick(now)
        finally:
            self._ticks += 1
            self._health[shared.PULSE] = self._ticks
            self._report()

    def _report(self) -> None:
        moved: list[Moved] = []
        if self._ticks % READ_TICKS == 0:
            rows = self.open_rows()
            if len(rows):
                self._table[rows] = self.readings(rows)
                moved = self._moved(rows.tolist())
        self._tell(Told(self.take_events(), self.duplex.take_events(), moved=moved))

    def _moved(self, rows: list[int]) -> list[Moved]:
        moved = []
        for row in rows:
            remote, latched = self._audio.where(row)
            if self._where.get(row) != (remote, latched):
                self._where[row] = remote, latched
                moved.append(Moved(row, self._audio.call_on(row), remote, latched))
        return moved

    def _tell(self, told: Told) -> None:
        try:
            if told:
                self._pipe.put(told)
            self._pipe.flush()
        except EOFError:
            self.ended = True

    def _send(self, packets: list[tuple[int, OpusPacket]], /) -> None:
        """At the start of a tick, so that the work of the tick delays nothing."""
        if self._pipe.waiting < MOST_WAITING:
            plain = [(row, packet.payload, packet.timestamp, packet.marker) for row, packet in packets]
            self._tell(Told(packets=plain))

    def _asked(self) -> Iterable[Asked]:
        try:
            items = self._pipe.take()
        except EOFError:
            self.ended = True
            return
        for item in items:
            yield from self._understood(item)

    def _understood(self, item: Item) -> Iterable[Asked]:
        match item.thing:
            case Packet(row=row, call=call, arrival=arrival):
                port = self._ports.get(row)
                if port is not None and port.call == call:
                    port.put(arrival)
            case ask.SetPolicy(row=row, policy=policy):
                self.duplex.set_policy(row, policy)
            case ask.Yielded(row=row):
                self.duplex.yielded(row)
            case ask.ExpectEcho(row=row, round_trip_ms=round_trip_ms):
                self.duplex.expect_echo(row, round_trip_ms)
            case ask.OpenRtp() as command:
                self._where.pop(command.row, None)
                yield command, socket.socket(fileno=item.files[0])
            case ask.OpenRtcp() as command:
                yield command, socket.socket(fileno=item.files[0])
            case ask.OpenOpus() as command:
                self._where.pop(command.row, None)
                port = self._ports[command.row] = OpusPort(command.call)
                yield command, (port, self._send)
            case ask.Close() as command:
                self._ports.pop(command.row, None)
                yield command, None
            case ask.Command() as command:
                yield command, None


def main(fd: int) -> None:
    """Serve the gateway at the other end of this socket until it goes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the gateway decides when calls end
    sock = socket.socket(fileno=fd)
    pipe = Pipe(sock)
    try:
        hello, memory = _greeted(sock, pipe)
    except EOFError:
        return
    configure(hello.log)
    plane = ServedPlane(memory, hello.index, hello, pipe)
    plane.duplex.warm()
    clock = ServedClock(plane, memory, hello.index)
    gc.collect()
    gc.freeze()
    pipe.put(Ready())
    clock.run()
    plane.close_all()


def _greeted(sock: socket.socket, pipe: Pipe) -> tuple[Hello, SharedMedia]:
    select.select([sock], [], [])
    (hello, files), *_ = pipe.take()
    assert isinstance(hello, Hello)
    return hello, SharedMedia(hello.rows, hello.processes, files[0])


class ServedClock(MediaClock):
    """The clock that also writes how it fares, and stops when the gateway is gone."""

    def __init__(self, plane: ServedPlane, memory: SharedMedia, index: int) -> None:
        super().__init__(plane)
        self._served, self._health = plane, memory.health[index]

    def _after(self, ticks: int) -> None:
        if self._served.ended:
            self.end()
        if ticks % HEALTH_TICKS == 0:
            found = self.lateness()
            self._health[shared.P50 :] = (
                found.p50_ms,
                found.p99_ms,
                found.max_ms,
                found.work_p99_ms,
                found.skipped,
                found.failed,
                found.fifo,
            )
