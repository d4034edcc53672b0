"""What the engine hears when packets are lost: PESQ and STOI, G.711 and Opus; and a clean path, exact.

Speech goes through the real media plane, stepped by hand: packets in, `AudioRows.heard` out. Loss is random
or in bursts (Gilbert–Elliott, mean 3); `zero` is silence in place of each lost packet, `plc` and `fec` what
the plane makes of it. PESQ is narrow-band for G.711 and wide-band for Opus.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import Report, arguments
from engine.opus import OpusDecoder, OpusEncoder
from engine.rows import RING, AudioRows
from gateway.media import g711
from gateway.media.messages import OpusMedia, RtpMedia
from gateway.media.plane import MediaPlane, MediaSettings
from tests.network import Conditions, Link
from tests.phone import HEADER, bound_socket

WARM_TICKS = 100
"""Without loss."""
SCORED_FROM_S = 5
"""By then the delay is what the loss wants."""
LOSSES = (0.0, 0.01, 0.03, 0.05, 0.10)
WIDE = 24_000


def read(path: Path) -> tuple[np.ndarray, int]:
    import av

    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
    pcm = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
    return pcm.astype(np.int16), frames[0].sample_rate


def resampled(pcm: np.ndarray, source: int, target: int) -> np.ndarray:
    from math import gcd

    from scipy.signal import resample_poly

    common = gcd(source, target)
    return resample_poly(pcm.astype(np.float64), target // common, source // common)


def losses(count: int, loss: float, burst: float, seed: int) -> np.ndarray:
    """(count,) True where a packet is lost; the first seconds are spared."""
    link = Link(Conditions(loss=loss, burst=burst), seed)
    lost = np.array([not link.pass_through(i * 0.02, 172) for i in range(count)])
    lost[:WARM_TICKS] = False
    return lost


class Ear:
    """One row of a plane, fed by hand; keeps all that `heard` got."""

    def __init__(self) -> None:
        self.rows = AudioRows(1)
        self.plane = MediaPlane(self.rows, MediaSettings(kernel_times=False))
        self.tick = 1_000
        self.read = 0
        self.pieces: list[np.ndarray] = []

    @property
    def now(self) -> float:
        return self.tick * 0.02

    def step(self) -> None:
        self.tick += 1
        self.plane.tick(self.now)
        end = int(self.rows.heard_end[0])
        assert end - self.read <= RING
        self.pieces.append(self.rows.read_heard(0, self.read, end - self.read))
        self.read = end

    def heard(self) -> np.ndarray:
        return np.concatenate(self.pieces)


def through_g711(pcm: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, Ear]:
    ear, ours, peer = Ear(), bound_socket(), bound_socket()
    to = ours.getsockname()
    ear.plane.open_rtp(0, ours, RtpMedia("PCMU", 0, peer.getsockname(), 7))
    ear.plane.start(0)
    codes = g711.encode(pcm, 0)
    for i in range(len(lost)):
        if not lost[i]:
            payload = codes[i * 160 : (i + 1) * 160].tobytes()
            peer.sendto(HEADER.pack(0x80, 0, i & 0xFFFF, i * 160, 9) + payload, to)
        ear.step()
    ear.plane.close_all()
    peer.close()
    return ear.heard(), ear


def through_opus(pcm: np.ndarray, lost: np.ndarray, fec: bool) -> tuple[np.ndarray, Ear]:
    ear, encoder = Ear(), OpusEncoder(bitrate=32_000)
    encoder.set_loss(round(100 * lost.mean()) if fec else 0, fec)
    port = ear.plane.open_opus(0, OpusMedia(), lambda packets: None)
    ear.plane.start(0)
    for i in range(len(lost)):
        packet = encoder.encode(pcm[i * 480 : (i + 1) * 480].astype(np.float32))
        if not lost[i]:
            port.receive(i & 0xFFFF, i * 960, packet, False, ear.now)
        ear.step()
    ear.plane.close_all()
    return ear.heard(), ear


def zero_filled(pcm: np.ndarray, lost: np.ndarray, samples: int) -> np.ndarray:
    out = pcm.copy()
    for i in np.flatnonzero(lost):
        out[i * samples : (i + 1) * samples] = 0
    return out


def opus_without_plc(pcm: np.ndarray, lost: np.ndarray) -> np.ndarray:
    encoder, decoder, out = OpusEncoder(bitrate=32_000), OpusDecoder(), np.zeros_like(pcm)
    for i in range(len(lost)):
        packet = encoder.encode(pcm[i * 480 : (i + 1) * 480].astype(np.float32))
        if not lost[i]:
            out[i * 480 : (i + 1) * 480] = decoder.decode(packet)
    return out


def scored(reference: np.ndarray, heard: np.ndarray, rate: int) -> tuple[float, float]:
    """PESQ and STOI after alignment."""
    from pesq import pesq
    from pystoi import stoi

    from tests.audio import align

    mode = "nb" if rate == 8_000 else "wb"
    skip = SCORED_FROM_S * rate
    pair = align(heard[skip:].astype(np.float64), reference[skip:].astype(np.float64), rate)
    return float(pesq(rate, pair.sent, pair.heard, mode)), float(stoi(pair.sent, pair.heard, rate))


def g711_row(report: Report, speech: np.ndarray, loss: float, burst: float, seeds: int) -> None:
    scores = {"zero": [], "plc": []}  # type: dict[str, list[tuple[float, float]]]
    for seed in range(seeds):
        lost = losses(len(speech) // 160, loss, burst, seed)
        heard, _ = through_g711(speech, lost)
        scores["plc"].append(scored(speech, resampled(heard, WIDE, 8_000), 8_000))
        scores["zero"].append(scored(speech, zero_filled(speech, lost, 160).astype(np.float64), 8_000))
    put(report, "G.711", loss, burst, scores)


def opus_row(report: Report, speech: np.ndarray, loss: float, burst: float, seeds: int) -> None:
    wide = resampled(speech, 16_000, WIDE) / 32_768
    scores = {"zero": [], "plc": [], "fec": []}  # type: dict[str, list[tuple[float, float]]]
    for seed in range(seeds):
        lost = losses(len(wide) // 480, loss, burst, seed)
        heard = {"zero": opus_without_plc(wide, lost)}
        heard["plc"], _ = through_opus(wide, lost, fec=False)
        heard["fec"], _ = through_opus(wide, lost, fec=True)
        for name, pcm in heard.items():
            scores[name].append(scored(speech, resampled(pcm, WIDE, 16_000) * 32_768, 16_000))
    put(report, "Opus", loss, burst, scores)


Scores = dict[str, list[tuple[float, float]]]


def put(report: Report, codec: str, loss: float, burst: float, scores: Scores) -> None:
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    pesqs = {f"pesq_{name}": round(float(mean[0]), 2) for name, mean in means.items()}
    stois = {f"stoi_{name}": round(float(mean[1]), 3) for name, mean in means.items()}
    report.row(codec=codec, loss_percent=100 * loss, burst=burst, **pesqs, **stois)


def exact_minutes(report: Report, seconds: int) -> None:
    """A clean path: is the ear's audio the sender's, to the sample?"""
    rng = np.random.default_rng(1)
    noise = (rng.standard_normal(seconds * 8_000) * 3_000).astype(np.int16)
    _, ear = through_g711(noise, np.zeros(len(noise) // 160, np.bool_))
    stats = ear.plane.stats(0)
    changed = stats.squeezed_samples + stats.stretched_samples
    row = {"concealed_samples": stats.concealed_samples, "lost": stats.lost, "late": stats.late}
    report.row(codec="G.711", clean_s=seconds, scaled_samples=changed, **row)


def main() -> None:
    options = arguments(__doc__, speech=True)
    report = Report("media_quality", options)
    narrow, _ = read(options.speech / "ast_en_far_8k.flac")
    names = ("esp_far_16k.flac", "esp_en-us_near0_16k.flac")
    wide, _ = read(next(options.speech / n for n in names if (options.speech / n).exists()))
    seconds, seeds = (14, 1) if options.quick else (30, 3)
    narrow, wide = narrow[: seconds * 8_000], wide[: seconds * 16_000]
    bursts = (1.0,) if options.quick else (1.0, 3.0)
    for burst in bursts:
        for loss in LOSSES:
            g711_row(report, narrow, loss, burst, seeds)
            opus_row(report, wide, loss, burst, seeds)
    exact_minutes(report, 60 if options.quick else 600)
    report.finish()


if __name__ == "__main__":
    main()
