"""MediaExchange: the offers and answers of one call, and what they last agreed on (RFC 3264, 3261 §13.2.1).

It keeps our o= line growing by one with every change and our SRTP keys the same, and knows which side's
offer is open. It knows no message and no timer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sip import sdp
from sip.sdp import AgreedMedia, LocalMedia, Origin


class MediaExchange:
    def __init__(self, randbits: Callable[[int], int]) -> None:
        self.local: LocalMedia | None = None
        """What our side can do; None until the owner said so."""
        self.agreed: AgreedMedia | None = None
        self.sent: bytes | None = None
        """Our description as the peer last got it."""
        self.offered: bytes | None = None
        """Our open offer."""
        self._offered_local: LocalMedia | None = None
        self._origin = Origin(randbits(31) + 1)
        self._seed = randbits(256).to_bytes(32, "big")

    def answer(self, offer: bytes, local: LocalMedia) -> bytes:
        """Answer the peer's offer and adopt it. Raises SdpError, and then nothing has changed."""
        outcome = sdp.answer(offer, local, self._origin, self._seed)
        if self.sent is not None and outcome.answer != self.sent:
            self._origin = replace(self._origin, version=self._origin.version + 1)
            outcome = sdp.answer(offer, local, self._origin, self._seed)
        self.local, self.agreed, self.sent = local, outcome.media, outcome.answer
        return outcome.answer

    def make_offer(self, local: LocalMedia) -> bytes:
        """Open an offer of ours; take_answer() or withdraw() closes it."""
        offer = sdp.offer(local, self._origin, self._seed, self.sent)
        if self.sent is not None and offer != self.sent:
            self._origin = replace(self._origin, version=self._origin.version + 1)
            offer = sdp.offer(local, self._origin, self._seed, self.sent)
        self.offered, self._offered_local = offer, local
        return offer

    def repeat_offer(self) -> bytes:
        """Offer what is in force, unchanged: a refresh (RFC 4028 §7.4)."""
        assert self.sent is not None
        self.offered, self._offered_local = self.sent, self.local
        return self.sent

    def preview_answer(self, body: bytes) -> AgreedMedia:
        """What an answer would agree on, the offer left open (an unreliable 18x). Raises SdpError."""
        assert self.offered is not None and self._offered_local is not None
        return sdp.accept_answer(self.offered, body, self._offered_local)

    def take_answer(self, body: bytes) -> AgreedMedia:
        """The peer's answer to our open offer. Raises SdpError; then the offer is still open."""
        agreed = self.preview_answer(body)
        self.local, self.agreed, self.sent = self._offered_local, agreed, self.offered
        self.offered = self._offered_local = None
        return agreed

    def withdraw(self) -> None:
        """Our offer was refused: what was agreed before stands (§14.1)."""
        self.offered = self._offered_local = None
