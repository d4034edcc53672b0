"""App: builds everything, starts it in order, drains and stops it. The only file that knows all parts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import resource
import signal
import ssl
import sys
from collections.abc import Callable

from engine.api import Engine, EngineError
from engine.rows import AudioRows
from gateway import engines
from gateway.banner import StartUp, banner, notes, page_url, sip_uri
from gateway.config import Settings
from gateway.config_phone import recording
from gateway.duplex import Policy
from gateway.floor import Floor
from gateway.http_server import HttpServer
from gateway.legs.rtp_ports import RtpPorts
from gateway.legs.sip import SipLine
from gateway.legs.sip_calls import SipLineSettings, local_address
from gateway.legs.trunks import Trunks, access
from gateway.listening import CannotListen, open_phone_port, taken
from gateway.media.face import MediaError, MediaSettings, carried
from gateway.media.inline import InlineMedia
from gateway.media.processes import MediaProcesses
from gateway.media.processing import ProcessingSettings
from gateway.media.shared import SharedMedia
from gateway.media_metrics import MediaMetrics
from gateway.operations import Operations
from gateway.phone_metrics import PhoneMetrics
from gateway.stopping import INTERRUPTED, Stopping
from gateway.switchboard import Switchboard
from sip.agent import UserAgent
from sip.endpoint import Endpoint
from sip.events import Event
from sip.settings import AgentSettings

log = logging.getLogger(__name__)
LAST_WORDS_S = 1.0
"""How long a shutdown waits for answers to what was said last."""

SLOT_EVENTS_S = 0.08
"""How often the engine's text is carried to the calls: once a frame."""
SWITCH_S = 0.0005
"""How soon a busy thread lets another run. Python's own 5 ms, spent at every lock, would delay packets."""
FAILED = 1
FILES = 65_536
"""Open files we may have, where the system lets us."""
SPARE_DIALOGS = 200
"""Dialogs beyond the slots: callers being refused and calls being torn down."""


class App:
    """One gateway: engine, media, SIP, HTTP."""

    def __init__(self, settings: Settings) -> None:
        """Chooses and builds the engine; opens nothing. Raises EngineError."""
        self.settings = settings
        self.choice = engines.choose(settings.engine, engines.tiny_folder())
        self.media = self._media()
        self.rows = self.media.rows
        self.engine: Engine = engines.build(self.choice, settings.engine, self.rows)
        self.switchboard = Switchboard(self.engine, self.media.plane, settings.engine_personas())
        policies = {name: Policy(settings.duplex_policy(name)) for name in settings.engine_personas()}
        self.floor = Floor(self.switchboard, self.media.processing, policies)
        self.agent = UserAgent(self._agent_settings(), random.SystemRandom())
        self.endpoint: Endpoint | None = None
        self.sip_port = 0
        """The port in use, once started."""
        self.sip_tls_port = 0
        self.line: SipLine | None = None
        self.trunks: Trunks | None = None
        self.http: HttpServer | None = None
        self.operations: Operations | None = None
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the ports, load the engine, let callers in. Raises CannotListen, EngineError, MediaError."""
        loop = asyncio.get_running_loop()
        _allow_files()
        self.media.plane.on_events = lambda: _wake(loop, self.switchboard.deliver_media_events)
        self.agent.refuse_new_calls(True)
        await self._open_sip()
        await self._open_http()
        await self._open_operations()
        await asyncio.gather(self.media.launch(), self.engine.start())
        self._pump = loop.create_task(self._carry_slot_events(), name="slot events")
        sys.setswitchinterval(SWITCH_S)
        # A full collection over a loaded model's objects stops every thread for 100 ms and more.
        gc.collect()
        gc.freeze()
        assert self.http is not None
        self.http.loading = None
        self.http.missing = self.media.missing
        self.agent.refuse_new_calls(False)
        if self.trunks is not None and self.endpoint is not None:
            self.trunks.start(self.endpoint.now())

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse newcomers, give the calls `drain_s` to finish, end the rest, close everything."""
        self.agent.refuse_new_calls(True)
        left = await self.switchboard.drain(drain_s)
        if left:
            log.warning("%d calls were ended by the shutdown", left)
        if self._pump is not None:
            self._pump.cancel()
        if self.operations is not None:
            await self.operations.stop()
        if self.trunks is not None and self.endpoint is not None:
            self.trunks.stop(self.endpoint.now())
        if self.line is not None:
            await self.line.stop()
        if self.http is not None:
            await self.http.stop()
        if self.endpoint is not None:
            await self._last_words()
            await self.endpoint.close()
        await self.media.shut_down()
        await self.engine.stop()

    async def _last_words(self) -> None:
        """BYE and the last REGISTER are sent again while they are lost, or asked who we are; not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                while self.agent.awaits_answers:
                    await asyncio.sleep(0.02)

    def start_up(self) -> StartUp:
        """What the banner says of a started gateway."""
        http, sip = self.settings.http, self.settings.sip
        seen_as = sip.public_address or local_address("192.0.2.1", "")
        page = None
        if self.http is not None:
            page = page_url(http.host, self.http.port, http.tls_cert is not None, seen_as)
        return StartUp(
            page=page,
            sip=sip_uri(sip.host, self.sip_port, seen_as) if self.endpoint is not None else None,
            engine=self.engine.name,
            why=self.choice.why,
            slots=self.engine.capacity().slots,
            notes=notes(self.choice.kind, http.host, http.tls_cert is not None, http.origins),
        )

    async def _open_sip(self) -> None:
        sip = self.settings.sip
        if not sip.enabled:
            return
        ports = RtpPorts(sip.rtp_host or sip.host, *sip.rtp_ports)
        self.endpoint = Endpoint(self.agent, self._sip_event)
        self.sip_port = await open_phone_port(self.endpoint, sip.host, sip.port, sip.tcp)
        await self._open_tls()
        routes = self.settings.routes
        line = SipLineSettings(
            sip.public_address,
            carried(sip.codecs),
            {called: route.persona for called, route in routes.items()},
            {called: recording(r.announcement) for called, r in routes.items() if r.announcement},
            srtp=sip.srtp,
        )
        self.line = SipLine(self.switchboard, self.agent, self.endpoint, ports, line)
        self.trunks = Trunks(self.settings.trunks, self.settings.accounts, self.agent, self.endpoint.transmit)

    async def _open_tls(self) -> None:
        sip = self.settings.sip
        if sip.tls_cert is None or sip.tls_key is None or self.endpoint is None:
            return
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(sip.tls_cert, sip.tls_key)
            self.sip_tls_port = (await self.endpoint.open_tls(sip.host, sip.tls_port, context))[1]
        except ssl.SSLError as error:
            raise CannotListen(f"sip.tls_cert and sip.tls_key cannot be used: {error.reason}") from error
        except OSError as error:
            raise CannotListen(taken("sip.tls_port", "TCP", sip.host, sip.tls_port, error)) from error

    async def _open_http(self) -> None:
        http = self.settings.http
        self.http = HttpServer(self.switchboard, http)
        try:
            await self.http.open()
        except ssl.SSLError as error:
            raise CannotListen(f"http.tls_cert and http.tls_key cannot be used: {error.reason}") from error
        except OSError as error:
            raise CannotListen(taken("http.port", "TCP", http.host, http.port, error)) from error

    async def _open_operations(self) -> None:
        admin = self.settings.admin
        self.operations = Operations(self.switchboard, self.line, self.trunks, self.settings)
        try:
            await self.operations.start()
        except OSError as error:
            raise CannotListen(taken("admin.port", "TCP", admin.host, admin.port or 0, error)) from error
        assert self.http is not None
        self.http.metrics.registry.register(PhoneMetrics(self.switchboard, self.agent, self.trunks))
        self.http.metrics.registry.register(MediaMetrics(self.media))

    def _sip_event(self, event: Event) -> None:
        if self.line is not None:
            self.line.receive(event)
        if self.trunks is not None:
            self.trunks.receive(event)

    async def _carry_slot_events(self) -> None:
        while True:
            await asyncio.sleep(SLOT_EVENTS_S)
            self.switchboard.deliver_slot_events()
            self.floor.carry()

    def _media(self) -> InlineMedia | MediaProcesses:
        media = self.settings.media
        wanted = MediaSettings(
            rtp_timeout_s=media.rtp_timeout_s,
            min_delay_ms=media.jitter_min_ms,
            max_delay_ms=media.jitter_max_ms,
        )
        processing = ProcessingSettings(cancel_echo=media.cancels_echo(self.choice.kind))
        rows = engines.rows_for(self.choice, self.settings.engine)
        if not media.processes:
            return InlineMedia(AudioRows(rows), wanted, processing)
        memory = SharedMedia(rows, min(media.processes, rows))
        return MediaProcesses(memory, wanted, processing, self.settings.log)

    def _agent_settings(self) -> AgentSettings:
        sip = self.settings.sip
        return AgentSettings(
            user_agent=sip.user_agent,
            public_host=sip.public_address,
            max_calls=self.settings.engine.calls + SPARE_DIALOGS,
            access=access(self.settings.trunks, sip.open, sip.unknown),
        )


def serve(settings: Settings) -> int:
    """Take calls until a signal; the exit code. What cannot start is one line on standard error."""
    try:
        return asyncio.run(_serve(settings))
    except (CannotListen, EngineError, MediaError) as error:
        print(f"moshi-gateway: {error}", file=sys.stderr)
        return FAILED


async def _serve(settings: Settings) -> int:
    stopping = Stopping(asyncio.get_running_loop())
    app = await asyncio.to_thread(App, settings)
    starting = asyncio.ensure_future(app.start())
    try:
        await stopping.or_done(starting)
        if not stopping.asked:
            print(banner(app.start_up()), end="", flush=True)
            await stopping.event.wait()
    finally:
        # SIGTERM lets calls finish; Ctrl-C hangs up on them politely and goes.
        await app.stop(settings.limits.drain_s if stopping.signal == signal.SIGTERM else 0.0)
    return INTERRUPTED if stopping.interrupted else 0


def _allow_files() -> None:
    """A call has two sockets and a page two connections: the usual 1,024 files are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _wake(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """From any thread; a loop that has closed needs no waking."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(what)
