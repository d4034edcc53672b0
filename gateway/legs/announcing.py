"""Announcing: recordings that callers hear before the agent: consent, "this call is recorded".

Where the caller takes audio before the answer, the recording plays then and our 200 waits for its end. One
who wants our offer and does not secure provisional answers (100rel), or who holds us from the first, is
answered first. Either way the agent hears and says nothing until the recording has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.call import Call
from gateway.legs.sip_calls import LegSockets, SipCalls
from gateway.media.face import MediaError
from sip.agent import CallStateError
from sip.events import CallOffered
from sip.sdp import AgreedMedia, LocalMedia


@dataclass(slots=True)
class _Waiting:
    """A call whose agent waits."""

    pcm: bytes
    local: LocalMedia
    answered: bool = False
    """Our 200 went out."""
    played: bool = False


class Announcing:
    """The calls that came in and hear a recording, or will."""

    def __init__(self, calls: SipCalls) -> None:
        self.calls = calls
        self._waiting: dict[str, _Waiting] = {}

    def answer(self, offered: CallOffered, call: Call, sockets: LegSockets) -> AgreedMedia | None:
        """The 200, or the 183 where a recording comes first; what was agreed by it.
        Raises SdpError, CallStateError."""
        local = self.calls.local_media(offered.source[0], sockets, offered.transport)
        agent, now = self.calls.agent, self.calls.now()
        pcm = self.calls.settings.announcements.get(offered.called.user)
        early = pcm is not None and (offered.offer is not None or offered.reliable)
        turn = agent.ring(offered.call, now, local) if early else agent.accept(offered.call, local, now)
        if pcm is not None:
            self._waiting[offered.call] = _Waiting(pcm, local, answered=not early)
            call.hold_agent()
        return turn

    def accepted_early(self, dialog: str, media: AgreedMedia) -> None:
        """The caller has our 183: he hears us, if he lets us speak."""
        call, waiting = self.calls.live.get(dialog), self._waiting.get(dialog)
        if call is None or waiting is None:
            return
        if media.held:
            self._accept(dialog, waiting)
        else:
            self._play(call, waiting)

    def confirmed(self, dialog: str, call: Call) -> None:
        """The caller has our 200: now the agent's turn has come, or the recording's."""
        waiting = self._waiting.get(dialog)
        if waiting is None or waiting.played:
            self.forget(dialog)
            call.answered()
        else:
            self._play(call, waiting)

    def announced(self, dialog: str, call: Call) -> None:
        """The recording has gone out to its last sample."""
        waiting = self._waiting.get(dialog)
        if waiting is None:
            return
        waiting.played = True
        if waiting.answered:
            self.forget(dialog)
            call.answered()
        else:
            self._accept(dialog, waiting)
            self.calls.shell.transmit()

    def awaited(self, dialog: str) -> bool:
        """The agent waits for a recording, or for the caller's word that the answer after it arrived."""
        return dialog in self._waiting

    def forget(self, dialog: str) -> None:
        self._waiting.pop(dialog, None)

    def _accept(self, dialog: str, waiting: _Waiting) -> None:
        waiting.answered = True
        try:
            self.calls.agent.accept(dialog, waiting.local, self.calls.now())
        except CallStateError:
            self.forget(dialog)  # the caller gave up; that is told on its own

    def _play(self, call: Call, waiting: _Waiting) -> None:
        try:
            self.calls.switchboard.plane.announce(call.row, waiting.pcm, waiting.answered)
        except MediaError as broken:
            call.end_soon("gateway", str(broken))
