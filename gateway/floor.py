"""Floor: who has it. Carries what the duplex noticed from the media path to calls and engines.

The cut itself was made by the media path, in the block in which it was decided; what follows here is that
the engine learns of it, that nothing stale is left to play, and that the engine may speak again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from gateway.call import Call
from gateway.duplex import CallerStopped, DuplexEvent, Interrupted, Policy, Resumed
from gateway.switchboard import Switchboard

log = logging.getLogger(__name__)

HINT_TICKS = 25
"""Carries between looks at the calls' round trips: 2 s."""
SETTLE_TICKS = 2
"""Carries (of 80 ms) after which nothing that the engine said before the cut is still on its way."""


class FloorProcessing(Protocol):
    """DuplexProcessing as seen from the loop, wherever it works; see there."""

    def set_policy(self, row: int, policy: Policy) -> None: ...

    def yielded(self, row: int) -> None: ...

    def expect_echo(self, row: int, round_trip_ms: float) -> None: ...

    def take_events(self) -> list[tuple[int, DuplexEvent]]: ...


class Floor:
    """The duplex of all calls. `policies`: persona name -> policy; others are left to the model."""

    def __init__(
        self, switchboard: Switchboard, processing: FloorProcessing, policies: Mapping[str, Policy]
    ) -> None:
        self.switchboard = switchboard
        self.processing = processing
        self.policies = dict(policies)
        self.interrupted = 0
        """Cuts since the start."""
        self._carried = 0
        self._settling: dict[int, int] = {}
        """Row -> carries until its engine's output is new again."""
        self._silenced: set[int] = set()
        """Rows whose engine is held at silence until the caller has finished."""
        switchboard.on_admitted(self._admitted)

    def carry(self) -> None:
        """Once a frame, on the loop: deliver events, finish cuts."""
        self._carried += 1
        if self._carried % HINT_TICKS == 0:
            self._hint_echoes()
        for row in [row for row, left in self._settling.items() if left <= 1]:
            del self._settling[row]
            self.switchboard.plane.cut(row)
            self.processing.yielded(row)
        for row in self._settling:
            self._settling[row] -= 1
        for row, event in self.processing.take_events():
            call = self.switchboard.on_row(row)
            if call is not None:
                self._take(call, event)
                call.deliver(event)

    def _hint_echoes(self) -> None:
        """An echo comes back after the round trip of the network and what lies behind it."""
        for call in self.switchboard.calls.values():
            if call.answered_at is not None and call.media_number is not None:
                round_trip_ms = self.switchboard.plane.number(call.row, "round_trip_ms")
                if round_trip_ms > 0:
                    self.processing.expect_echo(call.row, round_trip_ms)

    def _take(self, call: Call, event: DuplexEvent) -> None:
        match event:
            case Interrupted(heard=sent):
                self.interrupted += 1
                self._interrupt(call, sent)
            case CallerStopped():
                self._release(call)
            case Resumed(why="watchdog"):
                log.warning("call %s: the agent was given the floor back by the watchdog", call.id)
                self._release(call)

    def _interrupt(self, call: Call, sent: int) -> None:
        plane = self.switchboard.plane
        if call.slot.interrupt(plane.spoken_of(call.row, sent)):
            self._silenced.add(call.row)
            self._settling[call.row] = SETTLE_TICKS
        # An engine that cannot be told stays muted until it pauses by itself; the duplex sees that.
        plane.cut(call.row)

    def _release(self, call: Call) -> None:
        if call.row in self._silenced:
            self._silenced.discard(call.row)
            call.release_agent()

    def _admitted(self, call: Call) -> None:
        self.processing.set_policy(call.row, self.policies.get(call.persona.name, Policy.MODEL))
        call.on_ended(self._ended)

    def _ended(self, call: Call) -> None:
        self._settling.pop(call.row, None)
        self._silenced.discard(call.row)
        self.processing.set_policy(call.row, Policy.MODEL)
