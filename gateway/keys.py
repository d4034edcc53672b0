"""KeyPad: one press, one key, although some phones send each press as RFC 4733 event and as SIP INFO, and
some gateways leave the tone in the audio too. Pure: it is told the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.call_events import KeySource

SAME_PRESS_S = 1.5
"""Two ways of one press may be so far apart: an INFO that was retransmitted once."""


@dataclass(slots=True)
class _Press:
    digit: str
    at: float
    seen_by: set[KeySource] = field(default_factory=set)


class KeyPad:
    """One caller's keys."""

    def __init__(self) -> None:
        self._recent: list[_Press] = []

    def is_new(self, digit: str, source: KeySource, now: float) -> bool:
        """False for a press that another source has told already. `now` in seconds on a clock that grows."""
        self._recent = [press for press in self._recent if now - press.at < SAME_PRESS_S]
        for press in self._recent:
            if press.digit == digit and source not in press.seen_by:
                press.seen_by.add(source)
                return False
        self._recent.append(_Press(digit, now, {source}))
        return True
