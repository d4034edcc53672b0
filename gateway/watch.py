"""CallWatch: ends calls that last too long, and those whose caller has fallen silent. Pure: it is told the
time and the levels, and answers what is to be done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What a look at one call calls for."""

    NOTHING = "nothing"
    ASK = "ask"
    """Ask the caller whether he is still there."""
    END_SILENT = "the caller is silent"
    END_LONG = "the call has lasted as long as it may"


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """None: no such limit."""

    max_call_s: float | None = None
    caller_silence_s: float | None = None
    """After so long without his voice the caller is asked; after as long again the call ends."""
    voice_dbfs: float = -45.0
    """Below it the caller counts as silent."""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.max_call_s is not None or self.caller_silence_s is not None


class CallWatch:
    """One call's. `now` is in seconds on any clock that only grows."""

    def __init__(self, limits: WatchLimits, answered_at: float) -> None:
        self.limits = limits
        self.answered_at = answered_at
        self.heard_at = answered_at
        """When somebody last spoke: the caller, or the agent (who listens while he speaks)."""
        self.asked = False

    def look(self, now: float, caller_dbfs: float, agent_dbfs: float, held: bool) -> Action:
        """What to do now, given both sides' levels since the last look. A held call waits."""
        limits = self.limits
        if limits.max_call_s is not None and now - self.answered_at >= limits.max_call_s:
            return Action.END_LONG
        if held or caller_dbfs >= limits.voice_dbfs:
            self.heard_at, self.asked = now, False
        elif agent_dbfs >= limits.voice_dbfs and not self.asked:
            self.heard_at = now  # nobody owes an answer while the agent speaks
        if limits.caller_silence_s is None:
            return Action.NOTHING
        silent_s = now - self.heard_at
        if self.asked and silent_s >= 2 * limits.caller_silence_s:
            return Action.END_SILENT
        if not self.asked and silent_s >= limits.caller_silence_s:
            self.asked = True
            return Action.ASK
        return Action.NOTHING
