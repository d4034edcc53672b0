"""What signalling asks of the media thread, applied at the next tick in the order asked."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.duplex import Policy
from gateway.media.messages import OpusMedia, RtpMedia


@dataclass(frozen=True, slots=True)
class Command:
    row: int


@dataclass(frozen=True, slots=True)
class OpenRtp(Command):
    call: int
    media: RtpMedia


@dataclass(frozen=True, slots=True)
class OpenRtcp(Command):
    """Reports have a socket of their own, which comes with this."""


@dataclass(frozen=True, slots=True)
class ChangeRtp(Command):
    media: RtpMedia


@dataclass(frozen=True, slots=True)
class OpenOpus(Command):
    call: int
    media: OpusMedia


@dataclass(frozen=True, slots=True)
class Start(Command):
    pass


@dataclass(frozen=True, slots=True)
class Announce(Command):
    pcm: bytes
    """int16, 24 kHz mono, in the order of this machine's octets."""
    answered: bool


@dataclass(frozen=True, slots=True)
class Close(Command):
    pass


@dataclass(frozen=True, slots=True)
class Cut(Command):
    pass


@dataclass(frozen=True, slots=True)
class Mute(Command):
    muted: bool


@dataclass(frozen=True, slots=True)
class Deafen(Command):
    deaf: bool


@dataclass(frozen=True, slots=True)
class NoteReport(Command):
    remote_loss: float
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class SendDtmf(Command):
    digits: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class SetPolicy(Command):
    """For what stands between the line and the engine; it holds from the row's opening on."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class Yielded(Command):
    """The engine was told of a cut; what it says now is new."""


@dataclass(frozen=True, slots=True)
class ExpectEcho(Command):
    round_trip_ms: float
