"""A browser whose microphone takes its own loudspeaker in: the agent, at 24 kHz, does not interrupt itself.

A real Chromium on the page; its microphone is the agent's voice as it is played, later and lower, and the
words of a caller when he is told to say them.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import Page, expect
from scipy.signal import resample_poly

from bench.barge_calls import served
from bench.barge_scenes import at_level, without_pauses
from bench.echo_scenes import read_flac
from gateway.duplex import Ducked, DuplexEvent, Interrupted, Policy
from tests.chromium import chromium
from tests.peers import StallWatch

pytestmark = pytest.mark.peer

SPEECH = Path(__file__).parent / "data" / "speech"
ALONE_S = 14.0
"""The agent's echo and nothing else."""
WORDS_S = 3.0
ATTEMPTS = 3

# The page asks for a microphone and gets this one. What it plays is taken from the connection's own track.
LOUD_ROOM = """
(({ delay, gain }) => {
  let context, microphone, ear, mouth;
  const prepare = () => {
    context = new AudioContext({ sampleRate: 48000, latencyHint: 'interactive' });
    microphone = context.createMediaStreamDestination();
    microphone.channelCount = 1;
    [ear, mouth] = [context.createAnalyser(), context.createAnalyser()];
    ear.fftSize = mouth.fftSize = 16384;
    mouth.connect(microphone);
  };
  navigator.mediaDevices.getUserMedia = async () => { prepare(); return microphone.stream; };
  const level = (analyser) => {
    const samples = new Float32Array(analyser.fftSize);
    analyser.getFloatTimeDomainData(samples);
    return 10 * Math.log10(samples.reduce((sum, x) => sum + x * x, 0) / samples.length + 1e-12);
  };
  window.room = {
    levels: () => ({ played: level(ear), taken: level(mouth) }),
    say(text, rate) {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      const words = new Float32Array(bytes.buffer);
      const buffer = context.createBuffer(1, words.length, rate);
      buffer.copyToChannel(words, 0);
      const source = new AudioBufferSourceNode(context, { buffer });
      source.connect(mouth);
      source.start();
    },
  };
  const Plain = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Plain {
    constructor(...args) {
      super(...args);
      this.addEventListener('track', ({ track }) => {
        const played = context.createMediaStreamSource(new MediaStream([track]));
        const air = new DelayNode(context, { delayTime: delay, maxDelayTime: 1 });
        played.connect(ear);
        played.connect(air).connect(new GainNode(context, { gain })).connect(mouth);
      });
    }
  };
})
"""


def agents_voice() -> np.ndarray:
    """24 kHz, wide-band, without a pause for the echo to be lost in."""
    voice, rate = read_flac(SPEECH / "esp_en-us_near0_16k.flac")
    return np.tile(at_level(resample_poly(voice, 24_000, rate).astype(np.float32), -20.0), 4)


def callers_words() -> str:
    voice, rate = read_flac(SPEECH / "ast_en_near2_8k.flac")
    words = np.resize(at_level(without_pauses(voice), -22.0), int(WORDS_S * rate)).astype("<f4")
    return base64.b64encode(words.tobytes()).decode()


@asynccontextmanager
async def call_in_a_loud_room(
    policy: Policy, delay_ms: float, echo_db: float
) -> AsyncIterator[tuple[Page, list[DuplexEvent]]]:
    """A call that stands, and what its duplex tells."""
    async with served(policy, agents_voice(), 1) as app, chromium() as browser:
        assert app.http is not None
        events: list[DuplexEvent] = []
        app.switchboard.on_admitted(
            lambda call: call.on_event(
                lambda event: events.append(event) if isinstance(event, DuplexEvent) else None
            )
        )
        window = await browser.new_context(bypass_csp=True)
        room = f"({{ delay: {delay_ms / 1_000}, gain: {10 ** (echo_db / 20)} }})"
        await window.add_init_script(f"{LOUD_ROOM.strip()}{room}")
        page = await window.new_page()
        await page.goto(f"http://127.0.0.1:{app.http.port}")
        await page.get_by_role("button", name="Call").click()
        await expect(page.locator("body")).to_have_attribute("data-state", "talking", timeout=15_000)
        yield page, events


@dataclass
class Heard:
    """One call."""

    played: float
    """dBFS of the agent, at the loudspeaker."""
    taken: float
    """dBFS of the microphone while the caller was silent."""
    over_words: float
    """dBFS of the agent after most of the caller's words."""
    alone: list[DuplexEvent]
    words: list[DuplexEvent]
    """What was told while the agent was alone, and from the caller's words on."""


async def call(delay_ms: float, echo_db: float) -> Heard:
    async with call_in_a_loud_room(Policy.DUCK, delay_ms, echo_db) as (page, events):
        levels = []
        for _ in range(round(2 * ALONE_S)):
            await asyncio.sleep(0.5)  # of real time: this is how long the room is heard
            levels.append(await page.evaluate("() => window.room.levels()"))
        alone = events.copy()
        events.clear()
        await page.evaluate("([text, rate]) => window.room.say(text, rate)", [callers_words(), 8_000])
        await asyncio.sleep(WORDS_S - 0.5)
        after = await page.evaluate("() => window.room.levels()")
        played, taken = (
            float(np.median([level[key] for level in levels[4:]])) for key in ("played", "taken")
        )
        return Heard(played, taken, after["played"], alone, events.copy())


def cuts(events: list[DuplexEvent]) -> int:
    return sum(isinstance(event, Interrupted) for event in events)


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("delay_ms", "echo_db"), [(150.0, -12.0), (300.0, -20.0)])
async def test_the_agent_hears_a_caller_in_a_loud_room_and_not_itself(
    delay_ms: float, echo_db: float
) -> None:
    """Where the machine stands still the browser plays faster to catch up, a third of a second in the first
    four: an echo stretched all the time is none that a filter can follow. Then it is tried again."""
    for _ in range(ATTEMPTS):
        with StallWatch() as machine:
            heard = await call(delay_ms, echo_db)
        lowered = sum(isinstance(event, Ducked) for event in heard.alone)
        print(f"played {heard.played:.1f} dBFS, taken in {heard.taken:.1f}, lowered {lowered} times alone")
        assert heard.played > -35 and abs(heard.taken - heard.played - echo_db) < 4, "the echo was there"
        if not cuts(heard.alone) or not machine.stalls:
            break
    assert not cuts(heard.alone), "it took itself for a caller"
    assert cuts(heard.words), "it did not hear the caller"
    assert heard.over_words < heard.played - 25, "it fell silent while he spoke"
