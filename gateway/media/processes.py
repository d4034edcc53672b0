"""MediaProcesses: the media path in processes of its own, as signalling sees it.

Row n belongs to process n modulo their number. A process that dies or hangs takes its calls with it and no
others: they are told MediaFailed, and another process takes its place. While one is missing, calls that
would be its own are refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass

import numpy as np

from gateway.config import LogSettings
from gateway.duplex import DuplexEvent, Policy
from gateway.media import commands as ask
from gateway.media.clock import Lateness
from gateway.media.face import MediaError, MediaFace, MediaSettings
from gateway.media.messages import (
    Address,
    Closed,
    MediaEvent,
    MediaFailed,
    MediaStats,
    OpusMedia,
    OpusPacket,
    RtpMedia,
    SendOpus,
)
from gateway.media.opus_port import OpusArrival
from gateway.media.process import MediaProcess, Spawn, spawn_interpreter
from gateway.media.processing import MOST_EVENTS, ProcessingSettings
from gateway.media.readings import NUMBERS, stats_of
from gateway.media.served import Hello, Moved, Packet, Told
from gateway.media.shared import P50, SharedMedia

log = logging.getLogger(__name__)

LOOK_S = 0.5
AGAIN_S = 0.2
"""After a process was lost, the next one is started so much later; twice as much after each failure."""
LONGEST_AGAIN_S = 10.0
_NEW = MediaStats()


@dataclass(slots=True)
class _Row:
    """What is known here of a row that holds a call."""

    call: int
    process: MediaProcess
    send: SendOpus | None = None
    remote: Address | None = None
    latched: bool = False
    closing: bool = False


class RemotePort:
    """Where a WebRTC leg delivers the packets of its row."""

    def __init__(self, row: int, call: int, process: MediaProcess) -> None:
        self.call = call
        self._row, self._process = row, process

    def receive(self, sequence: int, timestamp: int, payload: bytes, marker: bool, now: float) -> None:
        """See face.PacketPort. On the loop's thread."""
        arrival = OpusArrival(sequence & 0xFFFF, timestamp & 0xFFFF_FFFF, payload, now)
        self._process.deliver(Packet(self._row, self.call, arrival))


class RemoteDuplex:
    """What `DuplexProcessing` is to signalling, when it works elsewhere."""

    def __init__(self, media: MediaProcesses) -> None:
        self._media = media
        self._events: deque[tuple[int, DuplexEvent]] = deque(maxlen=MOST_EVENTS)

    def set_policy(self, row: int, policy: Policy) -> None:
        """Who gives way on this row, from its next block on, or from its opening."""
        self._media.ask_processing(ask.SetPolicy(row, policy))

    def yielded(self, row: int) -> None:
        """The engine was told of the cut; what comes now is new."""
        self._media.ask_processing(ask.Yielded(row))

    def expect_echo(self, row: int, round_trip_ms: float) -> None:
        """A measured round trip, after which an echo may be expected."""
        self._media.ask_processing(ask.ExpectEcho(row, round_trip_ms))

    def noticed(self, events: list[tuple[int, DuplexEvent]]) -> None:
        """A media process tells what its rows' Duplex noticed."""
        self._events.extend(events)

    def take_events(self) -> list[tuple[int, DuplexEvent]]:
        """(row, event) since the last call, oldest first."""
        return [self._events.popleft() for _ in range(len(self._events))]


class MediaProcesses(MediaFace):
    """All calls' media, in `memory.processes` processes. All methods on the loop that launch() ran on."""

    def __init__(
        self,
        memory: SharedMedia,
        settings: MediaSettings,
        processing: ProcessingSettings,
        logs: LogSettings,
        spawn: Spawn = spawn_interpreter,
    ) -> None:
        super().__init__(memory.rows, memory.ledger)
        self.memory = memory
        self.processing = RemoteDuplex(self)
        self.restarts = 0
        """Processes that were lost since launch()."""
        self._hello = Hello(memory.rows.count, memory.processes, 0, settings, processing, logs)
        self._spawn = spawn
        self._policies: dict[int, Policy] = {}
        self._processes: list[MediaProcess] = []
        self._open: dict[int, _Row] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def plane(self) -> MediaFace:
        return self

    async def launch(self) -> None:
        """Start every process and return once all tick. Raises MediaError."""
        self._processes = [self._made(index) for index in range(self.memory.processes)]
        try:
            await asyncio.gather(*(process.start() for process in self._processes))
        except OSError as error:
            await self.shut_down()
            raise MediaError(f"the media process {error}") from error
        self._keep(self._watch())

    async def shut_down(self) -> None:
        """End every process. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(process.stop() for process in self._processes))

    def available(self, row: int) -> bool:
        return self._process_of(row).up

    def missing(self) -> list[str]:
        """Why calls may be refused now; empty: every process ticks."""
        down = sum(not process.up for process in self._processes)
        return [f"{down} of {len(self._processes)} media processes are starting again"] if down else []

    def lateness(self) -> list[Lateness]:
        """Of each process, of the last 10 s; at most 1 s old."""
        return [
            Lateness(p50, p99, latest, work, int(skipped), int(failed), bool(fifo))
            for p50, p99, latest, work, skipped, failed, fifo in self.memory.health[:, P50:].tolist()
        ]

    def stats(self, row: int) -> MediaStats:
        known = self._open.get(row)
        where = (known.remote, known.latched) if known else (None, False)
        return stats_of(self.memory.table[row], *where)

    def number(self, row: int, name: str) -> float:
        return float(self.memory.table[row, NUMBERS.index(name)])

    def close(self, row: int) -> None:
        known = self._open.get(row)
        if known is None:
            return
        known.closing = True
        if known.process.up:
            super().close(row)
        else:
            self._freed(row, known)

    def ask_processing(self, command: ask.Command) -> None:
        """For what stands between line and engine on the command's row; it is told again to a new process."""
        if isinstance(command, ask.SetPolicy):
            self._policies[command.row] = command.policy
        self._ask(command)

    # -- what a process tells

    def told(self, process: MediaProcess, told: Told) -> None:
        for moved in told.moved:
            self._note_move(moved)
        for event in told.events:
            known = self._open.get(event.row)
            if isinstance(event, Closed) and known is not None and known.call == event.call:
                self._free(event.row)
            self._events.append(event)
        self.processing.noticed(told.duplex)
        if told.packets:
            self._pass_on(told.packets)
        if told.events and self.on_events is not None:
            self.on_events()

    def lost(self, process: MediaProcess, why: str) -> None:
        self.restarts += 1
        rows = [row for row, known in self._open.items() if known.process is process]
        log.error("the media process %s; %d calls end", why, len(rows))
        for row in rows:
            known, at = self._open[row], int(self.rows.heard_end[row])
            if known.closing:
                self._freed(row, known)
            else:
                self._say(MediaFailed(row, known.call, at, reason="the audio path failed"))
        self._keep(self._replace(process.index))

    def _note_move(self, moved: Moved) -> None:
        known = self._open.get(moved.row)
        if known is not None and known.call == moved.call:
            known.remote, known.latched = moved.remote, moved.latched

    def _pass_on(self, packets: list[tuple[int, bytes, int, bool]]) -> None:
        by_sender: dict[SendOpus, list[tuple[int, OpusPacket]]] = {}
        for row, payload, timestamp, marker in packets:
            known = self._open.get(row)
            if known is not None and known.send is not None:
                packet = OpusPacket(payload, timestamp, marker)
                by_sender.setdefault(known.send, []).append((row, packet))
        for send, theirs in by_sender.items():
            send(theirs)

    # -- what is carried to a process

    def _carry(self, command: ask.Command, thing: object) -> None:
        process = self._process_of(command.row)
        if not process.up:
            if isinstance(command, ask.OpenRtp):
                self._taken[command.row] = None
                raise MediaError("the audio path is starting again")
            return
        if isinstance(command, ask.OpenRtp):
            assert isinstance(thing, socket.socket)
            self._note(command.row, _Row(command.call, process, remote=command.media.remote))
            process.ask(command, thing)
            return
        process.ask(command, thing if isinstance(thing, socket.socket) else None)

    def _open_port(self, row: int, call: int, media: OpusMedia, send: SendOpus) -> RemotePort:
        process = self._process_of(row)
        if not process.up:
            self._taken[row] = None
            raise MediaError("the audio path is starting again")
        self._note(row, _Row(call, process, send))
        process.ask(ask.OpenOpus(row, call, media))
        return RemotePort(row, call, process)

    def _note(self, row: int, known: _Row) -> None:
        self._open[row] = known
        self.memory.table[row] = [getattr(_NEW, name) for name in NUMBERS]

    def change_rtp(self, row: int, media: RtpMedia) -> None:
        known = self._open.get(row)
        if known is not None and not known.process.up:
            raise MediaError("the audio path failed")
        super().change_rtp(row, media)

    def _free(self, row: int) -> None:
        self._open.pop(row, None)
        self._taken[row] = None

    def _freed(self, row: int, known: _Row) -> None:
        """A row whose process is gone: its last counters are the final ones."""
        stats = self.stats(row)
        self._free(row)
        self._say(Closed(row, known.call, int(self.rows.heard_end[row]), stats=stats))

    def _say(self, event: MediaEvent) -> None:
        """From within a call's own task: its listeners hear it in the loop's next turn."""
        self._events.append(event)
        if self.on_events is not None:
            asyncio.get_running_loop().call_soon(self.on_events)

    # -- lives

    def _process_of(self, row: int) -> MediaProcess:
        return self._processes[row % len(self._processes)]

    def _made(self, index: int) -> MediaProcess:
        hello = self._hello
        told = Hello(hello.rows, hello.processes, index, hello.settings, hello.processing, hello.log)
        return MediaProcess(self, self.memory, told, self._spawn)

    async def _watch(self) -> None:
        while True:
            due = asyncio.get_running_loop().time() + LOOK_S
            await asyncio.sleep(LOOK_S)
            if asyncio.get_running_loop().time() - due < LOOK_S:  # else it is we who stood still
                for process in self._processes:
                    process.look()

    async def _replace(self, index: int) -> None:
        pause = AGAIN_S
        while True:
            await asyncio.sleep(pause)
            process = self._processes[index] = self._made(index)
            try:
                await process.start()
                break
            except OSError as error:
                log.error("the media process %s; another is started", error)
                pause = min(2 * pause, LONGEST_AGAIN_S)
        for row in np.arange(index, self.rows.count, self.memory.processes).tolist():
            if row in self._policies:
                process.ask(ask.SetPolicy(row, self._policies[row]))

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
