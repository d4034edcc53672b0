"""Calls from a real Chromium through the page, with a WAV file as its microphone."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from engine.api import Persona
from gateway.config import HttpSettings
from gateway.legs.webrtc import WebRtcLeg
from tests.audio import write_wav
from tests.chromium import chromium
from tests.live_gateway import LiveGateway, live_gateway
from tests.page_recorder import MEASURED, RATE, SCRIPT, Heard, glide, take
from tests.peers import StallWatch

pytestmark = pytest.mark.peer

SETTLE_S = 3.0
"""After the first packet both jitter buffers find their depth."""
ATTEMPTS = 3
"""A figure is taken again when the machine stood still while it was."""


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("microphone") / "glide.wav", glide(90), RATE)


@asynccontextmanager
async def opened(browser: Browser, gateway: LiveGateway, **context: object) -> AsyncIterator[Page]:
    """The gateway's page; anything it complains of in the console fails the test."""
    window = await browser.new_context(**context)  # type: ignore[arg-type]
    page = await window.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if "Security" in line.text else None)
    await page.goto(gateway.url)
    yield page
    assert not complaints
    await window.close()


async def call(page: Page) -> None:
    await page.get_by_role("button", name="Call").click()
    await expect(page.locator("body")).to_have_attribute("data-state", "talking", timeout=15_000)


def only_leg(gateway: LiveGateway) -> WebRtcLeg:
    return next(iter(gateway.http.line.legs.values()))


def lose_one(heard: Callable[..., None]) -> Callable[..., None]:
    """The same function, deaf to its first call."""
    lost = False

    def listen(*packet: object) -> None:
        nonlocal lost
        if lost:
            heard(*packet)
        lost = True

    return listen


async def record(page: Page, seconds: float) -> Heard:
    await take(page)
    await asyncio.sleep(seconds)  # of real time: this is how long the call is heard
    return await take(page)


@asynccontextmanager
async def recorded_call(gateway: LiveGateway, microphone: Path) -> AsyncIterator[Page]:
    async with chromium(microphone) as browser:
        window = await browser.new_context(bypass_csp=True)
        await window.add_init_script(SCRIPT)
        page = await window.new_page()
        await page.goto(gateway.url)
        await call(page)
        await asyncio.sleep(SETTLE_S)
        yield page


@pytest.mark.timeout(400)
async def test_what_comes_back_is_what_was_said_without_a_gap_for_a_minute(microphone: Path) -> None:
    for _ in range(ATTEMPTS):
        heard, machine = await minute(microphone)
        gaps = [at for at in heard.silences() if not machine.explains(at)]
        alike = heard.likeness()
        print(f"likeness {alike:.3f}, round trip {heard.round_trip_ms():.0f} ms, {len(gaps)} gaps")
        assert len(heard.received) >= 58 * MEASURED
        assert alike >= 0.95
        if not gaps or not machine.stalls:
            break
    assert not gaps, f"the machine stood still: {machine.stalls}"


async def minute(microphone: Path) -> tuple[Heard, StallWatch]:
    async with live_gateway() as gateway, recorded_call(gateway, microphone) as page:
        with StallWatch() as machine:
            return await record(page, 60.0), machine


@pytest.mark.timeout(200)
@pytest.mark.parametrize("direction", ["to the gateway", "to the browser"])
async def test_a_lost_packet_does_not_slow_the_rest_of_the_call(microphone: Path, direction: str) -> None:
    for _ in range(ATTEMPTS):
        with StallWatch() as machine:
            before, after = await round_trips_around_a_loss(microphone, direction)
        print(f"round trip {before:.0f} ms, 2 s after a loss {direction} {after:.0f} ms")
        if after <= before + 40 or not machine.stalls:
            break
    assert after <= before + 40


async def round_trips_around_a_loss(microphone: Path, direction: str) -> tuple[float, float]:
    async with live_gateway() as gateway, recorded_call(gateway, microphone) as page:
        before = await record(page, 5.0)
        leg = only_leg(gateway)
        if direction == "to the gateway":
            leg.wire._on_rtp = lose_one(leg.wire._on_rtp)
        else:
            leg.wire.send = lose_one(leg.wire.send)  # type: ignore[method-assign]
        await asyncio.sleep(2.0)
        after = await record(page, 5.0)
    return before.round_trip_ms(), after.round_trip_ms()


async def test_hanging_up_frees_the_slot_and_says_so() -> None:
    async with live_gateway(slots=1) as gateway, chromium() as browser, opened(browser, gateway) as page:
        await call(page)
        assert len(gateway.switchboard.calls) == 1
        await page.get_by_role("button", name="Hang up").click()
        await expect(page.get_by_role("status")).to_have_text("Call ended")
        assert await gateway.until_calls(0) < 1.0
        assert gateway.engine.capacity().free == 1
        await call(page)


async def test_a_closed_tab_frees_the_slot_at_once() -> None:
    async with live_gateway(slots=1) as gateway, chromium() as browser:
        page = await browser.new_page()
        await page.goto(gateway.url)
        await call(page)
        await page.close()
        assert await gateway.until_calls(0) < 2.0
        assert gateway.switchboard.served == {("webrtc", "caller"): 1}


async def test_a_killed_tab_frees_the_slot_within_5_s() -> None:
    async with live_gateway(slots=1) as gateway, chromium() as browser:
        page = await browser.new_page()
        await page.goto(gateway.url)
        await call(page)
        session = await page.context.new_cdp_session(page)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(session.send("Page.crash"), 0.2)
        seconds = await gateway.until_calls(0)
        print(f"free after {seconds:.2f} s")
        assert seconds < 5.0
        assert gateway.engine.capacity().free == 1


async def test_a_full_gateway_shows_its_words_and_lets_the_caller_try_again() -> None:
    async with (
        live_gateway(slots=1) as gateway,
        chromium() as browser,
        opened(browser, gateway) as first,
        opened(browser, gateway) as second,
    ):
        await call(first)
        await second.get_by_role("button", name="Call").click()
        notice = second.get_by_role("alert")
        await expect(notice).to_contain_text("All lines are busy")
        await expect(notice).to_contain_text(re.compile(r"Try again in [1-9]\d* s"))
        await expect(second.get_by_role("button", name="Call")).to_be_disabled()
        await first.get_by_role("button", name="Hang up").click()
        await expect(notice).to_contain_text("You can call again now.", timeout=15_000)
        await call(second)


async def test_the_agents_words_and_the_figures_are_shown() -> None:
    async with (
        live_gateway(greeting=True) as gateway,
        chromium() as browser,
        opened(browser, gateway) as page,
    ):
        await call(page)
        said = page.get_by_role("log")
        await expect(said).to_contain_text("Hello! This is an echo: you hear your own voice", timeout=10_000)
        await expect(page.locator("#round-trip")).to_have_text(re.compile(r"^\d+ ms$"))
        await expect(page.locator("#lost-in")).to_have_text(re.compile(r"^\d+\.\d %$"))
        agent = page.get_by_role("meter", name="Agent")
        await expect(agent).not_to_have_attribute("aria-valuetext", "silent")


async def test_it_works_by_keyboard_alone_and_shows_where_the_focus_is() -> None:
    async with live_gateway() as gateway, chromium() as browser, opened(browser, gateway) as page:
        button = page.locator("#call")
        await page.keyboard.press("Tab")
        await expect(button).to_be_focused()
        await expect(button).to_have_css("outline-style", "solid")
        await page.keyboard.press("Enter")
        await expect(page.locator("body")).to_have_attribute("data-state", "talking", timeout=15_000)
        await expect(button).to_be_focused()
        await page.keyboard.press("Tab")
        mute = page.get_by_role("button", name="Mute")
        await expect(mute).to_be_focused()
        await page.keyboard.press("Space")
        await expect(page.get_by_role("button", name="Unmute")).to_have_attribute("aria-pressed", "true")
        await expect(page.get_by_role("status")).to_have_text("On a call, muted")
        you = page.get_by_role("meter", name="You")
        await expect(you).to_have_attribute("aria-valuetext", "silent")
        await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_have_text("Call ended")
        await gateway.until_calls(0)


async def test_a_muted_caller_is_not_taken_for_gone() -> None:
    async with live_gateway() as gateway, chromium() as browser, opened(browser, gateway) as page:
        await call(page)
        await page.get_by_role("button", name="Mute").click()
        await asyncio.sleep(gateway.http.line.settings.silence_s + 1.5)
        assert len(gateway.switchboard.calls) == 1
        await expect(page.get_by_role("status")).to_have_text("On a call, muted")


async def test_a_page_that_takes_its_track_away_and_puts_it_back_is_not_taken_for_gone() -> None:
    async with live_gateway() as gateway, chromium() as browser, opened(browser, gateway) as page:
        await page.evaluate("""() => {
            const Original = RTCPeerConnection;
            window.RTCPeerConnection = class extends Original {
                constructor(...a) { super(...a); window.connection = this; }
            };
        }""")
        await call(page)
        await page.evaluate("""() => {
            const [sender] = connection.getSenders();
            window.taken = sender.track;
            return sender.replaceTrack(null);
        }""")
        leg = only_leg(gateway)
        await asyncio.sleep(gateway.http.line.settings.silence_s + 1.5)
        assert len(gateway.switchboard.calls) == 1
        before = leg.stream.last_received_at
        assert before is not None and time.monotonic() - before > gateway.http.line.settings.silence_s
        await page.evaluate("() => connection.getSenders()[0].replaceTrack(taken)")
        async with asyncio.timeout(5):
            while leg.stream.last_received_at == before:
                await asyncio.sleep(0.05)


async def test_a_persona_is_chosen_where_there_are_more_than_one() -> None:
    personas = {"default": Persona(), "guide": Persona("guide")}
    async with (
        live_gateway(personas=personas) as gateway,
        chromium() as browser,
        opened(browser, gateway) as page,
    ):
        await page.get_by_label("Talk with").select_option("guide")
        await call(page)
        assert [c.persona.name for c in gateway.switchboard.calls.values()] == ["guide"]


async def test_a_refused_microphone_is_explained() -> None:
    async with (
        live_gateway() as gateway,
        chromium(deny_microphone=True) as browser,
        opened(browser, gateway) as page,
    ):
        await page.get_by_role("button", name="Call").click()
        await expect(page.get_by_role("alert")).to_contain_text("The microphone is blocked")
        assert not gateway.switchboard.calls


async def test_a_missing_microphone_is_explained() -> None:
    async with (
        live_gateway() as gateway,
        chromium(no_devices=True) as browser,
        opened(browser, gateway) as page,
    ):
        await page.get_by_role("button", name="Call").click()
        await expect(page.get_by_role("alert")).to_contain_text("No microphone was found")


async def test_an_insecure_address_is_explained_before_anybody_calls() -> None:
    http = HttpSettings(host="0.0.0.0", port=0)
    async with live_gateway(http=http) as gateway, chromium(resolve="talk.example") as browser:
        page = await browser.new_page()
        await page.goto(f"http://talk.example:{gateway.http.port}")
        await expect(page.get_by_role("alert")).to_contain_text("This page needs a secure address")


async def test_a_gateway_that_is_gone_is_explained() -> None:
    async with chromium() as browser:
        async with live_gateway() as gateway:
            page = await browser.new_page()
            await page.goto(gateway.url)
        await page.get_by_role("button", name="Call").click()
        await expect(page.get_by_role("alert")).to_contain_text("The gateway does not answer")


async def test_a_call_the_gateway_ends_is_explained() -> None:
    async with live_gateway() as gateway, chromium() as browser, opened(browser, gateway) as page:
        await call(page)
        await gateway.switchboard.drain(0.0)
        await expect(page.get_by_role("alert")).to_contain_text("shutting down")
        await page.get_by_role("button", name="Call").click()
        await expect(page.get_by_role("alert")).to_contain_text("The gateway is not taking calls")


async def test_a_lost_connection_is_noticed_and_explained() -> None:
    async with live_gateway() as gateway, chromium() as browser, opened(browser, gateway) as page:
        await call(page)
        for protocol in only_leg(gateway).wire._ice._protocols:
            protocol.datagram_received = protocol.transport.sendto = lambda *_: None
        await expect(page.get_by_role("alert")).to_contain_text("The connection was lost", timeout=10_000)
        await gateway.until_calls(0)


async def test_a_gateway_that_falls_silent_is_noticed_and_explained() -> None:
    async with live_gateway() as gateway, chromium() as browser, opened(browser, gateway) as page:
        await call(page)
        await page.context.set_offline(True)
        leg = only_leg(gateway)
        leg.watch = lambda now: None  # type: ignore[method-assign]
        for protocol in leg.wire._ice._protocols:
            protocol.datagram_received = protocol.transport.sendto = lambda *_: None
        await expect(page.get_by_role("status")).to_contain_text("shaky", timeout=15_000)
        await expect(page.get_by_role("alert")).to_contain_text("The connection was lost", timeout=20_000)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
async def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    async with live_gateway() as gateway, chromium() as browser:
        window = await browser.new_context(viewport={"width": width, "height": 700}, bypass_csp=True)
        page = await window.new_page()
        await page.goto(gateway.url)
        await call(page)
        assert await page.evaluate("() => document.documentElement.scrollWidth") <= width
        card = await page.get_by_role("region", name="Call").bounding_box()
        for name in ("Hang up", "Mute"):
            box = await page.get_by_role("button", name=name).bounding_box()
            assert box is not None and card is not None
            assert box["height"] >= 44 and box["y"] + box["height"] <= 700
            assert card["x"] < box["x"] and box["x"] + box["width"] < card["x"] + card["width"]
