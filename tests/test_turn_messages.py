"""What pages and operators are told of who speaks when."""

import json

import pytest

from gateway import duplex
from gateway.duplex import DuplexEvent
from gateway.page_events import CallFeed
from gateway.turn_messages import turn_message


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (duplex.CallerStarted(24_000, True), ("caller_started", {"at_ms": 1000.0, "over_agent": True})),
        (duplex.CallerStopped(36), ("caller_stopped", {"at_ms": 1.5})),
        (duplex.AgentStarted(0, False), ("agent_started", {"at_ms": 0.0, "over_caller": False})),
        (duplex.AgentStopped(48), ("agent_stopped", {"at_ms": 2.0})),
        (duplex.Ducked(48), ("ducked", {"at_ms": 2.0})),
        (duplex.Held(48), ("paused", {"at_ms": 2.0})),
        (duplex.Resumed(48, "passed"), ("resumed", {"at_ms": 2.0, "why": "passed"})),
        (duplex.Interrupted(48, 2_400), ("interrupted", {"at_ms": 2.0, "heard_ms": 100.0})),
        (DuplexEvent(1), None),
    ],
)
def test_each_event_is_told_in_milliseconds_of_the_call(
    event: DuplexEvent, told: tuple[str, dict[str, object]] | None
) -> None:
    assert turn_message(event) == told


def test_no_event_is_forgotten() -> None:
    told = {"CallerStarted", "CallerStopped", "AgentStarted", "AgentStopped"}
    told |= {"Ducked", "Held", "Resumed", "Interrupted"}
    assert {kind.__name__ for kind in DuplexEvent.__subclasses__()} == told


class SilentCall:
    """A call that only keeps its listeners."""

    def on_event(self, listener: object) -> None:
        self.tell = listener

    def on_ended(self, listener: object) -> None: ...


def test_the_feed_of_a_call_carries_them_numbered_and_in_order() -> None:
    call = SilentCall()
    feed = CallFeed(call)  # type: ignore[arg-type]
    call.tell(duplex.CallerStarted(24_000, True))  # type: ignore[operator]
    call.tell(duplex.Interrupted(28_800, 20_000))  # type: ignore[operator]
    told = [json.loads(message) for _, message in feed._messages]
    assert [message["type"] for message in told] == ["caller_started", "interrupted"]
    assert told[1] == {"type": "interrupted", "at_ms": 1200.0, "heard_ms": 833.3}
