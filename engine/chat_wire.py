"""The messages of Kyutai's `/api/chat`: byte 0 is the kind, the rest its payload. Sans-IO, both sides.

Source: kyutai moshi `server.py`, `rust/moshi-backend`, `client/src/protocol`; PersonaPlex `server.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING, COLOURED = range(8)

MAX_MESSAGE = 1 << 20
"""Bytes of the longest message a peer may send."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """The server is ready: one byte from Python servers, nine from the Rust one."""


@dataclass(frozen=True, slots=True)
class Audio:
    """A piece of one continuous Ogg-Opus stream, 24 kHz mono."""

    ogg: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the agent's inner monologue."""

    text: str


@dataclass(frozen=True, slots=True)
class Control:
    """0 start, 1 end of turn, 2 pause, 3 restart; no server acts on it."""

    action: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """The Rust backend's description of itself, before its handshake."""

    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerError:
    """What went wrong, in the peer's words."""

    message: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Keeps the connection; no answer."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A kind we do not know, or a payload that does not parse: tolerated, and counted by the reader."""

    kind: int


Message = Handshake | Audio | Text | Control | Metadata | ServerError | Ping | Unknown


def parse(data: bytes) -> Message:
    """Never raises: a peer may send what it likes, and a call goes on."""
    if not data:
        return Unknown(-1)
    kind, payload = data[0], data[1:]
    match kind:
        case 0:
            return Handshake()
        case 1:
            return Audio(payload)
        case 2:
            return Text(payload.decode(errors="replace"))
        case 3:
            return Control(payload[0]) if payload else Unknown(kind)
        case 4:
            return _metadata(payload)
        case 5:
            return ServerError(payload.decode(errors="replace"))
        case 6:
            return Ping()
        case 7:
            return Text(payload[1:].decode(errors="replace")) if payload else Unknown(kind)
        case _:
            return Unknown(kind)


def _metadata(payload: bytes) -> Message:
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError):
        return Unknown(METADATA)
    return Metadata(values) if isinstance(values, dict) else Unknown(METADATA)


def serialise(message: Message) -> bytes:
    """The message's bytes. Raises ValueError for Unknown, which is never sent.

    A ping is one byte: the Rust backend parses a payload as a message of its own.
    """
    match message:
        case Handshake():
            return bytes([HANDSHAKE])
        case Audio(ogg):
            return bytes([AUDIO]) + ogg
        case Text(text):
            return bytes([TEXT]) + text.encode()
        case Control(action):
            return bytes([CONTROL, action])
        case Metadata(values):
            return bytes([METADATA]) + json.dumps(values).encode()
        case ServerError(text):
            return bytes([ERROR]) + text.encode()
        case Ping():
            return bytes([PING])
        case Unknown(kind):
            raise ValueError(f"kind {kind} is not ours to send")
