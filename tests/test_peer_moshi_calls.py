"""Two phones and two browsers talk with one Moshi at once: baresip, Chromium, and a seeded small model."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import Browser, expect

from tests.audio import Signal, steady_noise, write_wav
from tests.chromium import chromium
from tests.page_recorder import MEASURED, RATE, SCRIPT, Heard, glide, take
from tests.peers import ROOT, Baresip, Gateway, StallWatch

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

TALK_S = 60.0
SETTLE_S = 3.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Moshi in Kyutai's layout. It babbles without a pause, so that every silence is a fault."""
    folder = tmp_path_factory.mktemp("seeded")
    subprocess.run([sys.executable, "-m", "engine.seeded", str(folder)], cwd=ROOT, check=True)
    return folder


def holes(heard: Signal, rate: int) -> list[tuple[float, float]]:
    """(when, how long in s) 60 ms or more without any sound: a frame of the model that was not played. The
    model itself pauses for a few ms now and then."""
    size = rate // 50
    frames = heard[: len(heard) // size * size].reshape(-1, size)
    rms = np.sqrt(np.mean(frames**2, axis=1))
    silent = np.concatenate([[False], rms < 0.05 * np.median(rms), [False]])
    edges = np.flatnonzero(np.diff(silent.astype(int)))
    return [(a / 50, (b - a) / 50) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= 3]


async def browser_call(browser: Browser, url: str) -> Heard:
    """One page's call of TALK_S, as it was played."""
    window = await browser.new_context(bypass_csp=True)
    await window.add_init_script(SCRIPT)
    page = await window.new_page()
    await page.goto(url)
    await page.get_by_role("button", name="Call").click()
    await expect(page.locator("body")).to_have_attribute("data-state", "talking", timeout=20_000)
    await asyncio.sleep(SETTLE_S)
    await take(page)
    await asyncio.sleep(TALK_S)  # of real time: this is how long the call is heard
    heard = await take(page)
    await window.close()
    return heard


async def test_four_calls_hear_the_model_for_a_minute_without_a_missing_frame(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = {"MG_ENGINE__KIND": "moshi", "MG_ENGINE__MODEL": str(checkpoint), "MG_ENGINE__SLOTS": "4"}
    microphone = write_wav(tmp_path / "glide.wav", glide(90), RATE)
    with contextlib.ExitStack() as house:
        gateway = house.enter_context(Gateway(tmp_path, **model))
        phones = [
            house.enter_context(Baresip(tmp_path / f"phone{n}", gateway.uri, steady_noise(90)))
            for n in range(2)
        ]
        for phone in phones:
            phone.established()
        machine = house.enter_context(StallWatch())
        async with chromium(microphone) as browser:
            heard = await asyncio.gather(*(browser_call(browser, gateway.page) for _ in range(2)))
            assert gateway.slots_used() >= 2
        metrics = gateway.metrics()
        by_phone = [phone.hang_up()[1] for phone in phones]
        gateway.wait_for_slots(0, 5.0)
    talked = slice(2 * 8_000, round((SETTLE_S + TALK_S) * 8_000))
    found = [holes(pcm[talked], 8_000) for pcm in by_phone]
    found += [holes(side.received, MEASURED) for side in heard]
    late, stalls = metrics["engine_frames_late_total"], len(machine.stalls)
    print(f"late ticks {late:.0f}, holes {found}, the machine stood still {stalls} times")
    assert all(len(pcm) > TALK_S * 8_000 for pcm in by_phone)
    assert all(len(side.received) > (TALK_S - 2) * MEASURED for side in heard)
    assert all(len(one) <= stalls for one in found), found
    assert not np.array_equal(by_phone[0][:80_000], by_phone[1][:80_000])
