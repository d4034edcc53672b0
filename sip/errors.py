"""The two roots of what can go wrong: the peer broke the protocol, or our own owner did."""

from __future__ import annotations


class PeerError(ValueError):
    """The peer's bytes break the protocol. `code` is the SIP answer a request of that kind calls for."""

    code = 400

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class CallStateError(Exception):
    """The call is unknown (ended), or its state does not allow the action."""
