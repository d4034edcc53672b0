"""The start-up banner: where to call, what answers, and why it is that. A pure function of a dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WILDCARDS = ("0.0.0.0", "::", "")

_ABOUT = {
    "echo": "the echo says nothing of its own: a tone, then your own voice a little later",
    "tiny": "trained on synthetic callers: a demo and a test instrument, not a product voice",
}


@dataclass(frozen=True, slots=True)
class StartUp:
    """What a gateway that is ready has to tell who started it."""

    page: str | None
    """URL of the page; None: no HTTP."""
    sip: str | None
    """URI that phones call; None: no SIP."""
    engine: str
    """The engine's name, such as `echo` or `moshi (kyutai/moshiko…)`."""
    why: str
    """Why it is that engine."""
    slots: int
    """Calls it holds at once."""
    notes: tuple[str, ...] = ()
    """What else must be known: of an engine that is no model, of microphones without https."""


def banner(start: StartUp) -> str:
    """A few aligned lines, ending in a line break."""
    calls = "1 call at a time" if start.slots == 1 else f"{start.slots} calls at once"
    rows = [
        ("browser", start.page),
        ("phone", start.sip),
        ("engine", f"{start.engine}, {calls}"),
        ("why", start.why),
        *(("note", note) for note in start.notes),
    ]
    lines = [f"  {name:8} {value}" for name, value in rows if value]
    return "\n".join(["moshi-gateway is ready; Ctrl-C ends it", *lines]) + "\n"


def page_url(host: str, port: int, tls: bool, seen_as: str) -> str:
    """The page's address for people; `seen_as` stands in for a wildcard host."""
    shown = {"127.0.0.1": "localhost", "::1": "localhost"}.get(host, seen_as if host in WILDCARDS else host)
    scheme, usual = ("https", 443) if tls else ("http", 80)
    return f"{scheme}://{_bracketed(shown)}{'' if port == usual else f':{port}'}/"


def sip_uri(host: str, port: int, seen_as: str, user: str = "moshi") -> str:
    """The URI to dial; `seen_as` stands in for a wildcard host."""
    shown = seen_as if host in WILDCARDS else host
    return f"sip:{user}@{_bracketed(shown)}{'' if port == 5060 else f':{port}'}"


def notes(kind: str, http_host: str, tls: bool, origins: Sequence[str] = ()) -> tuple[str, ...]:
    """What the engine kind and the page's address call for."""
    found = [_ABOUT[kind]] if kind in _ABOUT else []
    if http_host not in ("127.0.0.1", "::1", "localhost") and not tls:
        found.append(
            "browsers on other machines open no microphone without https: set http.tls_cert and http.tls_key"
        )
    if "*" in origins:
        found.append("any web page may call (http.origins has *)")
    return tuple(found)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
