"""A remote Moshi for tests: a real aiohttp server on `/api/chat` whose agent repeats what it hears."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from engine.chat import ChatEngine
from engine.ogg import OggReader, OggWriter
from engine.opus import OpusDecoder, OpusEncoder

FRAME = 1_920
METADATA = {"build_info": {"git_branch": "main"}, "model_instance_id": 0}


class Agent:
    """One connection's codec and words."""

    def __init__(self) -> None:
        self.frames = 0
        self._reader, self._decoder = OggReader(), OpusDecoder()
        self._writer, self._encoder = OggWriter(), OpusEncoder(application="audio", bitrate=64_000)
        self._pcm = np.zeros(0, np.float32)

    def answer(self, ogg: bytes) -> list[bytes]:
        """One audio message a whole frame heard, and a word each fourth."""
        decoded = [self._decoder.decode(packet) for packet in self._reader.receive(ogg)]
        self._pcm = np.concatenate([self._pcm, *decoded])
        messages = []
        while len(self._pcm) >= FRAME:
            frame, self._pcm = self._pcm[:FRAME], self._pcm[FRAME:]
            if self.frames % 4 == 0:
                messages.append(b"\x02" + f" word{self.frames}".encode())
            pages = b"".join(self._writer.write(self._encoder.encode(half)) for half in frame.reshape(2, 960))
            messages.append(b"\x01" + pages)
            self.frames += 1
        return messages


@dataclass
class ChatRemote:
    """What the server does, and what it saw."""

    style: str = "python"
    """`python`: handshake 00. `rust`: metadata first, then 00 and eight more 00."""
    slots: int = 100
    token: str | None = None
    hang_up_after: int | None = None
    """Frames after which a connection is dropped without a word."""
    noise: bytes | None = None
    """Sent in front of each answer."""
    silent: bool = False
    """Never a handshake: what moshi.server does while it holds another call."""
    status: int = 101
    open: int = 0
    connections: int = 0
    queries: list[dict[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    url: str = ""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status != 101:
            return web.Response(status=self.status, headers={"Retry-After": "7"})
        if self.token is not None and not self._authorised(request):
            return web.Response(status=401)
        socket = web.WebSocketResponse(max_msg_size=1 << 20)
        await socket.prepare(request)
        self.connections += 1
        if self.open >= self.slots:
            await socket.send_bytes(b"\x05all workers are busy")
            await socket.close(code=1013)
            return socket
        self.open += 1
        try:
            await self._serve(socket)
        finally:
            self.open -= 1
        return socket

    def _authorised(self, request: web.Request) -> bool:
        return self.token in (
            request.headers.get("Authorization", "").removeprefix("Bearer "),
            request.headers.get("kyutai-api-key"),
            request.query.get("token"),
            request.query.get("auth_id"),
        )

    async def _serve(self, socket: web.WebSocketResponse) -> None:
        if self.silent:
            async for _ in socket:
                pass
            return
        if self.style == "rust":
            await socket.send_bytes(b"\x04" + json.dumps(METADATA).encode())
        await socket.send_bytes(bytes(9) if self.style == "rust" else b"\0")
        agent = Agent()
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                continue
            self.received.append(message.data)
            if message.data[:1] != b"\x01":
                continue
            if self.noise is not None:
                await socket.send_bytes(self.noise)
            for answer in agent.answer(message.data[1:]):
                await socket.send_bytes(answer)
            if self.hang_up_after is not None and agent.frames >= self.hang_up_after:
                self.hang_up_after = None
                socket._req.transport.close()  # type: ignore[union-attr]


@asynccontextmanager
async def serving(remote: ChatRemote) -> AsyncIterator[ChatRemote]:
    app = web.Application()
    app.router.add_get("/api/chat", remote.chat)
    async with TestServer(app) as server:
        remote.url = str(server.make_url("/api/chat")).replace("http", "ws", 1)
        yield remote


async def answered(engine: ChatEngine) -> None:
    """Until the remote's answer to the last tick has come, for every line that is up."""
    async with asyncio.timeout(10):
        while any(line.up and line.voice.packets < 2 for line in engine.lines()):
            await asyncio.sleep(0)
