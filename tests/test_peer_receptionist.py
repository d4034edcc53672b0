"""The embedded default, as anybody meets it: Chromium and baresip are greeted, ask, are answered, interrupt
and are heard. No network, no GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import expect

from gateway.media import g711
from tests.audio import Signal, write_wav
from tests.chromium import chromium
from tests.peers import Baresip, Gateway

pytestmark = pytest.mark.peer
RATE = 8_000
BLOCK = 160
AUDIBLE_DBFS = -45.0
DATA = Path(__file__).parent / "data"
GREETED_S = 6.0
"""By then the greeting has been said."""
OVER_S = 1.6
"""In the middle of the greeting."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway(folder, MG_ENGINE__KIND="tiny", MG_ENGINE__SLOTS="2", OMP_NUM_THREADS="1") as running:
        yield running


def question() -> Signal:
    """When are you open? From a voice that training never heard."""
    codes = np.frombuffer((DATA / "tiny_hours.ulaw").read_bytes(), np.uint8)
    return g711.decode(codes, 0) / 32_768


def silence(seconds: float) -> Signal:
    return np.zeros(int(seconds * RATE))


def loud(heard: Signal) -> Signal:
    """True where 20 ms are audible."""
    frames = heard[: len(heard) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return np.asarray(10 * np.log10(np.mean(frames**2, axis=1) + 1e-12) > AUDIBLE_DBFS)


def spoken(heard: Signal, from_s: float, to_s: float) -> float:
    """Seconds of speech heard between two moments."""
    return float(loud(heard[int(from_s * RATE) : int(to_s * RATE)]).sum()) * BLOCK / RATE


def on_the_phone(gateway: Gateway, folder: Path, said: Signal) -> Signal:
    """What baresip hears of a call in which it says this."""
    phone = Baresip(folder / "phone", gateway.uri, np.concatenate([said, silence(20.0)]))
    heard = phone.established().talk_for(len(said) / RATE).hang_up()[1]
    gateway.wait_for_slots(0, 5.0)
    return heard


def test_baresip_is_greeted_asks_and_is_answered(gateway: Gateway, tmp_path: Path) -> None:
    asked = question()
    heard = on_the_phone(gateway, tmp_path, np.concatenate([silence(GREETED_S), asked, silence(5.0)]))
    ended = GREETED_S + len(asked) / RATE
    assert spoken(heard, 0.0, GREETED_S) > 1.5, "the greeting"
    assert spoken(heard, GREETED_S - 0.5, GREETED_S + 0.4) < 0.1, "then it listens"
    assert spoken(heard, ended, ended + 1.6) > 0.2, "and answers within a second"
    assert spoken(heard, ended, ended + 5.0) > 1.0


def test_baresip_interrupts_and_is_listened_to(gateway: Gateway, tmp_path: Path) -> None:
    asked = question()
    heard = on_the_phone(gateway, tmp_path, np.concatenate([silence(OVER_S), asked, silence(5.0)]))
    assert spoken(heard, 0.0, OVER_S) > 0.4, "it had begun"
    ended = OVER_S + len(asked) / RATE
    assert spoken(heard, OVER_S + 1.2, ended) < 0.1, "it stops while he speaks"
    assert spoken(heard, ended, ended + 4.0) > 0.8, "and answers then"


@pytest.mark.timeout(120)
async def test_chromium_reads_the_greeting_and_the_answer(gateway: Gateway, tmp_path: Path) -> None:
    said = np.concatenate([silence(GREETED_S + 1.0), question(), silence(30.0)])
    wide = np.interp(np.arange(6 * len(said)) / 6, np.arange(len(said)), said)
    async with chromium(write_wav(tmp_path / "said.wav", wide, 48_000)) as browser:
        page = await browser.new_page()
        await page.goto(gateway.page)
        await page.get_by_role("button", name="Call").click()
        await expect(page.locator("body")).to_have_attribute("data-state", "talking", timeout=15_000)
        words = page.locator("#said")
        await expect(words).to_contain_text("this is Riverside Bicycles", timeout=10_000)
        await expect(words).to_contain_text("open from nine to six", timeout=20_000)
    await asyncio.to_thread(gateway.wait_for_slots, 0, 10.0)
