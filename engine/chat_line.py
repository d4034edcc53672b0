"""ChatLine: one call over a remote's `/api/chat`, from the dial to the end, reconnects included.

It decides how a refusal, a loss and a silence are answered; Opus and pacing are not its business.
Source: kyutai moshi `client.py`, `server.py`; PersonaPlex `server.py`; Scaleway's and moshi-server's keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from engine import chat_wire
from engine.api import EngineError, EngineFull, EngineRefused, Persona
from engine.ogg import OggReader
from engine.remote_voice import RemoteVoice

log = logging.getLogger(__name__)

TRY_AGAIN = 1013
"""WebSocket close code of a full server."""
_QUEUE = 25
"""Messages (2 s) that may wait for a slow connection; further ones are dropped and counted."""

Auth = Literal["bearer", "token", "kyutai", "auth_id"]


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a remote Moshi is and how it wants to be asked."""

    url: str
    """Such as `wss://host/api/chat`."""
    token: str | None = None
    auth: Auth = "bearer"
    """Authorization header, `?token=` (Scaleway), `kyutai-api-key` header or `?auth_id=` (moshi-server)."""
    dialect: Literal["kyutai", "personaplex"] = "kyutai"
    """PersonaPlex's server demands both prompts in the query and breaks on a seed."""
    voices: tuple[str, ...] = ()
    """Names a persona may ask for; the first is PersonaPlex's when a persona names none."""
    query: dict[str, str] = field(default_factory=dict)
    """Further query parameters for every call."""
    handshake_timeout_s: float = 20.0
    reconnect_for_s: float = 15.0
    """How long a lost call is dialled again before its slot ends."""

    def headers(self) -> dict[str, str]:
        if self.token is None or self.auth not in ("bearer", "kyutai"):
            return {}
        if self.auth == "kyutai":
            return {"kyutai-api-key": self.token}
        return {"Authorization": f"Bearer {self.token}"}

    def parameters(self, persona: Persona) -> dict[str, str]:
        """The query of one call. Raises EngineRefused for a voice that is not on the list."""
        if persona.voice is not None and persona.voice not in self.voices:
            raise EngineRefused(
                f"voice {persona.voice!r} is not among the remote's: {', '.join(self.voices)}"
            )
        asked = self._sampling(persona) | self._prompts(persona) | self.query
        if self.token is not None and self.auth in ("token", "auth_id"):
            asked[self.auth] = self.token
        return asked

    def _sampling(self, persona: Persona) -> dict[str, str]:
        values = {
            "audio_temperature": persona.temperature,
            "audio_topk": persona.top_k,
            "text_temperature": persona.text_temperature,
            "text_topk": persona.text_top_k,
        }
        if self.dialect == "kyutai":
            values |= {"audio_seed": persona.seed, "text_seed": persona.seed}
        return {name: f"{value:g}" for name, value in values.items() if value is not None}

    def _prompts(self, persona: Persona) -> dict[str, str]:
        voice, text = persona.voice, persona.text_prompt
        if self.dialect == "personaplex":
            voice = voice or next(iter(self.voices), "NATF0")
            return {"voice_prompt": f"{voice}.pt", "text_prompt": text or ""}
        prompts = {"voice_prompt": voice, "text_prompt": text}
        return {name: value for name, value in prompts.items() if value is not None}


def backoff(first_s: float = 0.2, longest_s: float = 3.0) -> Iterator[float]:
    """Seconds to wait before each attempt to reconnect."""
    wait_s = first_s
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, longest_s)


class ChatLine:
    """Belongs to one asyncio loop, but for `voice`, whose frames the tick thread takes."""

    def __init__(self, http: aiohttp.ClientSession, remote: Remote, persona: Persona) -> None:
        """Raises EngineRefused for a persona the remote cannot play."""
        self.voice = RemoteVoice()
        self.connections = 0
        """Grows with each connection: a new one wants a new Ogg stream from its first page."""
        self.dropped_messages = 0
        self.unknown_messages = 0
        self._http = http
        self._remote = remote
        self._query = remote.parameters(persona)
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)
        self._reader = OggReader()

    @property
    def up(self) -> bool:
        return self._socket is not None

    async def connect(self) -> None:
        """Dial and wait for the handshake. Raises EngineFull, EngineRefused, EngineError."""
        socket = await self._dial()
        try:
            async with asyncio.timeout(self._remote.handshake_timeout_s):
                await self._await_handshake(socket)
        except TimeoutError:
            await socket.close()
            wait_s = self._remote.handshake_timeout_s
            raise EngineFull(
                f"the remote gave no handshake in {wait_s:g} s: it may hold another call"
            ) from None
        except BaseException:
            await socket.close()
            raise
        self._socket = socket
        self._reader = OggReader()
        self._outgoing = asyncio.Queue(_QUEUE)
        self.connections += 1

    async def _dial(self) -> aiohttp.ClientWebSocketResponse:
        try:
            async with asyncio.timeout(self._remote.handshake_timeout_s):
                return await self._http.ws_connect(
                    self._remote.url,
                    params=self._query,
                    headers=self._remote.headers(),
                    heartbeat=10.0,
                    max_msg_size=chat_wire.MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                )
        except aiohttp.WSServerHandshakeError as error:
            raise _refusal(error) from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EngineError(f"the remote Moshi cannot be reached: {type(error).__name__}") from None

    async def _await_handshake(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        complaint = ""
        async for received in socket:
            message = self._understand(received)
            if isinstance(message, chat_wire.Handshake):
                return
            if isinstance(message, chat_wire.ServerError):
                complaint = message.message
        if socket.close_code == TRY_AGAIN:
            raise EngineFull(f"the remote is full: {complaint or 'it gave no reason'}")
        raise EngineError(
            f"the remote hung up before its handshake ({socket.close_code}): {complaint or 'no reason'}"
        )

    def send(self, message: bytes, connection: int) -> None:
        """Queue one message, made for the given connection: in another its pages would lack their head.

        Dropped and counted while the line is down or slower than the call.
        """
        try:
            if connection != self.connections:
                raise asyncio.QueueFull
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self.dropped_messages += 1

    async def run(self, on_lost: Callable[[], None]) -> str:
        """Hold the call until it cannot be held; returns why. `on_lost` is called at each loss."""
        while True:
            await self._converse()
            on_lost()
            try:
                await self._reconnect()
            except EngineError as error:
                return f"the remote was lost: {error}"

    async def _converse(self) -> None:
        socket = self._socket
        if socket is None:
            return
        sending = asyncio.create_task(self._send_all(socket))
        try:
            async for received in socket:
                self._receive(self._understand(received))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self._socket = None
            await socket.close()

    async def _send_all(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                await socket.send_bytes(await self._outgoing.get())
        except (ConnectionError, aiohttp.ClientError) as error:
            log.info("the line to the remote broke: %s", type(error).__name__)
        finally:
            await socket.close()

    def _understand(self, received: aiohttp.WSMessage) -> chat_wire.Message:
        if received.type is aiohttp.WSMsgType.BINARY:
            message = chat_wire.parse(received.data)
        else:
            message = chat_wire.Unknown(-1)
        self.unknown_messages += isinstance(message, chat_wire.Unknown)
        return message

    def _receive(self, message: chat_wire.Message) -> None:
        if isinstance(message, chat_wire.Audio):
            for packet in self._reader.receive(message.ogg):
                self.voice.put(packet)
        elif isinstance(message, chat_wire.Text):
            self.voice.put_text(message.text)
        elif isinstance(message, chat_wire.ServerError):
            log.warning("the remote reported an error of %d characters", len(message.message))

    async def _reconnect(self) -> None:
        """Dial again with growing pauses. Raises the last refusal when time is up."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._remote.reconnect_for_s
        for wait_s in backoff():
            await asyncio.sleep(min(wait_s, self._remote.reconnect_for_s / 4))
            try:
                return await self.connect()
            except EngineRefused:
                raise
            except EngineError:
                if loop.time() >= until:
                    raise

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()


def _refusal(error: aiohttp.WSServerHandshakeError) -> EngineError:
    """What an answer other than 101 means to a call."""
    if error.status in (401, 403):
        return EngineRefused(
            f"the remote refused our key ({error.status}): check the chat engine's token and auth"
        )
    if error.status in (429, 503):
        return EngineFull(f"the remote is full ({error.status})", _retry_after(error))
    if error.status == 400:
        return EngineRefused("the remote refused the persona's parameters (400)")
    return EngineError(
        f"the remote answered {error.status} instead of a WebSocket: check the chat engine's url"
    )


def _retry_after(error: aiohttp.WSServerHandshakeError) -> float:
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(value), 3600.0) if value.isdigit() else 5.0
