"""Dial: whom a call from the command line goes to, and what it says."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

from engine.api import Pcm
from sip.uri import parse_uri


class CannotDial(Exception):
    """The URI is none that can be called, or its host has no address."""


@dataclass(frozen=True, slots=True)
class Dial:
    """What to call and what to say."""

    uri: str
    speech: Pcm
    """(n,) float32 at 24 kHz."""
    recording: Path
    tail_s: float = 5.0
    """Listen for so long after the speech."""
    ring_s: float = 60.0
    """Give up when nobody has answered by then."""


async def resolved(uri: str) -> str:
    """The numeric address of the URI's host. Raises CannotDial."""
    try:
        target = parse_uri(uri)
    except ValueError as error:
        raise CannotDial(f"{uri}: {error}") from error
    if target.scheme != "sip" or not target.host:
        raise CannotDial(f"{uri}: only sip: URIs with a host can be called")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            target.host, target.port or 5060, type=socket.SOCK_DGRAM
        )
    except OSError as error:
        raise CannotDial(f"{target.host}: {error.strerror or error}") from error
    return str(found[0][4][0])
