"""Calls: every call of one UserAgent, by its id and by its dialog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sip.errors import CallStateError

if TYPE_CHECKING:
    from sip.call import SipCall


class Calls:
    """A call leaves `by_id` when it has ended for its owner, and `by_dialog` when the peer is done too."""

    def __init__(self) -> None:
        self.by_id: dict[str, SipCall] = {}
        self.by_dialog: dict[tuple[str, str], SipCall] = {}

    def add(self, call: SipCall) -> None:
        self.by_id[call.id] = call
        self.by_dialog[call.sip_call_id, call.local_tag] = call

    def find(self, call: str) -> SipCall:
        """Raises CallStateError for a call that has ended or never was."""
        found = self.by_id.get(call)
        if found is None:
            raise CallStateError("the call has ended")
        return found

    def in_dialog(self, sip_call_id: str, local_tag: str) -> SipCall | None:
        return self.by_dialog.get((sip_call_id, local_tag))

    def forget(self, call: SipCall) -> None:
        self.by_id.pop(call.id, None)

    def forget_dialog(self, call: SipCall) -> None:
        self.by_dialog.pop((call.sip_call_id, call.local_tag), None)
