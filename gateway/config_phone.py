"""Settings of who may call, where to call, and who may tell the gateway to: trunks, accounts at registrars,
the caps on calling out, and the operators' API."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from engine.api import SAMPLE_RATE
from gateway.audio_file import AudioFileError, read_audio
from gateway.media.messages import LONGEST_ANNOUNCEMENT_S
from sip.uri import parse_uri


def listed(value: object) -> object:
    """Lists come as TOML arrays, and from the environment as JSON or `a,b`."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _checked_network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError("must be an address or a network, such as 203.0.113.7 or 203.0.113.0/24") from None
    return value


def _checked_file(value: Path) -> Path:
    if not value.is_file():
        raise ValueError(f"there is no file {value} (relative paths start at {Path.cwd()})")
    return value


def _checked_secret(value: Path) -> Path:
    try:
        lines = _checked_file(value).read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{value} cannot be read as text") from error
    if len(lines) != 1:
        raise ValueError(f"{value} must hold one line: the secret")
    return value


def recording(file: Path) -> bytes:
    """An announcement as the media path takes it: int16, 24 kHz mono. Raises ValueError, naming the fault."""
    try:
        pcm = read_audio(file)
    except AudioFileError as error:
        raise ValueError(str(error)) from error
    if len(pcm) > LONGEST_ANNOUNCEMENT_S * SAMPLE_RATE:
        raise ValueError(f"{file} is longer than {LONGEST_ANNOUNCEMENT_S} s")
    return np.rint(np.clip(pcm, -1.0, 1.0) * 32_767).astype(np.int16).tobytes()


def _checked_recording(value: Path) -> Path:
    recording(_checked_file(value))
    return value


def _checked_uri(value: str) -> str:
    try:
        uri = parse_uri(value)
    except ValueError as error:
        raise ValueError(f"{error}; such as sip:1000@pbx.example:5070;transport=tcp") from None
    if uri.param("transport") not in (None, "udp", "tcp", "tls"):
        raise ValueError("the transport must be udp, tcp or tls")
    return value


def _checked_host(value: str) -> str:
    port = value.rpartition("]")[2].rpartition(":")[2]
    if port.isdigit() and ":" in value.rpartition("]")[2] and not 0 < int(port) < 65_536:
        raise ValueError("the port must be 1 to 65535")
    return value


def _route(value: object) -> object:
    """A route may be its persona's name alone."""
    return {"persona": value} if isinstance(value, str) else value


def secret_of(value: SecretStr | None, file: Path | None) -> str | None:
    """A secret that was given by environment, or as the content of a file."""
    if value is not None:
        return value.get_secret_value()
    return file.read_text(encoding="utf-8").strip() if file is not None else None


Network = Annotated[str, AfterValidator(_checked_network)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(listed)]
ReadableFile = Annotated[Path, AfterValidator(_checked_file)]
SecretFile = Annotated[Path, AfterValidator(_checked_secret)]
Recording = Annotated[Path, AfterValidator(_checked_recording)]
Words = Annotated[tuple[str, ...], BeforeValidator(listed)]
SipUri = Annotated[str, Field(pattern=r"^sips?:[^\s<>]+$"), AfterValidator(_checked_uri)]
SipHost = Annotated[
    str,
    Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?$"),
    AfterValidator(_checked_host),
]
SipUser = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.!~*'()&=+$,;?/%-]+$")]
"""RFC 3261 §25.1."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RouteSettings(_Section):
    """Who answers a called number, and what is said before."""

    persona: str
    """The persona's name."""
    announcement: Recording | None = None
    """A WAV or FLAC file, 60 s at most, that the caller hears before the agent: "this call is recorded"."""


Route = Annotated[RouteSettings, BeforeValidator(_route, json_schema_input_type=str | RouteSettings)]


class TrunkSettings(_Section):
    """A carrier or PBX that sends calls: known by its addresses, or by the digest it presents."""

    addresses: Networks = ()
    """Addresses or networks its calls come from."""
    username: str | None = None
    """What it must present when it calls from elsewhere; with password or password_file."""
    password: SecretStr | None = None
    """Environment only; in a file use password_file."""
    password_file: SecretFile | None = None
    server: SipHost | None = None
    """Where it is, host or host:port: OPTIONS go there to see whether it is up. A domain without a port is
    looked up by NAPTR and SRV, and where one server is dead or full the next is taken."""
    transport: Literal["udp", "tcp", "tls"] | None = None
    """How the server is reached; unset: as NAPTR says for a domain, otherwise udp."""
    caller: SipUri | None = None
    """Who calls when the gateway calls out by this trunk, such as sip:+4930123@carrier.example; unset: moshi
    at the gateway's address."""
    keepalive_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Seconds between OPTIONS to the server; 0: none."""

    def secret(self) -> str | None:
        """The password, from wherever it was given."""
        return secret_of(self.password, self.password_file)


class AccountSettings(_Section):
    """An extension of a PBX that this gateway registers as."""

    registrar: SipUri
    """Such as sip:pbx.example or sip:192.0.2.5:5070;transport=tcp."""
    user: SipUser
    """The extension, such as 1000."""
    username: str | None = None
    """Name for digest authentication; unset: as user."""
    password: SecretStr | None = None
    """Environment only; in a file use password_file."""
    password_file: SecretFile | None = None
    expires_s: Annotated[int, Field(ge=60, le=86400)] = 3600
    """How long a registration is asked for; it is refreshed before."""

    def secret(self) -> str | None:
        """The password, from wherever it was given."""
        return secret_of(self.password, self.password_file)

    @property
    def aor(self) -> str:
        """The address of record: the user at the registrar's host."""
        return f"{self.registrar.partition(':')[0]}:{self.user}@{self.domain.partition(';')[0]}"

    @property
    def domain(self) -> str:
        """The registrar's host, port and parameters."""
        return self.registrar.partition(":")[2].rpartition("@")[2]


class AdminSettings(_Section):
    """The operators' HTTP API: calls, transfers, placing calls. Off until it has a port and a key."""

    host: str = "127.0.0.1"
    """Address to listen on. It speaks plain http: keep it on this machine or on a network of your own."""
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """TCP port; unset: no such API; 0 takes any free one."""
    key: SecretStr | None = None
    """What operators present as `Authorization: Bearer KEY`. Environment only; in a file use key_file."""
    key_file: SecretFile | None = None
    """A file whose content is the key."""

    def secret(self) -> str | None:
        """The key, from wherever it was given."""
        return secret_of(self.key, self.key_file)


class OutboundSettings(_Section):
    """Calls that operators place through the gateway, and the caps that keep them from costing a fortune."""

    enabled: bool = False
    """Let operators place calls."""
    trunk: str | None = None
    """The trunk or account that numbers are called by where the operator names none."""
    prefixes: Words = ()
    """What a called number or user must begin with, such as "+4930"; none may be called without."""
    hosts: Words = ()
    """Hosts that may be called directly by a sip: URI, without a trunk."""
    per_minute: Annotated[int, Field(ge=1, le=6000)] = 10
    """Calls begun within any 60 s."""
    concurrent: Annotated[int, Field(ge=1, le=4096)] = 2
    """Calls out at once, ringing ones included."""
    max_call_s: Annotated[float, Field(gt=0, le=86400)] = 600.0
    """A call out is hung up after so long."""
