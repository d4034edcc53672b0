"""Settings: everything that can be configured, as one pydantic-settings model.

It says what exists, of which type and with which default; `gateway.config_sources` says where the
values come from. Building `Settings()` reads nothing: it is the defaults.
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from engine.api import Persona
from gateway.config_phone import (
    AccountSettings,
    AdminSettings,
    OutboundSettings,
    ReadableFile,
    Route,
    SecretFile,
    SipUri,
    TrunkSettings,
    Words,
    listed,
    secret_of,
)

ENV_PREFIX = "MG_"
ENV_DELIMITER = "__"
MIN_KEY = 16
"""Characters of an operators' key: fewer could be tried out."""


def _port_range(value: object) -> object:
    if isinstance(value, str) and "-" in value:
        return value.split("-", 1)
    return listed(value)


def _checked_range(value: tuple[int, int]) -> tuple[int, int]:
    low, high = value
    if (low, high) == (0, 0):
        return value
    if low < 1024 or high > 65535 or high - low < 1:
        raise ValueError("must be two ports in 1024 to 65535, the lower first, or 0 and 0 for any free ones")
    return value


def _checked_address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError("must be an IP address, such as 203.0.113.7 or 2001:db8::7") from None
    return value


Port = Annotated[int, Field(ge=0, le=65535)]
PortRange = Annotated[tuple[int, int], BeforeValidator(_port_range), AfterValidator(_checked_range)]
Address = Annotated[str, AfterValidator(_checked_address)]
EngineKind = Literal["auto", "moshi", "tiny", "echo", "chat", "worker"]
SipCodec = Literal["PCMU", "PCMA", "G722", "opus"]
SIP_CODECS: tuple[SipCodec, ...] = ("PCMU", "PCMA", "G722", "opus")


Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^\s/]+)$")]
IceUrl = Annotated[str, Field(pattern=r"^(stun|stuns|turn|turns):[^\s/]+$")]
WorkerUrl = Annotated[str, Field(pattern=r"^wss?://[^\s/]+")]
IceUrls = Annotated[tuple[IceUrl, ...], BeforeValidator(listed), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class IceServer(_Section):
    """One STUN or TURN server, as browsers spell it."""

    urls: IceUrls
    """Such as `stun:stun.example.org` or `turn:turn.example.org:3478?transport=udp`."""
    username: str | None = None
    credential: SecretStr | None = None
    """Environment only; in a file use credential_file."""
    credential_file: SecretFile | None = None
    """A file whose content is the credential."""

    def secret(self) -> str | None:
        """The credential, from wherever it was given."""
        return secret_of(self.credential, self.credential_file)


class HttpSettings(_Section):
    """The web page, WebRTC signalling and the health endpoints."""

    host: str = "127.0.0.1"
    """Address to listen on. Browsers open a microphone only on localhost or over https, so plain http
    stays on this machine; set 0.0.0.0 together with tls_cert, or behind a proxy that ends TLS."""
    port: Port = 8080
    """TCP port; 0 takes any free one."""
    tls_cert: ReadableFile | None = None
    """PEM certificate chain; with tls_key the page is served over https."""
    tls_key: ReadableFile | None = None
    """PEM private key of tls_cert."""
    origins: Annotated[tuple[Origin, ...], BeforeValidator(listed)] = ()
    """Further origins whose pages may call, such as `https://shop.example`; `*`: any. Our own always may."""
    ice_servers: Annotated[tuple[IceServer, ...], BeforeValidator(listed)] = ()
    """STUN and TURN servers for browsers and for the gateway."""
    public_address: Address | None = None
    """The IP address browsers reach this machine at, where it is behind a 1:1 NAT or in a container."""


class SipSettings(_Section):
    """The SIP user agent and the RTP of its calls."""

    enabled: bool = True
    host: Address = "0.0.0.0"
    """Address to listen on (UDP). Phones are other machines, so all interfaces by default."""
    port: Port = 5060
    """UDP and TCP port; 0 takes any free one."""
    tcp: bool = True
    """Listen on TCP too."""
    public_address: Address | None = None
    """The address put into Via, Contact and SDP; unset: the interface that faces the caller."""
    rtp_host: Address | None = None
    """Address to receive RTP on; unset: as host."""
    rtp_ports: PortRange = (16384, 32766)
    """Lowest and highest UDP port for RTP, a pair a call; 0 and 0 take any free ports."""
    user_agent: Annotated[str, Field(pattern=r"^[ -~]*$")] = "moshi-gateway"
    """Name in the Server and User-Agent headers."""
    open: bool | None = None
    """Let anybody call. Unset: only as long as no trunk is configured."""
    unknown: Literal["ignore", "refuse"] = "ignore"
    """What strangers get while it is not open: nothing at all, or 403."""
    tls_port: Port = 5061
    """TCP port for SIP over TLS, where tls_cert and tls_key are given."""
    tls_cert: ReadableFile | None = None
    """PEM certificate chain for SIP over TLS."""
    tls_key: ReadableFile | None = None
    """PEM private key of tls_cert."""
    srtp: Literal["tls", "accept", "require"] = "tls"
    """Encrypted audio by SDES keys. tls: taken when offered over TLS, refused in plain SIP, where the
    keys could be read; accept: taken wherever offered; require: nothing else is taken."""
    codecs: Annotated[tuple[SipCodec, ...], BeforeValidator(listed), Field(min_length=1)] = SIP_CODECS
    """Codecs offered and accepted, preferred first; of PCMU and PCMA the caller's order decides. G722 and
    opus sound clearer and cost more CPU."""


class EngineSettings(_Section):
    """What speaks: a Moshi model here, elsewhere, or an echo for tests."""

    kind: EngineKind = "auto"
    """auto: moshi where CUDA and the weights are present, otherwise the embedded default."""
    slots: Annotated[int, Field(ge=1, le=4096)] = 4
    """Calls held at once."""
    parked_calls: Annotated[int, Field(ge=0, le=4096)] = 0
    """kinds tiny and moshi: calls on hold, beyond `slots`, that give their slot to others. 0: a held call
    keeps its own. Who comes back while every slot is taken waits for one, and is hung up after 60 s."""
    park_after_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """A call held for so long gives its slot away."""
    model: str | None = None
    """Hugging Face repository or local folder in Kyutai's layout; unset: the kind's own."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on CUDA, float32 on the CPU."""
    weight_dtype: Literal["auto", "float8"] = "auto"
    """auto: as dtype. float8 halves what a tick reads (H100, L4, RTX 4090 and newer)."""
    kv_dtype: Literal["auto", "float8"] = "auto"
    """auto: as dtype. float8 halves the memory of a call, on any GPU."""
    url: Annotated[str, Field(pattern=r"^(wss?|https?)://")] | None = None
    """kind chat: address of the remote Moshi, such as wss://host/api/chat."""
    token: SecretStr | None = None
    """kind chat: its access token. Environment only; in a file use token_file."""
    token_file: SecretFile | None = None
    """A file whose content is the token."""
    auth: Literal["bearer", "token", "kyutai", "auth_id"] = "bearer"
    """kind chat: how the token is shown: Authorization header, ?token= (Scaleway), kyutai-api-key header,
    or ?auth_id= (moshi-server)."""
    dialect: Literal["kyutai", "personaplex"] = "kyutai"
    """kind chat: PersonaPlex's own server wants a voice and a text prompt in the query."""
    voices: Words = ()
    """kind chat: voices that a persona may name."""
    workers: Annotated[tuple[WorkerUrl, ...], BeforeValidator(listed)] = ()
    """kind worker: addresses of engine processes, such as ws://10.0.0.2:8998."""
    echo_delay_s: Annotated[float, Field(ge=0, le=30)] = 1.0
    """kind echo: seconds after which the caller hears himself."""
    greeting: bool = True
    """kind echo: begin with a tone."""

    @property
    def calls(self) -> int:
        """Calls there may be, those on hold without a slot among them."""
        return self.slots + self.parked_calls

    def secret(self) -> str | None:
        """The token, from wherever it was given."""
        return secret_of(self.token, self.token_file)


class MediaSettings(_Section):
    """The audio path of all calls."""

    processes: Annotated[int, Field(ge=0, le=64)] = 1
    """Processes that carry the calls' audio, beside the gateway's own; about one a core, a few hundred calls
    each. 0: on a thread of the gateway's process, where a busy gateway delays packets."""
    rtp_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    """A caller who sends no packet for so long is gone: BYE, and the slot is free."""
    jitter_min_ms: Annotated[int, Field(ge=0, le=1000)] = 0
    """The jitter buffer never aims for less."""
    jitter_max_ms: Annotated[int, Field(ge=20, le=2000)] = 400
    """The jitter buffer never holds more; what comes later is lost."""
    echo_cancel: Literal["auto", "on", "off"] = "auto"
    """Take the agent's echo out of what it hears. auto: on, but not for engine.kind = echo, whose voice is
    the caller's own."""

    def cancels_echo(self, engine_kind: str) -> bool:
        """Whether it is on with this engine."""
        return self.echo_cancel == "on" or (self.echo_cancel == "auto" and engine_kind != "echo")


class PersonaSettings(_Section):
    """Who the agent is in a call, and who gives way to whom."""

    voice: str | None = None
    """A voice of the engine by name."""
    text_prompt: str | None = None
    """What the agent is told about itself before the call."""
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    text_temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    text_top_k: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    """With a seed the same input gives the same tokens; unset: a new one a call."""
    duplex: Literal["model", "duck", "cut", "never"] = "model"
    """When the caller speaks over the agent: the model decides, duck then cut, cut, or never give way."""
    transfer_to: SipUri | None = None
    """Where a caller on the phone goes when the agent writes `<transfer>`; unset: nowhere."""

    def persona(self, name: str) -> Persona:
        return Persona(name=name, **self.model_dump(exclude={"duplex", "transfer_to"}))


class LimitSettings(_Section):
    """Bounds of the whole gateway."""

    drain_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """On SIGTERM calls may go on for so long before they are hung up."""
    max_call_s: Annotated[float, Field(ge=0)] = 0.0
    """A call is hung up after so long; 0: it may last for ever."""
    caller_silence_s: Annotated[float, Field(ge=0)] = 0.0
    """A caller so long silent is asked, and hung up after as long again; 0: he may be silent."""
    silence_question: Annotated[str, Field(min_length=1, max_length=200)] = "Are you still there?"
    """What the agent asks then."""


class LogSettings(_Section):
    """Logs go to standard error; they carry call ids, never speech, text or numbers."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(BaseSettings):
    """The configuration of one gateway. Frozen; made by `gateway.config_sources.load`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        enable_decoding=False,
        title="moshi-gateway",
    )

    http: HttpSettings = HttpSettings()
    sip: SipSettings = SipSettings()
    engine: EngineSettings = EngineSettings()
    media: MediaSettings = MediaSettings()
    personas: dict[str, PersonaSettings] = {}
    routes: dict[str, Route] = {}
    """Called user -> persona; a user who is not in it gets the persona of his own name, or the default."""
    trunks: dict[str, TrunkSettings] = {}
    accounts: dict[str, AccountSettings] = {}
    outbound: OutboundSettings = OutboundSettings()
    admin: AdminSettings = AdminSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Construction takes what it is given; load() merges file, environment and flags, so that it
        can say of each value where it came from."""
        return (init_settings,)

    def engine_personas(self) -> dict[str, Persona]:
        """All personas by name; there is always a `default`."""
        named = {name: persona.persona(name) for name, persona in self.personas.items()}
        return {"default": Persona(), **named}

    def duplex_policy(self, persona: str) -> str:
        """`model`, `duck`, `cut` or `never`."""
        return self.personas.get(persona, PersonaSettings()).duplex


def _is_a_pair(cert: Path, key: Path | None) -> bool:
    # Without a password of its own OpenSSL would ask for one on the terminal.
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except OSError:
        return False
    return True


def contradictions(settings: Settings) -> list[tuple[tuple[str, ...], str]]:
    """What no field sees alone: (path of the setting to change, what is wrong with it)."""
    found: list[tuple[tuple[str, ...], str]] = []
    sip, engine, media = settings.sip, settings.engine, settings.media
    for section, tls in (("http", settings.http), ("sip", settings.sip)):
        if (tls.tls_cert is None) != (tls.tls_key is None):
            missing = "tls_key" if tls.tls_key is None else "tls_cert"
            found.append(((section, missing), "tls_cert and tls_key are needed together"))
        elif tls.tls_cert is not None and not _is_a_pair(tls.tls_cert, tls.tls_key):
            wanted = "must be a PEM certificate chain, and tls_key its PEM key without a passphrase"
            found.append(((section, "tls_cert"), wanted))
    for called, route in settings.routes.items():
        if route.persona not in settings.engine_personas():
            found.append((("routes", called), f"there is no persona named {route.persona}"))
    for name, trunk in settings.trunks.items():
        if (trunk.username is None) != (trunk.secret() is None):
            found.append((("trunks", name), "username and password (or password_file) are needed together"))
        if not trunk.addresses and trunk.username is None and trunk.server is None:
            found.append((("trunks", name), "needs addresses, or username and password, or a server"))
    if settings.outbound.trunk not in (None, *settings.trunks, *settings.accounts):
        found.append((("outbound", "trunk"), f"there is no trunk or account named {settings.outbound.trunk}"))
    if settings.admin.port is not None and len(settings.admin.secret() or "") < MIN_KEY:
        found.append((("admin", "port"), f"needs key_file or MG_ADMIN__KEY, of {MIN_KEY} characters or more"))
    if engine.kind == "chat" and engine.url is None:
        found.append((("engine", "url"), "needed with kind = chat: the address of the remote Moshi"))
    if engine.url and "token=" in engine.url:
        found.append((("engine", "url"), "carries a token; use token_file or MG_ENGINE__TOKEN"))
    if engine.kind == "worker" and not engine.workers:
        found.append((("engine", "workers"), "needed with kind = worker: addresses of engine processes"))
    if engine.parked_calls and engine.kind not in ("auto", "tiny", "moshi"):
        found.append(
            (("engine", "parked_calls"), f"must be 0 with kind = {engine.kind}: its calls keep their slots")
        )
    if media.jitter_max_ms < media.jitter_min_ms:
        found.append((("media", "jitter_max_ms"), f"must be at least jitter_min_ms ({media.jitter_min_ms})"))
    low, high = sip.rtp_ports
    pairs = (high - low + 1) // 2
    if sip.enabled and high and pairs < engine.calls:
        wanted = f"engine.slots is {engine.slots}"
        wanted += f" and engine.parked_calls {engine.parked_calls}" if engine.parked_calls else ""
        found.append((("sip", "rtp_ports"), f"holds {pairs} calls, but {wanted}"))
    return found
