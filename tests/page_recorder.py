"""Hears what a page hears: both tracks of its call on one clock, brought out of the browser as samples."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from playwright.async_api import Page

from tests.audio import Signal, align, likeness

RATE = 48_000
"""Hz of the browser's audio."""
MEASURED = 8_000

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
    """One stretch of a call at 8 kHz (MEASURED), both sides on one clock."""

    sent: Signal
    """What the microphone gave."""
    received: Signal
    """What came back, as it was played."""

    def round_trip_ms(self, window_s: float = 0.5, longest_s: float = 1.0) -> float:
        """Median over every other window of the delay of `received` behind `sent`."""
        size, longest = int(window_s * MEASURED), int(longest_s * MEASURED)
        starts = range(longest, len(self.received) - size + 1, 2 * size)
        lags = [
            align(self.received[at : at + size], self.sent[at - longest : at + size], longest).lag
            for at in starts
        ]
        return float(np.median([longest + lag for lag in lags])) * 1000 / MEASURED

    def likeness(self) -> float:
        """Median correlation of windows of 0.1 s, each at its own delay: one pitch period put in or left out
        by a jitter buffer turns a longer window against itself. Of every 5 s, one is looked at."""
        second = MEASURED
        found = [
            likeness(self.received[at : at + second], self.sent[at - second : at + second], MEASURED)
            for at in range(second, len(self.received) - second + 1, 5 * second)
        ]
        return float(np.median(found))

    def silences(self, ms: int = 20) -> list[float]:
        """When (s) frames 20 dB below the median began: gaps, in a sound that is never silent."""
        size = MEASURED * ms // 1000
        frames = self.received[: len(self.received) // size * size].reshape(-1, size)
        rms = np.sqrt(np.mean(frames**2, axis=1))
        quiet = np.flatnonzero(rms < 0.1 * np.median(rms))
        return [float(n) * ms / 1000 for n in quiet if n - 1 not in quiet]


async def take(page: Page) -> Heard:
    """Everything recorded since the last call."""
    raw = np.frombuffer(base64.b64decode(await page.evaluate("() => window.recorder.take()")), "<i2")
    both = raw.reshape(-1, 2, 128).transpose(1, 0, 2).reshape(2, -1) / 32_768
    step = RATE // MEASURED
    sent, received = both[:, : both.shape[1] // step * step].reshape(2, -1, step).mean(axis=2)
    return Heard(sent, received)


def glide(seconds: float, rate: int = RATE, seed: int = 1) -> Signal:
    """One tone wandering between 300 and 2,500 Hz over a little noise: never silent, never the same twice,
    and kept by two passes of Opus (correlation 0.97; speech, whose phases Opus turns, comes to 0.87)."""
    random = np.random.default_rng(seed)
    knots = np.arange(0.0, seconds + 0.4, 0.2)
    t = np.arange(int(seconds * rate)) / rate
    pitch = np.interp(t, knots, np.exp(random.uniform(np.log(300), np.log(2_500), len(knots))))
    tone = 0.15 * np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    return np.asarray(tone + 0.006 * random.standard_normal(len(t)))
