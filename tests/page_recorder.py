"""Hears what a page hears: both tracks of its call on one clock, brought out of the browser as samples."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from playwright.async_api import Page

RATE = 48_000

# The microphone is taken as it is, so that a test knows what was said; both tracks are mixed into the two
# channels of one recording, in the audio thread, so that their delay is exact.
SCRIPT = """
(() => {
  const capture = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
  navigator.mediaDevices.getUserMedia = async () => {
    const stream = await capture({ audio: plain });
    recorder.watch(0, stream);
    return stream;
  };
  const worklet = `registerProcessor('recorder', class extends AudioWorkletProcessor {
    constructor() { super(); this.blocks = []; }
    process([both]) {
      const block = new Float32Array(256);
      both.forEach((channel, n) => block.set(channel, 128 * n));
      this.blocks.push(block);
      if (this.blocks.length === 75) { this.port.postMessage(this.blocks); this.blocks = []; }
      return true;
    }
  })`;
  const recorder = {
    blocks: [],
    async prepare() {
      this.context = new AudioContext({ sampleRate: 48000, latencyHint: 'playback' });
      const url = URL.createObjectURL(new Blob([worklet], { type: 'text/javascript' }));
      await this.context.audioWorklet.addModule(url);
      const both = { channelCount: 2, channelCountMode: 'explicit' };
      this.node = new AudioWorkletNode(this.context, 'recorder', both);
      this.merger = new ChannelMergerNode(this.context, { numberOfInputs: 2 });
      this.merger.connect(this.node);
      const mute = new GainNode(this.context, { gain: 0 });
      this.node.connect(mute).connect(this.context.destination);
      this.node.port.onmessage = ({ data }) => this.blocks.push(...data);
    },
    async watch(channel, stream) {
      this.ready ??= this.prepare();
      await this.ready;
      this.context.createMediaStreamSource(stream).connect(this.merger, 0, channel);
    },
    take() {
      const all = new Int16Array(this.blocks.length * 256);
      const clip = (x) => 32767 * Math.max(-1, Math.min(1, x));
      this.blocks.forEach((block, n) => all.set(block.map(clip), 256 * n));
      this.blocks = [];
      const bytes = new Uint8Array(all.buffer);
      let text = '';
      for (let at = 0; at < bytes.length; at += 32768) {
        text += String.fromCharCode(...bytes.subarray(at, at + 32768));
      }
      return btoa(text);
    },
  };
  window.recorder = recorder;
  const Plain = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Plain {
    constructor(...args) {
      super(...args);
      window.connection = this;
      this.addEventListener('track', ({ track }) => recorder.watch(1, new MediaStream([track])));
    }
  };
})()
"""


@dataclass
class Heard:
    """One stretch of a call, 48 kHz."""

    sent: NDArray[np.float64]
    """What the microphone gave."""
    received: NDArray[np.float64]
    """What came back, as it was played."""


async def take(page: Page) -> Heard:
    """Everything recorded since the last call."""
    raw = np.frombuffer(base64.b64decode(await page.evaluate("() => window.recorder.take()")), "<i2")
    blocks = raw.reshape(-1, 2, 128) / 32_768
    return Heard(blocks[:, 0].reshape(-1), blocks[:, 1].reshape(-1))


def glide(seconds: float, rate: int = RATE, seed: int = 1) -> NDArray[np.float64]:
    """One tone wandering between 300 and 2,500 Hz over a little noise: never silent, never the same twice,
    and kept by two passes of Opus (correlation 0.97; speech, whose phases Opus turns, comes to 0.87)."""
    random = np.random.default_rng(seed)
    knots = np.arange(0.0, seconds + 0.4, 0.2)
    t = np.arange(int(seconds * rate)) / rate
    pitch = np.interp(t, knots, np.exp(random.uniform(np.log(300), np.log(2_500), len(knots))))
    tone = 0.15 * np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    return np.asarray(tone + 0.006 * random.standard_normal(len(t)))


def round_trips_ms(heard: Heard, longest_ms: int = 1_000, window_s: float = 0.1) -> NDArray[np.float64]:
    """The delay of `received` behind `sent` in each window, at 8 kHz by cross-correlation."""
    step = RATE // 8_000
    sent, received = (x.reshape(-1, step).mean(axis=1) for x in (heard.sent, heard.received))
    size, longest = int(window_s * 8_000), longest_ms * 8
    delays = []
    for at in range(longest, len(received) - size + 1, size):
        piece, before = received[at : at + size], sent[at - longest : at + size]
        products = np.correlate(before, piece, "valid")
        energy = np.sqrt(np.convolve(before**2, np.ones(size), "valid")) + 1e-9
        delays.append((longest - int(np.argmax(products / energy))) / 8)
    return np.asarray(delays)


def likeness(
    heard: Heard, delays_ms: NDArray[np.float64], longest_ms: int = 1_000, window_s: float = 0.1
) -> NDArray[np.float64]:
    """Normalised correlation of each window of round_trips_ms() at its own delay, at 48 kHz."""
    size, found = int(window_s * RATE), []
    for n, delay in enumerate(delays_ms):
        at = longest_ms * RATE // 1000 + n * size
        piece = heard.received[at : at + size]
        best = 0.0
        for shift in range(-8, 9):
            start = at - round(delay * RATE / 1000) + shift
            other = heard.sent[start : start + size]
            energy = np.sqrt(np.dot(piece, piece) * np.dot(other, other)) + 1e-12
            best = max(best, float(np.dot(piece, other) / energy))
        found.append(best)
    return np.asarray(found)


def silent_frames(received: NDArray[np.float64], ms: int = 20) -> list[float]:
    """Times (s) of frames 20 dB below the median: gaps, in a sound that is never silent."""
    size = RATE * ms // 1000
    frames = received[: len(received) // size * size].reshape(-1, size)
    rms = np.sqrt(np.mean(frames**2, axis=1))
    return [n * ms / 1000 for n in np.flatnonzero(rms < 0.1 * np.median(rms))]
