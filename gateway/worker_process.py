"""`moshi-gateway engine`: an engine in a process or on a machine of its own, for gateways elsewhere."""

from __future__ import annotations

import asyncio
import sys

from engine.api import EngineError
from engine.rows import AudioRows
from engine.tick import TickEngine
from engine.worker import serve_worker
from gateway import engines
from gateway.config import Settings
from gateway.stopping import INTERRUPTED, Stopping

FAILED = 1


def serve_engine(settings: Settings, host: str, port: int) -> int:
    """Hold calls for gateways until a signal; the exit code. Raises EngineError for what cannot be built."""
    choice = engines.choose(settings.engine, engines.tiny_folder())
    # Over the line between gateway and worker a call cannot be parked: a held one keeps its slot.
    wanted = settings.engine.model_copy(update={"parked_calls": 0})
    engine = engines.build(choice, wanted, AudioRows(wanted.slots))
    if not isinstance(engine, TickEngine) or choice.kind == "worker":
        raise EngineError("a worker cannot stand behind a worker: choose another engine.kind")
    print(f"engine {engine.name} ({choice.why}) on ws://{host}:{port}", file=sys.stderr, flush=True)
    try:
        return asyncio.run(_serve(engine, settings, host, port))
    except OSError as error:
        print(f"moshi-gateway: TCP {host}:{port}: {error.strerror}", file=sys.stderr)
        return FAILED


async def _serve(engine: TickEngine, settings: Settings, host: str, port: int) -> int:
    stopping = Stopping(asyncio.get_running_loop())
    token, drain_s = settings.engine.secret(), settings.limits.drain_s
    await serve_worker(engine, host, port, token, stopping.event, drain_s)
    return INTERRUPTED if stopping.interrupted else 0
