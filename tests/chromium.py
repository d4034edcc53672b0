"""A real Chromium for the peer tests: headless, with a WAV file as its microphone, on a closed network."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)
"""What lets it run as root and keeps it from calling home."""


def executable() -> str:
    """Path of Chromium; without one the test is skipped, saying what to install."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("Chromium is not installed (apt-get install chromium)")


@asynccontextmanager
async def chromium(
    microphone: Path | None = None,
    *,
    deny_microphone: bool = False,
    no_devices: bool = False,
    resolve: str | None = None,
) -> AsyncIterator[Browser]:
    """A running browser. `microphone`: 48 kHz 16-bit mono WAV, played from its start when a page first
    records and then over and over; None: a beep once a second. `resolve`: a host name that means us."""
    arguments = [*QUIET]
    if not no_devices:
        arguments.append("--use-fake-device-for-media-stream")
    if microphone is not None:
        arguments.append(f"--use-file-for-fake-audio-capture={microphone}")
    if resolve is not None:
        arguments.append(f"--host-resolver-rules=MAP {resolve} 127.0.0.1")
    arguments.append("--deny-permission-prompts" if deny_microphone else "--use-fake-ui-for-media-stream")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable(), headless=True, args=arguments
        )
        try:
            yield browser
        finally:
            await browser.close()
