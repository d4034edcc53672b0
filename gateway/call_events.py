"""What is told of a live call beside its audio: keys pressed, states, the agent's orders to the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.api import SlotEvent
from gateway.duplex import DuplexEvent
from gateway.media.messages import MediaEvent

State = Literal["ringing", "answered", "held", "resumed", "transferring", "transfer failed"]
KeySource = Literal["rtp", "info", "inband"]
"""RFC 4733 events, SIP INFO, tones in the audio."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The call went into another state. `held` and `resumed` are told whichever side did it."""

    state: State


@dataclass(frozen=True, slots=True)
class KeyPressed:
    """The caller pressed a key: told once a press, however many ways his phone sends it."""

    digit: str
    """0-9 * # A-D, or ! for hook flash. Never logged: it may be part of a PIN."""
    duration_ms: int
    source: KeySource


@dataclass(frozen=True, slots=True)
class OrderGiven:
    """The agent's text held a token that tells the gateway to act."""

    order: Literal["transfer", "hangup"]


CallEvent = SlotEvent | MediaEvent | DuplexEvent | StateChanged | KeyPressed | OrderGiven
