"""ChatEngine: remote Moshis over `/api/chat` (moshi-backend, moshi.server, Scaleway, PersonaPlex).

Each slot is a line of its own. Pacing, Opus and the rows are on the tick thread as in every engine;
sockets are on the loop, and one call_soon_threadsafe a tick carries all lines' messages over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from numpy.typing import NDArray

from engine import chat_wire
from engine.api import FRAME, Capacity, Pcm, Persona
from engine.chat_line import ChatLine, Remote
from engine.clock import Tick
from engine.frames import Batch, Mask
from engine.ogg import OggWriter
from engine.opus import OpusEncoder
from engine.remote_voice import RemoteVoice
from engine.rows import AudioRows
from engine.slot import RowSlot
from engine.slots import SlotTable
from engine.tick import TickEngine

log = logging.getLogger(__name__)

PACKET = 960
"""Samples of a packet: 40 ms, what Kyutai's page sends."""
_BITRATE = 32_000

Outgoing = list[tuple[ChatLine, bytes, int]]
"""Line, message, and the connection it was made for."""


class LineVoice:
    """The tick thread's end of a line: our voice into packets, the remote's out of its buffer."""

    def __init__(self, line: ChatLine) -> None:
        self.line = line
        self.connection = 0
        self._encoder = OpusEncoder(application="audio", bitrate=_BITRATE)
        self._writer = OggWriter()

    @property
    def heard(self) -> RemoteVoice:
        return self.line.voice

    def encode(self, pcm: Pcm) -> bytes:
        """The message for (1920,) samples; the first of a connection begins a new Ogg stream."""
        if self.connection != self.line.connections:
            self.connection = self.line.connections
            self._encoder.reset()
            self._writer = OggWriter()
        pages = [self._writer.write(self._encoder.encode(part)) for part in pcm.reshape(-1, PACKET)]
        return chat_wire.serialise(chat_wire.Audio(b"".join(pages)))


@dataclass(frozen=True, slots=True)
class ChatStep:
    """See engine.stepper.Stepped. A slot's text "token" is its own number: piece() looks there."""

    pcm: Batch
    text: NDArray[np.int64]
    valid: Mask


class ChatStepper:
    """Steps all lines: sends every caller's frame, takes what every remote said."""

    def __init__(self, slots: int, remote: Remote) -> None:
        self.concealed: Mask = np.zeros(slots, np.bool_)
        """(slots,) frames of the last step that were invented, wholly or in part."""
        self.post: Callable[[Outgoing], None] = lambda outgoing: None
        """Hands a tick's messages to the loop."""
        self.lines: dict[int, ChatLine] = {}
        self._remote = remote
        self._voices: dict[int, LineVoice] = {}
        self._pcm: Batch = np.zeros((slots, FRAME), np.float32)

    def check(self, persona: Persona) -> None:
        self._remote.parameters(persona)

    def open(self, slot: int, persona: Persona) -> None:
        self._voices[slot] = LineVoice(self.lines[slot])

    def close(self, slot: int) -> None:
        self._voices.pop(slot, None)

    def interrupt(self, slot: int, unheard_frames: int) -> None:
        """No message of the protocol stops a remote."""

    def release(self, slot: int) -> None:
        pass

    def inject(self, slot: int, text: str) -> None:
        """Never called: this engine has no words of its own."""

    def step(self, pcm: Batch, active: Mask) -> ChatStep:
        text = np.full(len(active), -1)
        valid = np.zeros(len(active), np.bool_)
        outgoing: Outgoing = []
        for slot, voice in self._voices.items():
            if not active[slot]:
                continue
            message = voice.encode(pcm[slot])
            outgoing.append((voice.line, message, voice.connection))
            if voice.heard.has_text:
                text[slot] = slot
            taken = voice.heard.take()
            valid[slot] = taken is not None
            if taken is not None:
                self._pcm[slot], whole = taken
                self.concealed[slot] = not whole
        self.post(outgoing)
        return ChatStep(self._pcm, text, valid)

    def piece(self, token: int) -> str | None:
        return self._voices[token].heard.take_text()


class ChatEngine(TickEngine):
    """An Engine whose slots are calls to a remote Moshi. open() dials and waits for the handshake."""

    can_interrupt = False

    def __init__(
        self, remote: Remote, slots: int = 8, phase: float = 0.0, rows: AudioRows | None = None
    ) -> None:
        """slots: calls the remote may be asked to hold at once; rows: where the audio lies."""
        rows = rows if rows is not None else AudioRows(slots)
        self._chat = ChatStepper(rows.count, remote)
        self._chat.post = self._post
        self._remote = remote
        self._http: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[RowSlot, tuple[ChatLine, asyncio.Task[None]]] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._reconnects = 0
        super().__init__(
            f"chat ({urlsplit(remote.url).hostname})", self._chat, rows, SlotTable(rows.count, slots), phase
        )

    async def open(self, persona: Persona = Persona(), row: int | None = None) -> RowSlot:
        self._chat.check(persona)
        taken = await self._reserve(row)
        line = ChatLine(self._client(), self._remote, persona)
        try:
            await line.connect()
            self._chat.lines[taken] = line
            slot = self._seat(taken, lambda row: self._chat.open(row, persona))
        except BaseException:
            await line.close()
            self.table.free(taken)
            raise
        self._calls[slot] = (line, asyncio.create_task(self._hold(slot, line)))
        return slot

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._loop = asyncio.get_running_loop()
            self._http = aiohttp.ClientSession()
        return self._http

    async def _hold(self, slot: RowSlot, line: ChatLine) -> None:
        try:
            self.retire(slot, await line.run(self._count_loss))
        except Exception:
            log.exception("a line to the remote failed")
            self.retire(slot, "the line to the remote failed; the log has the traceback")

    def _count_loss(self) -> None:
        self._reconnects += 1

    def _post(self, outgoing: Outgoing) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_send_all, outgoing)

    def _step(self, tick: Tick) -> None:
        self._chat.concealed[:] = False
        super()._step(tick)
        self.frames.miss(self._chat.concealed, 1)

    def interrupt(self, slot: RowSlot, heard_samples: int | None) -> bool:
        return False

    def hold(self, slot: RowSlot) -> bool:
        return False

    def release(self, slot: RowSlot) -> None:
        pass

    def leave(self, slot: RowSlot) -> None:
        super().leave(slot)
        self._hang_up(slot)

    def _hang_up(self, slot: RowSlot) -> None:
        if (call := self._calls.pop(slot, None)) is not None:
            ending = asyncio.create_task(_end(*call))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    def lines(self) -> list[ChatLine]:
        """Those of the open slots."""
        return [self._chat.lines[row] for row in self._open]

    def capacity(self) -> Capacity:
        now = super().capacity()
        return replace(now, detail=now.detail | {"reconnects": float(self._reconnects)})

    async def stop(self) -> None:
        await super().stop()
        for slot in list(self._calls):
            self._hang_up(slot)
        await asyncio.gather(*self._endings, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
            self._http = None


async def _end(line: ChatLine, call: asyncio.Task[None]) -> None:
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    # A task that was cancelled before its first step has closed nothing.
    await line.close()


def _send_all(outgoing: Outgoing) -> None:
    for line, message, connection in outgoing:
        line.send(message, connection)
