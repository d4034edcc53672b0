"""Suspects: is what sounds like speech on a row the caller's, or the agent's own voice come back?

A canceller takes that voice out, once it has converged, and until its path changes. Before, and when the
detector hears speech beside an agent who speaks, the words themselves are asked: is what was heard like what
was sent (see likeness.py)? Of a row whose echo is unknown speech is kept from the Duplex until it is found to
be the caller's; what turns out to be the agent's is forgotten, and the canceller told. It knows no policy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.media.echo import EchoCanceller
from gateway.media.echo_rows import ALL, LITTLE, MUCH, NONE
from gateway.media.vad import SpeechDetector

Rows = NDArray[np.intp]
Flags = NDArray[np.bool_]

LEAD, EARLIER = 2, 4
"""Blocks that a talkspurt's first frame goes back; and before which a voice may have begun softly."""
LEAST, MOST = 5, 16
"""Blocks of a talkspurt from which it can be told, and that a likeness is taken of: 0.12 s, and 0.32 s."""
SOON = 3
"""Blocks more that this takes."""
AGAIN, SELDOM = 8, (SOON, 12)
"""Blocks from one question to the next of what was found to be the caller's, of others it is one; and when it
is asked of rows whose filter has converged."""
UNLIKE, LIKE = 0.33, 0.4
"""Share of what was heard, evened, that what was sent explains, under which it is no echo, of room or line;
and from which, later, it is one after all."""
PLAIN = 0.65
"""Share, not evened, under which a row with a filter is plainly not heard itself."""
INNOCENT, GUILTY = 3.0, 10.0
"""Power of what was put out over what the likeness leaves: of a caller less, and of an echo that the filter
should have taken off more. A caller may reach it for a moment, and would lose his filter: so not at once."""
FIRST = 1_536
"""Samples at 8 kHz of speech that count, at most, once a voice is found: 0.19 s, enough to hold the agent."""
MOSTLY, SOME = 0.9, 2.0
"""Where nearly all is echo and some of it came through before the filter found its new path, it is over."""
QUESTIONS = 3
"""A tick, over all rows: a millisecond each. Who is not asked now is asked in the next."""


class Suspects:
    """What is known of each row's present talkspurt."""

    def __init__(self, count: int) -> None:
        self._span = np.zeros(count, np.int64)  # blocks since the detector heard speech
        self._asked = np.zeros(count, np.int64)  # its length when it was last asked
        self._hidden = np.zeros(count, np.bool_)  # it may be the agent's
        self._cleared = np.zeros(count, np.bool_)  # it is the caller's
        self._plain = np.zeros(count, np.bool_)  # and nothing like what was sent
        self._doubt = np.zeros(count, np.int8)  # about the row as it began
        self._voice = np.zeros(count, np.float32)  # the caller's level before it
        self._left = self._turn = 0

    def open(self, row: int) -> None:
        self._drop(row)
        self._voice[row] = 0

    def question(self, rows: Rows, canceller: EchoCanceller, detector: SpeechDetector) -> Rows:
        """After the detector's block. Returns rows whose speech is not to be told, or no more."""
        speaking = detector.speech[rows] > 0
        silent, asked = rows[~speaking], rows[speaking]
        self._drop(silent)
        self._voice[silent] = detector.voice[silent]
        self._span[asked] += 1
        self._left = QUESTIONS
        asked = np.roll(asked, self._turn)
        self._turn += 1
        for row, doubt in zip(asked.tolist(), canceller.doubt(asked).tolist(), strict=True):
            if self._span[row] == 1:
                self._begin(row, doubt)
            elif self._hidden[row] and self._doubt[row] == ALL and doubt in (LITTLE, MUCH):
                self._forget(row, detector)  # an echo was found meanwhile
            elif doubt == NONE and self._doubt[row] == ALL:
                self._clear(row, True)  # none was, for long enough
            elif doubt != NONE and self._due(row, doubt, canceller):
                self._ask(row, doubt, canceller, detector)
        return asked[self._hidden[asked]]

    def plain(self, rows: Rows) -> Flags:
        """Rows (n,) of which the present speech is plainly the caller's."""
        return self._plain[rows]

    def _begin(self, row: int, doubt: int) -> None:
        self._doubt[row] = doubt
        self._hidden[row] = doubt in (MUCH, ALL)
        self._cleared[row] = self._plain[row] = doubt == NONE

    def _due(self, row: int, doubt: int, canceller: EchoCanceller) -> bool:
        more = int(self._span[row]) + LEAD - LEAST
        if self._left <= 0 or more < 0:
            return False
        if doubt == LITTLE and not self._hidden[row]:
            return more in SELDOM and canceller.explains(row, LEAST)
        return not self._cleared[row] or int(self._span[row] - self._asked[row]) >= AGAIN

    def _ask(self, row: int, doubt: int, canceller: EchoCanceller, detector: SpeechDetector) -> None:
        self._left -= 1
        self._asked[row] = self._span[row]
        blocks = int(self._span[row]) + LEAD + (EARLIER if doubt == ALL else 0)
        share, over = canceller.likeness(row, min(blocks, MOST), evenly=doubt == ALL)
        doubt = max(doubt, MUCH) if self._hidden[row] else doubt
        if doubt == ALL:
            unlike = share < (LIKE if self._cleared[row] else UNLIKE)
            if unlike and not self._cleared[row]:
                detector.speech[row] = min(detector.speech[row], FIRST)  # it is asked again before a cut
            self._hidden[row], self._cleared[row], self._plain[row] = not unlike, unlike, unlike
        elif over > GUILTY and blocks >= LEAST + SOON:
            canceller.misled(row, min(blocks, MOST))
            self._forget(row, detector)
        elif doubt == MUCH and share > MOSTLY and SOME < over < INNOCENT:
            self._forget(row, detector)
        elif over < (GUILTY if doubt == LITTLE else INNOCENT):
            self._clear(row, share < PLAIN)

    def _clear(self, row: int, plain: bool) -> None:
        self._hidden[row], self._cleared[row], self._plain[row] = False, True, plain

    def _forget(self, row: int, detector: SpeechDetector) -> None:
        detector.forget(row, float(self._voice[row]))
        self._drop(row)

    def _drop(self, rows: Rows | int) -> None:
        self._span[rows] = self._asked[rows] = 0
        for flags in (self._hidden, self._cleared, self._plain):
            flags[rows] = False
