"""Turn messages: what happens between caller and agent, in the words that pages and operators are told."""

from __future__ import annotations

from gateway.duplex import (
    AgentStarted,
    AgentStopped,
    CallerStarted,
    CallerStopped,
    Ducked,
    DuplexEvent,
    Held,
    Interrupted,
    Resumed,
)

SAMPLES_A_MS = 24


def turn_message(event: DuplexEvent) -> tuple[str, dict[str, object]] | None:
    """(type, fields) of an event, None for one that nobody is told. `at_ms` is the call's own time: the
    caller's audio up to then."""
    fields: dict[str, object] = {"at_ms": round(event.at / SAMPLES_A_MS, 1)}
    match event:
        case CallerStarted(over_agent=over_agent):
            return "caller_started", fields | {"over_agent": over_agent}
        case CallerStopped():
            return "caller_stopped", fields
        case AgentStarted(over_caller=over_caller):
            return "agent_started", fields | {"over_caller": over_caller}
        case AgentStopped():
            return "agent_stopped", fields
        case Ducked():
            return "ducked", fields
        case Held():
            return "paused", fields
        case Resumed(why=why):
            return "resumed", fields | {"why": why}
        case Interrupted(heard=heard):
            return "interrupted", fields | {"heard_ms": round(heard / SAMPLES_A_MS, 1)}
        case _:
            return None
