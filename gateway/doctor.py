"""`moshi-gateway doctor`: looks at everything a call needs on this machine, and names the fix.

Each check returns findings and changes nothing; it binds ports and lets them go.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from engine.api import EngineError
from engine.probe import MOSHI_REPO, torch_state, weights_missing
from gateway.banner import WILDCARDS
from gateway.config import Settings
from gateway.config_sources import variable
from gateway.engines import choose, tiny_folder

CONNECT_S = 3.0
"""How long a remote engine may take to accept a connection."""


class Verdict(StrEnum):
    """What a finding means for calls."""

    GOOD = "good"
    WARN = "warn"
    """Calls work, but not all or not as well."""
    FAIL = "FAIL"
    """`serve` will not start, or no call will work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about this machine."""

    topic: str
    verdict: Verdict
    fact: str
    fix: str = ""
    """What to do about it; empty where nothing is wrong."""


def examine(settings: Settings) -> list[Finding]:
    """Run every check, in the order in which a call needs them."""
    return [finding for check in CHECKS for finding in check(settings)]


def report(findings: list[Finding]) -> str:
    """Aligned lines for a terminal, a fix under what needs one."""
    lines = []
    for found in findings:
        lines.append(f"{found.verdict:5} {found.topic:10} {found.fact}")
        if found.fix:
            label = "hint" if found.verdict is Verdict.GOOD else "fix"
            lines.append(f"{'':16} {label}: {found.fix}")
    return "\n".join(lines) + "\n"


def _python(settings: Settings) -> Iterator[Finding]:
    version = sys.version.split()[0]
    fits = (3, 11) <= sys.version_info < (3, 14)
    fix = "" if fits else "use Python 3.11, 3.12 or 3.13"
    yield Finding("python", Verdict.GOOD if fits else Verdict.FAIL, version, fix)


def _http_port(settings: Settings) -> Iterator[Finding]:
    yield _port("http", settings.http.host, settings.http.port, socket.SOCK_STREAM)


def _sip_ports(settings: Settings) -> Iterator[Finding]:
    if not settings.sip.enabled:
        yield Finding("sip", Verdict.GOOD, "switched off (sip.enabled)")
        return
    sip = settings.sip
    yield _port("sip", sip.host, sip.port, socket.SOCK_DGRAM)
    if sip.tcp:
        yield _port("sip", sip.host, sip.port, socket.SOCK_STREAM)
    if sip.tls_cert:
        yield _port("sip", sip.host, sip.tls_port, socket.SOCK_STREAM, "tls_port")
    yield _rtp_range(
        settings.sip.rtp_host or settings.sip.host, settings.sip.rtp_ports, settings.engine.calls
    )


def _port(section: str, host: str, port: int, kind: socket.SocketKind, key: str = "port") -> Finding:
    where = f"{'TCP' if kind == socket.SOCK_STREAM else 'UDP'} {host}:{port}"
    try:
        with closing(_bound(host, port, kind)):
            return Finding(section, Verdict.GOOD, f"{where} is free")
    except PermissionError:
        fix = f"ports below 1024 need root: choose another with {_setting(section, key)}"
        return Finding(section, Verdict.FAIL, f"{where} is not allowed", fix)
    except OSError as error:
        fix = f"set {_setting(section, 'host')} to an address of this machine"
        if error.errno == errno.EADDRINUSE:
            option = "-ltnp" if kind == socket.SOCK_STREAM else "-lunp"
            owner = f"`ss {option} 'sport = :{port}'` shows who has it"
            fix = f"{owner}; or choose another {_setting(section, key)}"
        return Finding(section, Verdict.FAIL, f"{where}: {error.strerror}", fix)


def _rtp_range(host: str, ports: tuple[int, int], slots: int) -> Finding:
    low, high = ports
    if not high:
        return Finding("rtp", Verdict.GOOD, f"UDP {host}: any free ports")
    free = 0
    for port in range(low + low % 2, high, 2):
        try:
            _bound(host, port, socket.SOCK_DGRAM).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            fix = f"set {_setting('sip', 'rtp_host')} to an address of this machine"
            return Finding("rtp", Verdict.FAIL, f"UDP {host}:{port}: {error.strerror}", fix)
        free += 1
        if free >= slots:
            return Finding("rtp", Verdict.GOOD, f"UDP {host}:{low}-{high} has ports for {slots} calls")
    fix = f"widen {_setting('sip', 'rtp_ports')}, or lower {_setting('engine', 'slots')}"
    verdict = Verdict.WARN if free else Verdict.FAIL
    return Finding("rtp", verdict, f"UDP {host}:{low}-{high} has ports for {free} of {slots} calls", fix)


def _bound(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=kind)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as asyncio does: TIME_WAIT is no owner
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _addresses(settings: Settings) -> Iterator[Finding]:
    seen = facing_address()
    if settings.sip.enabled:
        yield _sip_address(settings, seen)
    public = settings.http.public_address
    loopback = settings.http.host in ("127.0.0.1", "::1", "localhost")
    if loopback:
        yield Finding("address", Verdict.GOOD, "browsers: on this machine only (http.host)")
    elif settings.http.tls_cert is None:
        fix = f"set {_setting('http', 'tls_cert')} and {_setting('http', 'tls_key')}, or a TLS proxy in front"
        yield Finding("address", Verdict.WARN, "browsers elsewhere open no microphone on plain http", fix)
    else:
        yield Finding(
            "address", Verdict.GOOD, f"browsers: audio goes to {public or seen or 'the local address'}"
        )


def _sip_address(settings: Settings, seen: str | None) -> Finding:
    sip = settings.sip
    told = sip.public_address or (seen if sip.host in WILDCARDS else sip.host)
    if told is None:
        fix = f"connect a network, or set {_setting('sip', 'host')} to 127.0.0.1 for calls on this machine"
        return Finding("address", Verdict.WARN, "no network: phones elsewhere cannot reach this machine", fix)
    fact = f"phones are told to send audio to {told}"
    address = ipaddress.ip_address(told)
    if sip.public_address is not None or not address.is_private:
        return Finding("address", Verdict.GOOD, fact)
    where = "on this machine only" if address.is_loopback else "in this private network only"
    fix = f"for others set {_setting('sip', 'public_address')}; forward UDP {sip.port} and the RTP ports"
    return Finding("address", Verdict.GOOD, f"{fact}: {where}", fix)


def facing_address(far: str = "192.0.2.1") -> str | None:
    """The address of the interface that faces the outside (or `far`); None without a route. Sends nothing."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect((far, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _libopus(settings: Settings) -> Iterator[Finding]:
    from engine import opus

    try:
        yield Finding("libopus", Verdict.GOOD, opus.version())
    except EngineError as error:
        yield Finding("libopus", Verdict.FAIL, "not found: browsers cannot call", str(error))


def _numba(settings: Settings) -> Iterator[Finding]:
    try:
        import numba
    except ImportError as error:
        fix = "pip install numba; without it the same audio path costs several times the processor time"
        yield Finding("numba", Verdict.WARN, f"not usable ({error})", fix)
    else:
        yield Finding("numba", Verdict.GOOD, numba.__version__)


def _torch(settings: Settings) -> Iterator[Finding]:
    kind = settings.engine.kind
    needed = kind in ("moshi", "tiny")
    state = torch_state()
    if state.version is None:
        fix = "pip install 'moshi-gateway[engine]' (in a checkout: pip install -e '.[engine]')"
        yield Finding("torch", Verdict.FAIL if needed else Verdict.WARN, state.why, fix)
    elif state.cuda_device is None:
        fix = "Moshi 7B needs an NVIDIA GPU of 24 GB or more; its driver and a CUDA build of torch"
        wants_gpu = kind == "moshi" and settings.engine.device != "cpu"
        fact = f"{state.version}, {state.why}"
        yield Finding("torch", Verdict.FAIL if wants_gpu else Verdict.WARN, fact, fix)
    else:
        yield Finding("torch", Verdict.GOOD, f"{state.version}, {state.cuda_device}")


def _weights(settings: Settings) -> Iterator[Finding]:
    if settings.engine.kind not in ("auto", "moshi"):
        return
    source = settings.engine.model or MOSHI_REPO
    missing = weights_missing(settings.engine.model, settings.engine.revision)
    if not missing:
        yield Finding("weights", Verdict.GOOD, f"{source} is here")
        return
    fix = f"`hf download {source}` (15 GB for the 7B), or set {_setting('engine', 'model')} to a local folder"
    verdict = Verdict.FAIL if settings.engine.kind == "moshi" else Verdict.WARN
    yield Finding("weights", verdict, f"{source} lacks {', '.join(missing)}", fix)


def _remote(settings: Settings) -> Iterator[Finding]:
    engine = settings.engine
    urls = [engine.url] if engine.kind == "chat" and engine.url else []
    urls += engine.workers if engine.kind == "worker" else []
    for url in urls:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme in ("wss", "https") else 80)
        where = f"{parts.hostname}:{port}"
        try:
            socket.create_connection((parts.hostname or "", port), CONNECT_S).close()
            yield Finding("remote", Verdict.GOOD, f"{where} accepts connections")
        except OSError as error:
            yield Finding("remote", Verdict.FAIL, f"{where}: {error}", "start it, or correct its address")
    if engine.kind == "chat" and engine.secret() is None:
        fix = "set engine.token_file or MG_ENGINE__TOKEN if the remote asks for one"
        yield Finding("remote", Verdict.WARN, "no token", fix)


def _setting(section: str, key: str) -> str:
    return f"{section}.{key} (or {variable((section, key))})"


def _engine(settings: Settings) -> Iterator[Finding]:
    choice = choose(settings.engine, tiny_folder())
    yield Finding("engine", Verdict.GOOD, f"{choice.kind}: {choice.why}")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python,
    _http_port,
    _sip_ports,
    _addresses,
    _libopus,
    _numba,
    _torch,
    _weights,
    _remote,
    _engine,
)
