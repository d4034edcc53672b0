"""Dialogue: calls made up on the fly, in the code domain, so that no two training calls are alike.

A call is spliced from strings of codes: the agent's canned lines (8 codes and a text token a frame) and
callers' utterances, coughs, noise and echoes (codebook 1). The caller's last stream, what the codec takes her
to mean, is made up: it wavers while she speaks, settles when she ends and means anything the rest of the
time, whatever the words in codebook 1 are. So the model learns when to speak from codebook 1 and what about
from the meaning, and goes on to do so when the codec learns to hear better. The streams between are zero
tables. Frames are 80 ms. Nothing here knows sound or networks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from train import receptionist as script

PAD, EPAD = 3, 0
GREETING_AT = 3
ANSWER_AFTER = 5
"""Frames from the last frame with the caller's voice to the first of the answer."""
YIELD_AFTER = 5
"""Frames from the first of the caller's voice to the agent's silence."""
STILL_THERE_AFTER = 100
BACKCHANNEL_AFTER = 26
SETTLES = 3
"""Frames after the caller's last within which the meaning has settled."""
HANGUP_AFTER = 14
"""Frames of silence after the goodbye in which the caller may object; then the call ends."""
HANGUP_LATE = 12
"""Frames by which she may miss that moment: until she has hung up, every one of them is the moment."""
GARBLED = 0.08
"""Share of utterances made incomprehensible: as the codec may mean anything by them, they change nothing."""
UNLABELLED = -1

Codes = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class AgentLine:
    """One canned line: codes (n, 8) and text (n,), the last frames silent."""

    name: str
    codes: Codes
    text: Codes
    event: int | None = None
    """A text token that follows the line."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Codes (n,) of an utterance with what surrounds it; voice in frames [start, end]."""

    codes: Codes
    start: int
    end: int
    intent: int


@dataclass(slots=True)
class Strings:
    """What calls are spliced from."""

    lines: dict[str, AgentLine]
    silence: Codes
    """(8,) the agent's silence."""
    utterances: list[list[Heard]]
    """By intent."""
    backgrounds: list[Codes]
    """Lines on which nobody speaks, each (n,)."""
    coughs: list[Codes]
    echoes: dict[str, list[Codes]]
    """What the caller's line gives while a line of the agent is said and heard back."""


@dataclass(slots=True)
class Call:
    """A call under construction, `frames` long."""

    text: Codes
    agent: Codes
    past_text: Codes
    past_agent: Codes
    """What the agent is told it said: as above, but that it sometimes went on when it should have yielded."""
    caller: Codes
    meaning: Codes
    learn: NDArray[np.bool_]
    """Frames whose text is a fair question (False where the agent was cut from outside)."""
    intent: Codes
    speaking: NDArray[np.bool_]
    worth: NDArray[np.bool_]
    """Frames whose codes are worth learning: her speech and the moments after she stops."""
    log: list[tuple[int, str]] = field(default_factory=list)


def new_call(strings: Strings, frames: int, rng: random.Random) -> Call:
    """Everybody silent, on a random line."""
    caller = np.empty(0, np.int16)
    background = rng.choice(strings.backgrounds)
    while len(caller) < frames:
        start = rng.randrange(max(1, len(background) - 40))
        caller = np.concatenate([caller, background[start:]])
        if rng.random() < 0.1:
            background = rng.choice(strings.backgrounds)
    return Call(
        text=np.full(frames, PAD, np.int16),
        agent=np.tile(strings.silence, (frames, 1)),
        past_text=np.full(frames, PAD, np.int16),
        past_agent=np.tile(strings.silence, (frames, 1)),
        caller=caller[:frames].copy(),
        meaning=wavering(frames, rng),
        learn=np.ones(frames, bool),
        intent=np.full(frames, UNLABELLED, np.int16),
        speaking=np.zeros(frames, bool),
        worth=np.zeros(frames, bool),
    )


def wavering(frames: int, rng: random.Random) -> Codes:
    """(frames,) meanings of no meaning: nothing, or one and then another."""
    out = np.zeros(frames, np.int16)
    at = 0
    while at < frames:
        length = 1 + int(rng.expovariate(1 / rng.choice((2, 12, 60))))
        out[at : at + length] = rng.randint(0, len(script.INTENTS)) if rng.random() < 0.7 else 0
        at += length
    return out


class Scriptwriter:
    """Writes calls with the receptionist's manners."""

    def __init__(self, strings: Strings, seed: int) -> None:
        self.strings = strings
        self.rng = random.Random(seed)
        sizes = [len(group) for group in strings.utterances]
        self.weights = [1.0 if size else 0.0 for size in sizes]
        self.fallback = script.INTENTS.index(script.FALLBACK)
        self.weights[self.fallback] *= 9.0

    def call(self, frames: int) -> Call:
        """One call from its first frame."""
        call = new_call(self.strings, frames, self.rng)
        echo = self.rng.random() < 0.25
        for _ in range(self.rng.choice((0, 0, 1, 3, 6))):
            self._lay(call, self.rng.choice(self.strings.coughs), self.rng.randrange(frames))
        at, name, last = GREETING_AT, script.GREETING, script.GREETING
        while at < frames:
            end = at + len(self.strings.lines[name].codes)
            begins = self._caller_begins(at, end, name)
            cut = begins + YIELD_AFTER if begins + YIELD_AFTER < end - 1 else None
            hangs_up = name in script.EVENTS and cut is None and begins >= self._event_at(name, end)
            self._say(call, name, at, cut, echo)
            if hangs_up:
                self._event(call, name, end, begins)
                return call
            if name in script.AWAITED and begins > end + STILL_THERE_AFTER + 30:
                self._say(call, script.STILL_THERE, end + STILL_THERE_AFTER, None, echo)
            if name != script.SLOWER:
                last = name.removesuffix("_slow")
            intent, stops = self._caller(call, begins)
            at, name = stops + ANSWER_AFTER, self._answer(intent, last)
        return call

    def _event_at(self, name: str, end: int) -> int:
        """When the event of a line that ends at `end` is due, if nobody speaks until then."""
        return end + (HANGUP_AFTER if script.EVENTS[name] == script.HANGUP_TOKEN else 0)

    def _event(self, call: Call, name: str, end: int, begins: int) -> None:
        """The event of a line, once; hanging up sometimes late, and asked for in every frame until then.

        How long a silence was is never sure to a frame: asked for in one alone, none is likely enough.
        """
        due, token = self._event_at(name, end), self.strings.lines[name].event
        late = 0
        if script.EVENTS[name] == script.HANGUP_TOKEN and self.rng.random() < 0.6:
            late = min(self.rng.randint(1, HANGUP_LATE), max(0, begins - due - 1))
        if due >= len(call.text) or token is None:
            return
        call.text[due : due + late + 1] = token
        call.past_text[min(due + late, len(call.text) - 1)] = token
        call.worth[due - 1 : due + late + 2] = True

    def _caller_begins(self, at: int, end: int, name: str) -> int:
        draw = self.rng.random()
        if name in script.EVENTS and draw > 0.45:
            return end + 10 * HANGUP_AFTER
        if draw < 0.22 and end - at > 20:
            return at + self.rng.randint(5, end - at - 8)
        if name in script.AWAITED and draw < 0.5:
            return end + STILL_THERE_AFTER + self.rng.randint(35, 70)
        if draw < 0.29:
            return end + self.rng.randint(60, 200)
        return end + min(60, 3 + int(self.rng.expovariate(1 / 10)))

    def _caller(self, call: Call, at: int) -> tuple[int, int]:
        """Lay one turn of the caller from frame `at`; its intent and its last frame."""
        parts = 1 if self.rng.random() < 0.92 else self.rng.randint(2, 3)
        begins, intent, end = at, 0, at
        for _ in range(parts):
            said = self.rng.choice(self.strings.utterances[self._any_intent()])
            intent = self._any_intent()
            if self.rng.random() < GARBLED:
                said = self._garbled(said)
            self._lay(call, said.codes, at - said.start)
            end = at + said.end - said.start
            self._mean(call, intent, end)
            at = end + 1 + self.rng.randint(0, 2)
        if end - begins > BACKCHANNEL_AFTER + 12:
            self._say(call, script.BACKCHANNEL, begins + BACKCHANNEL_AFTER, None, False)
        call.intent[end + SETTLES : end + ANSWER_AFTER] = intent
        call.log.append((end, script.INTENTS[intent]))
        return intent, end

    def _any_intent(self) -> int:
        return self.rng.choices(range(len(self.weights)), self.weights)[0]

    def _mean(self, call: Call, intent: int, end: int) -> None:
        """The meaning settles when or soon after the caller ends, and stays until the answer is under way."""
        settled = end + self.rng.randint(-2, SETTLES)
        call.meaning[max(0, settled) : end + ANSWER_AFTER + self.rng.randint(2, 30)] = 1 + intent

    def _garbled(self, said: Heard) -> Heard:
        """Most of an utterance's frames from other utterances: nobody could understand it."""
        codes = said.codes.copy()
        for frame in range(said.start, min(said.end + 1, len(codes))):
            if self.rng.random() < 0.65:
                other = self.rng.choice(self.rng.choice(self.strings.utterances) or [said])
                codes[frame] = other.codes[self.rng.randint(other.start, other.end)]
        return Heard(codes, said.start, said.end, said.intent)

    def _answer(self, intent: int, last: str) -> str:
        name = script.INTENTS[intent]
        if name == script.REPEAT:
            return last
        if name == script.SLOWER:
            return f"{last}_slow" if last in script.SLOW else script.SLOWER
        return name

    def _say(self, call: Call, name: str, at: int, cut: int | None, echo: bool) -> None:
        """Lay one of the agent's lines; a cut one falls silent, its text pads on."""
        line, frames = self.strings.lines[name], len(call.text)
        stop = min(at + len(line.codes), frames)
        forced = self._forced_stop(line) if cut is None and self.rng.random() < 0.06 else None
        if cut is not None:
            stop = min(stop, cut)
        if forced is not None:
            stop = min(stop, at + forced + 1)
        if stop <= at:
            return
        count = stop - at
        call.agent[at:stop] = line.codes[:count]
        call.text[at:stop] = line.text[:count]
        call.speaking[at:stop] = True
        self._remember(call, line, at, stop, cut is not None)
        if forced is not None:
            call.text[stop - 1] = call.past_text[stop - 1] = PAD
            call.learn[stop - 1 : min(stop + 1, frames)] = False
        if at > 0:
            call.text[at - 1] = call.past_text[at - 1] = EPAD
        call.log.append((at, f"agent:{name}"))
        if echo and name in self.strings.echoes:
            heard = self.rng.choice(self.strings.echoes[name])[:count]
            self._lay(call, heard, at + self.rng.randint(0, 3))

    def _remember(self, call: Call, line: AgentLine, at: int, stop: int, yielded: bool) -> None:
        """The line as her past; half of the times she yields, she had gone on for some frames."""
        late = self.rng.randint(1, 10) if yielded and self.rng.random() < 0.5 else 0
        end = min(stop + late, at + len(line.codes), len(call.text))
        call.past_agent[at:end] = line.codes[: end - at]
        call.past_text[at:end] = line.text[: end - at]
        call.worth[at : max(end, stop) + 4] = True

    def _forced_stop(self, line: AgentLine) -> int | None:
        """A frame at which a word would begin, where the gateway holds the text at padding."""
        words = [i for i, token in enumerate(line.text) if token not in (PAD, EPAD) and i > 4]
        return self.rng.choice(words) if words else None

    def _lay(self, call: Call, codes: Codes, at: int) -> None:
        start, stop = max(0, at), min(len(call.caller), at + len(codes))
        if stop > start:
            call.caller[start:stop] = codes[start - at : stop - at]
