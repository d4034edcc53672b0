"""Logs on standard error, as text for people or JSON lines for machines, with the call's id in a field.

A message about a call begins with `call %s` and the id as first argument, as in
`log.info("call %s answered", call.id)`; the formatters lift the id from there. Nothing that a caller
said, typed or is named may be in a message, so nothing here needs to redact.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from gateway.config import LogSettings

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_QUIET = {
    "aiohttp.access": logging.ERROR,  # request lines carry query strings, and those carry tokens
    "aioice": logging.WARNING,
    "aiortc": logging.WARNING,
    "asyncio": logging.WARNING,
    "numba": logging.WARNING,
    "urllib3": logging.WARNING,
    "httpx": logging.WARNING,
    "filelock": logging.WARNING,
}
"""Libraries that say more than our users want to read, or more than they should."""


_BAD_HTTP = {"HttpProcessingError", "PayloadError", "RequestPayloadError"}
"""aiohttp's roots of what a peer's bytes can be wrong in."""


def configure(settings: LogSettings) -> None:
    """Send the records of this process to standard error. Replaces what an earlier call set up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.format == "json" else TextLines())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, JsonLines | TextLines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    logging.getLogger("aiohttp.server").addFilter(_not_a_peers_bytes)
    logging.captureWarnings(True)


def _not_a_peers_bytes(record: logging.LogRecord) -> bool:
    """What is no HTTP was answered 400; aiohttp would log it with the peer's own bytes, once a request."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not _BAD_HTTP & {base.__name__ for base in kind.__mro__}


class TextLines(logging.Formatter):
    """`12:00:00.123 info gateway.call call 3f2a… answered`; local time, tracebacks below."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        line = f"{time} {record.levelname.lower():7} {record.name} {one_line(record.getMessage())}"
        return "\n".join([line, *_tracebacks(self, record)])


class JsonLines(logging.Formatter):
    """One JSON object a record: ts (UTC), level, logger, message; call_id and exception where given."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call_id := call_id_of(record):
            fields["call_id"] = call_id
        if tracebacks := list(_tracebacks(self, record)):
            fields["exception"] = "\n".join(tracebacks)
        return json.dumps(fields, ensure_ascii=False)


def call_id_of(record: logging.LogRecord) -> str | None:
    """The call a record is about: `extra={"call_id": …}`, or the first argument after `call %s`."""
    given = getattr(record, "call_id", None)
    if given is None and isinstance(record.args, tuple) and record.args:
        given = record.args[0] if str(record.msg).startswith("call %s") else None
    return None if given is None else str(given)


def one_line(text: str) -> str:
    """Control characters as escapes, so that a peer's bytes cannot forge a line or steer a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _tracebacks(formatter: logging.Formatter, record: logging.LogRecord) -> Iterator[str]:
    if record.exc_info and record.exc_info[0]:
        yield formatter.formatException(record.exc_info)
    if record.stack_info:
        yield formatter.formatStack(record.stack_info)
