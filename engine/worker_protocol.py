"""What a gateway and an engine worker say to each other over one WebSocket. Sans-IO.

Binary messages carry the audio: one a tick each way, with a frame of every call. Text messages are JSON
with a `type`, one dataclass each. A call is a number its gateway gave it: row in the low 16 bits, how many
calls the row had before in the high 16, so that a late frame never reaches the row's next call.

Binary, little endian: u8 version · u8 reserved · u16 calls · u16 texts · u16 reserved · u32 tick, then
u32 a call, then 1,920 × i16 a call, then a text: u32 call · u16 bytes · UTF-8.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from engine.api import FRAME, EngineError, EngineRefused
from engine.frames import Batch

VERSION = 1
MAX_CALLS = 4_096
MAX_MESSAGE = MAX_CALLS * (4 + 2 * FRAME) + (1 << 20)
"""Bytes of the longest message."""
_HEAD = struct.Struct("<BBHHHI")
_TEXT = struct.Struct("<IH")
_SCALE = 32_767.0

Calls = NDArray[np.uint32]


class WorkerProtocolError(EngineError):
    """The other side sent what this protocol does not know."""


class WorkerVersionError(EngineRefused):
    """The other side speaks another version: both must be upgraded to the same release."""

    def __init__(self, theirs: object) -> None:
        super().__init__(
            f"the worker protocol is version {VERSION} here and {theirs} there: run one release on both"
        )


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """One tick of all calls between a gateway and a worker."""

    tick: int
    calls: Calls
    """(n,) numbers."""
    pcm: Batch
    """(n, 1920); on the wire in 16 bits."""
    texts: tuple[tuple[int, str], ...] = ()
    """Call and piece of the agent's monologue, in order."""

    def encode(self) -> bytes:
        """Raises ValueError for more than 4,096 calls."""
        if len(self.calls) > MAX_CALLS:
            raise ValueError(f"{len(self.calls)} calls do not go into one message")
        head = _HEAD.pack(VERSION, 0, len(self.calls), len(self.texts), 0, self.tick & 0xFFFFFFFF)
        samples = np.rint(np.clip(self.pcm, -1.0, 1.0) * _SCALE).astype("<i2")
        return b"".join(
            [head, self.calls.astype("<u4").tobytes(), samples.tobytes(), *map(_text, self.texts)]
        )

    @classmethod
    def decode(cls, data: bytes) -> FrameBatch:
        """Raises WorkerProtocolError, WorkerVersionError."""
        if len(data) < _HEAD.size:
            raise WorkerProtocolError("a frame message is cut short")
        version, _, count, texts, _, tick = _HEAD.unpack_from(data)
        if version != VERSION:
            raise WorkerVersionError(version)
        audio = _HEAD.size + 4 * count
        end = audio + 2 * FRAME * count
        if len(data) < end or count > MAX_CALLS:
            raise WorkerProtocolError(f"a frame message of {count} calls has {len(data)} bytes")
        calls = np.frombuffer(data, "<u4", count, _HEAD.size)
        samples = np.frombuffer(data, "<i2", FRAME * count, audio).reshape(count, FRAME)
        pcm = samples.astype(np.float32) / np.float32(_SCALE)
        return cls(tick, calls, pcm, _read_texts(data[end:], texts))


def _text(text: tuple[int, str]) -> bytes:
    call, piece = text
    encoded = piece.encode()[:0xFFFF]
    return _TEXT.pack(call, len(encoded)) + encoded


def _read_texts(data: bytes, count: int) -> tuple[tuple[int, str], ...]:
    texts, at = [], 0
    for _ in range(count):
        if len(data) < at + _TEXT.size:
            raise WorkerProtocolError("a frame message ends within its texts")
        call, size = _TEXT.unpack_from(data, at)
        at += _TEXT.size
        texts.append((call, data[at : at + size].decode(errors="replace")))
        at += size
    if at != len(data):
        raise WorkerProtocolError("a frame message has bytes behind its texts")
    return tuple(texts)


@dataclass(frozen=True, slots=True)
class Greeting:
    """Gateway → worker, first."""

    version: int
    tick_in_ms: float
    """Until the gateway's next tick: an idle worker sets its clock to follow it."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Worker → gateway, in answer."""

    version: int
    engine: str
    interrupts: bool
    """Whether its engine can be interrupted."""
    injects: bool = False
    """Whether words can be forced on it."""
    holds: bool = False
    """Whether it knows Hold."""


@dataclass(frozen=True, slots=True)
class Open:
    """Gateway → worker: take this call. The answer is Opened or Refused."""

    call: int
    persona: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Opened:
    call: int


@dataclass(frozen=True, slots=True)
class Refused:
    """code: full, refused or error."""

    call: int
    code: str
    message: str
    retry_after_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Close:
    call: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Worker → gateway: this call has no more frames."""

    call: int
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    call: int
    unheard_samples: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Gateway → worker: the call's time stands still until Release."""

    call: int


@dataclass(frozen=True, slots=True)
class Release:
    call: int


@dataclass(frozen=True, slots=True)
class Inject:
    """Gateway → worker: the agent is to say these words."""

    call: int
    text: str


@dataclass(frozen=True, slots=True)
class Load:
    """Worker → gateway, once a second and at every change: engine.api.Capacity."""

    slots: int
    used: int
    retry_after_s: float = 5.0
    tick_p50_ms: float = 0.0
    tick_p99_ms: float = 0.0
    late_ticks: int = 0
    dropped_frames: int = 0
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draining:
    """Worker → gateway: no more calls; those here may finish."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Either way, before the connection is closed. code: version or protocol."""

    code: str
    message: str
    version: int = VERSION


Control = (
    Greeting
    | Welcome
    | Open
    | Opened
    | Refused
    | Close
    | Ended
    | Interrupt
    | Hold
    | Release
    | Inject
    | Load
    | Draining
    | Fault
)
_KINDS: dict[str, type[Control]] = {kind.__name__.lower(): kind for kind in get_args(Control)}
_CHECKS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "dict[str, Any]": (dict,),
    "dict[str, float]": (dict,),
}


def serialise(message: Control) -> str:
    return json.dumps({"type": type(message).__name__.lower()} | dataclasses.asdict(message))


def parse(text: str) -> Control:
    """Unknown keys are ignored, so that a version may add some. Raises WorkerProtocolError."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise WorkerProtocolError("a control message is not JSON") from None
    kind = _KINDS.get(str(values.get("type"))) if isinstance(values, dict) else None
    if kind is None:
        raise WorkerProtocolError("a control message of unknown type")
    known = {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}
    for declared in dataclasses.fields(kind):
        if declared.name in known and not _fits(known[declared.name], str(declared.type)):
            raise WorkerProtocolError(f"{kind.__name__.lower()}.{declared.name} is no {declared.type}")
    try:
        return kind(**known)
    except TypeError:
        raise WorkerProtocolError(f"a {kind.__name__.lower()} message lacks a key") from None


def _fits(value: object, declared: str) -> bool:
    if isinstance(value, bool):
        return declared == "bool"
    return isinstance(value, _CHECKS[declared])
