"""Duplex: who gives way to whom when caller and agent speak at once. One object a call.

It is told, block by block, for how long the caller has been speaking and whether the agent is heard; it
answers with what to do with the agent's voice (`give`) and with events. Time is the position in the row's
heard audio, 24 kHz samples, given with every call; nothing here reads a clock, touches audio or knows an
engine.

Speech of the caller over the agent's, policy `duck`: suspected, the agent is lowered by 15 dB; lasting, it is
held back where it stands; lasting longer than a backchannel, it is cut. What ends before is forgotten and
the agent goes on from where it was held, nothing lost. `cut` does the same without lowering: the agent falls
silent once speech is sure, and is cut if it outlasts a backchannel. `model` and `never` only tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CALM = 10
"""Blocks without a loud one after which another may lower the agent."""
MS = 24
"""Samples a millisecond."""


class Policy(StrEnum):
    MODEL = "model"
    """The model hears both and decides; the gateway measures."""
    DUCK = "duck"
    CUT = "cut"
    NEVER = "never"
    """Disclaimers and consent: the agent is heard to its end."""


class Give(StrEnum):
    """What is to be done with the agent's voice."""

    WHOLE = "whole"
    LOW = "low"
    """15 dB down."""
    HELD = "held"
    """Fade out and keep what comes."""
    NOTHING = "nothing"
    """Fade out and drop what was kept and what comes, until the engine has yielded."""


@dataclass(frozen=True, slots=True)
class DuplexSettings:
    """Times in ms of speech (gaps not counted) or of silence."""

    duck_ms: float = 30.0
    duck_unsure_ms: float = 90.0
    """While the caller's line may still hold the agent's own voice: its canceller has not converged."""
    doubt_ms: float = 160.0
    """How long something loud lowers the agent if no speech comes of it."""
    hold_ms: float = 120.0
    hold_unsure_ms: float = 190.0
    cut_ms: float = 500.0
    """As long as backchannels and coughs last."""
    hold_at_once_ms: float = 160.0
    """Policy `cut`, which has not lowered the agent before."""
    forget_ms: float = 260.0
    """Silence after which what was said so far is forgotten."""
    forget_unsure_ms: float = 320.0
    agent_pause_ms: float = 400.0
    """Silence after which the agent has stopped."""
    settle_ms: float = 160.0
    """After yielded(): one engine frame may have been in the making, and one on its way."""
    undecided_ms: float = 3_000.0
    """Watchdog: longest that a doubt may lower or hold the agent."""
    unyielding_ms: float = 4_000.0
    """Watchdog: longest that an engine which does not yield stays muted."""


@dataclass(frozen=True, slots=True)
class DuplexEvent:
    """Something changed between caller and agent."""

    at: int
    """24 kHz samples of the row's heard audio."""


@dataclass(frozen=True, slots=True)
class CallerStarted(DuplexEvent):
    over_agent: bool
    """The agent was speaking."""


@dataclass(frozen=True, slots=True)
class CallerStopped(DuplexEvent):
    pass


@dataclass(frozen=True, slots=True)
class AgentStarted(DuplexEvent):
    over_caller: bool


@dataclass(frozen=True, slots=True)
class AgentStopped(DuplexEvent):
    pass


@dataclass(frozen=True, slots=True)
class Ducked(DuplexEvent):
    """The caller may be speaking: the agent is lowered."""


@dataclass(frozen=True, slots=True)
class Held(DuplexEvent):
    """The caller is speaking: the agent waits where it is."""


@dataclass(frozen=True, slots=True)
class Resumed(DuplexEvent):
    """The agent is heard again."""

    why: str
    """`passed`: nothing came of it; `yielded`: the engine has stopped and what comes is new; `watchdog`."""


@dataclass(frozen=True, slots=True)
class Interrupted(DuplexEvent):
    """The agent was cut: tell the engine, clear the playout, then say yielded()."""

    heard: int
    """Samples sent on the row when the agent was cut, without those that were held back."""


class Duplex:
    """One call between opened and closed. Calls come in the order of time; positions never go back."""

    def __init__(self, policy: Policy = Policy.MODEL, settings: DuplexSettings = DuplexSettings()) -> None:
        self.policy = policy
        self.settings = settings
        self.give = Give.WHOLE
        self.caller_speaks = False
        self.agent_speaks = False
        self._events: list[DuplexEvent] = []
        self._sure = True
        self._speech = 0  # ms of the caller's talkspurt
        self._discounted = 0.0  # ms of it that say nothing about the agent
        self._settled = False  # this talkspurt has cut, or been let pass by the watchdog
        self._since = 0  # when `give` was last changed
        self._agent_quiet = 0  # samples
        self._sent = 0
        self._doubted_at: int | None = None  # something loud lowered the agent and has not been quiet since
        self._quiet_blocks = CALM
        self._new_from: int | None = None  # after a cut: where the agent's new words begin

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    @property
    def busy(self) -> bool:
        """Someone speaks, or the agent is not given whole: the next block matters even if it is silent."""
        return self.caller_speaks or self.agent_speaks or self.give is not Give.WHOLE

    def take_events(self) -> list[DuplexEvent]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def hear(
        self, at: int, speech_ms: float, silence_ms: float, loud: bool = False, sure: bool = True
    ) -> None:
        """The caller up to sample `at`: ms of speech in this talkspurt (0 outside), ms of silence since.

        loud: his last block is far over noise and echo, and may turn out to be speech; sure: how much echo
        his line holds is known. While it is not, being loud says nothing, and speech must last longer.
        """
        self._sure = sure
        loud = loud and sure
        self._note_caller(at, speech_ms, silence_ms)
        if self.give is Give.NOTHING or self.policy in (Policy.MODEL, Policy.NEVER):
            return
        self._quiet_blocks = 0 if loud else self._quiet_blocks + 1
        forget_ms = self.settings.forget_ms if sure else self.settings.forget_unsure_ms
        if silence_ms >= forget_ms or not self.caller_speaks:
            self._discounted = speech_ms
            self._settled = False
            self._doubt(at, loud)
            return
        self._doubted_at = None
        if self._settled or not (self.agent_speaks or self.give is Give.HELD):
            return
        self._weigh(at, speech_ms - self._discounted)

    def speak(self, at: int, loud: bool, sent: int, block: int = 480) -> None:
        """A block of the agent is about to go out; `sent` samples of him the caller has been sent so far."""
        self._sent = sent
        self._agent_quiet = 0 if loud else self._agent_quiet + block
        if loud and not self.agent_speaks:
            self.agent_speaks = True
            self._discounted = max(self._discounted, float(self._speech))
            self._events.append(AgentStarted(at, over_caller=self.caller_speaks))
        paused = self._agent_quiet >= self.settings.agent_pause_ms * MS
        if paused and self.agent_speaks:
            self.agent_speaks = False
            self._events.append(AgentStopped(at + block - self._agent_quiet))
        new = paused or (self._new_from is not None and at >= self._new_from)
        if self.give is Give.NOTHING and new:
            self._change(Give.WHOLE, at, Resumed(at, "yielded"))
        elif self.give is Give.LOW and paused:  # held, he waits with what he had to say
            self._resume(at, "passed")
        self._watch(at)

    def yielded(self, at: int) -> None:
        """The engine was told and its queue is empty: what comes, once that has settled, is new."""
        if self.give is Give.NOTHING and self._new_from is None:
            self._new_from = at + int(self.settings.settle_ms) * MS

    def _note_caller(self, at: int, speech_ms: float, silence_ms: float) -> None:
        if speech_ms > 0 and not self.caller_speaks:
            self.caller_speaks = True
            self._discounted = 0.0
            self._settled = False
            begun = max(0, at - int(speech_ms + silence_ms) * MS)
            self._events.append(CallerStarted(begun, over_agent=self.agent_speaks))
        elif speech_ms <= 0 and self.caller_speaks:
            self.caller_speaks = False
            self._discounted = 0.0
            self._events.append(CallerStopped(max(0, at - int(silence_ms) * MS)))
        self._speech = int(speech_ms)

    def _doubt(self, at: int, loud: bool) -> None:
        """Nobody speaks yet. Something loud lowers the agent for a moment, once until it has been quiet."""
        if self._quiet_blocks >= CALM:
            self._doubted_at = None
        if self._doubted_at is None:
            ducks = loud and self.policy is Policy.DUCK and self.agent_speaks and self.give is Give.WHOLE
            if ducks:
                self._doubted_at = at
                self._change(Give.LOW, at, Ducked(at))
                return
        elif at - self._doubted_at < self.settings.doubt_ms * MS:
            return
        self._resume(at, "passed")

    def _weigh(self, at: int, spoken: float) -> None:
        """The caller speaks over the agent, for `spoken` ms that count."""
        limits = self.settings
        ducks = self.policy is Policy.DUCK
        duck_ms = limits.duck_ms if self._sure else limits.duck_unsure_ms
        hold_ms = limits.hold_ms if ducks else limits.hold_at_once_ms
        if not self._sure:
            hold_ms = max(hold_ms, limits.hold_unsure_ms)
        if spoken >= limits.cut_ms:
            self._cut(at)
        elif spoken >= hold_ms and self.give is not Give.HELD:
            self._change(Give.HELD, at, Held(at))
        elif ducks and spoken >= duck_ms and self.give is Give.WHOLE:
            self._change(Give.LOW, at, Ducked(at))

    def _cut(self, at: int) -> None:
        self._settled = True
        self._change(Give.NOTHING, at, Interrupted(at, heard=self._sent))

    def _resume(self, at: int, why: str) -> None:
        if self.give in (Give.LOW, Give.HELD):
            self._change(Give.WHOLE, at, Resumed(at, why))

    def _change(self, give: Give, at: int, event: DuplexEvent) -> None:
        if self.give is Give.WHOLE or give in (Give.WHOLE, Give.NOTHING):
            self._since = at
        self.give = give
        self._new_from = None
        self._events.append(event)

    def _watch(self, at: int) -> None:
        """Nothing may stay lowered, held or muted for good."""
        limits = self.settings
        waited = at - self._since
        if self.give is Give.NOTHING and waited >= limits.unyielding_ms * MS:
            self._change(Give.WHOLE, at, Resumed(at, "watchdog"))
        elif self.give in (Give.LOW, Give.HELD) and waited >= limits.undecided_ms * MS:
            self._settled = True
            self._change(Give.WHOLE, at, Resumed(at, "watchdog"))
