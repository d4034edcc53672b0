"""Which engine speaks: the configured one, or under `auto` the best this machine can run, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.api import Engine, EngineError
from engine.probe import MOSHI_REPO, torch_state, weights_missing
from engine.rows import AudioRows
from gateway.config import EngineSettings

TICK_AFTER_MEDIA_S = 0.005
"""The engine's tick follows every fourth media tick by this much (both on the monotonic clock)."""

PARKING = ("tiny", "moshi")
"""Kinds whose held calls may give their slot away."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine kind, and the words for the banner."""

    kind: str
    """moshi, tiny, echo, chat or worker: `auto` has been decided."""
    why: str


def choose(settings: EngineSettings, tiny: Path | None) -> Choice:
    """Decide `auto`: CUDA and weights → moshi; otherwise the embedded model; otherwise the echo.

    `tiny` is the folder of the embedded model, or None. May import torch (seconds).
    """
    if settings.kind != "auto":
        return Choice(settings.kind, "as configured")
    torch = torch_state()
    missing = weights_missing(settings.model, settings.revision)
    if torch.cuda_device is not None and not missing:
        return Choice("moshi", f"{torch.cuda_device}, weights found")
    source = settings.model or MOSHI_REPO
    why = torch.why if torch.cuda_device is None else f"{source} is not here (lacks {missing[0]})"
    if tiny is not None and torch.version is not None:
        return Choice("tiny", why)
    embedded = "no embedded model" if tiny is None else "the embedded model needs torch"
    return Choice("echo", f"{why}; {embedded}")


def tiny_folder() -> Path | None:
    """The embedded model's folder in a checkout or an installed wheel, or None where there is none."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "configs" / "tiny-moshi", here / "config_assets" / "tiny-moshi"):
        if (folder / "config.json").is_file():
            return folder
    return None


def rows_for(choice: Choice, settings: EngineSettings) -> int:
    """Rows of audio that engine and media share: one a slot, and one a call that may be parked."""
    return settings.calls if choice.kind in PARKING else settings.slots


def build(choice: Choice, settings: EngineSettings, rows: AudioRows) -> Engine:
    """The engine of a choice, not started. Raises EngineError saying what is missing and what to run."""
    match choice.kind:
        case "echo":
            from engine.echo import EchoEngine

            return EchoEngine(
                delay_s=settings.echo_delay_s,
                greeting=settings.greeting,
                phase=TICK_AFTER_MEDIA_S,
                rows=rows,
            )
        case "chat":
            return _chat(settings, rows)
        case "worker":
            return _worker(settings, rows)
        case "tiny":
            folder = tiny_folder()
            if folder is None:
                raise EngineError("engine.kind = tiny: this installation lacks configs/tiny-moshi")
            return _local(str(folder), settings, rows)
        case _:
            return _local(settings.model or MOSHI_REPO, settings, rows)


def _local(source: str, settings: EngineSettings, rows: AudioRows) -> Engine:
    from engine.local import LocalEngine, LocalOptions
    from engine.waiting_room import RoomOptions

    options = LocalOptions(
        source,
        slots=settings.slots,
        revision=settings.revision,
        device=settings.device,
        dtype=_chosen(settings.dtype),
        weight_dtype=_chosen(settings.weight_dtype),
        kv_dtype=_chosen(settings.kv_dtype),
        parking=RoomOptions(settings.parked_calls, settings.park_after_s),
    )
    return LocalEngine(options, phase=TICK_AFTER_MEDIA_S, rows=rows)


def _chosen(value: str) -> str | None:
    return None if value == "auto" else value


def _chat(settings: EngineSettings, rows: AudioRows) -> Engine:
    from engine.chat import ChatEngine
    from engine.chat_line import Remote

    if settings.url is None:
        raise EngineError("engine.kind = chat needs engine.url, such as wss://host/api/chat")
    remote = Remote(
        settings.url,
        token=settings.secret(),
        auth=settings.auth,
        dialect=settings.dialect,
        voices=settings.voices,
    )
    return ChatEngine(remote, settings.slots, phase=TICK_AFTER_MEDIA_S, rows=rows)


def _worker(settings: EngineSettings, rows: AudioRows) -> Engine:
    from engine.worker import WorkerEngine

    return WorkerEngine(settings.workers, token=settings.secret(), rows=rows, phase=TICK_AFTER_MEDIA_S)
