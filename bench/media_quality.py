"""What the engine hears when packets are lost: PESQ and STOI, G.711, G.722 and Opus; and a clean path, exact.

Speech goes through the real media plane, stepped by hand: packets in, `AudioRows.heard` out. Loss is random
or in bursts (Gilbert-Elliott, mean 3). `zero` is silence in place of each lost packet, `plc` and `fec` what
the plane makes of it; `libopus_plc` and `libopus_fec` are libopus alone, given every packet and every loss in
order, in no time: what no jitter buffer can beat. PESQ is narrow-band for G.711, wide-band for the others.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import Report, arguments
from engine.opus import OpusDecoder, OpusEncoder
from engine.rows import RING, AudioRows
from gateway.media import g711
from gateway.media.g722 import G722Encoder
from gateway.media.messages import MediaStats, OpusMedia, RtpMedia
from gateway.media.plane import MediaPlane, MediaSettings
from tests.audio import align
from tests.network import Conditions, Link
from tests.phone import HEADER, bound_socket

WARM_TICKS = 100
"""Without loss."""
SETTLED_TICKS = 250
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


@dataclass(frozen=True)
class Case:
    """Of packets: the share lost, and how many in a row on average."""

    loss: float
    burst: float


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
    for i in np.flatnonzero(lost).tolist():
        out[i * samples : (i + 1) * samples] = 0
    return out


def through_g722(pcm: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, Ear]:
    ear, ours, peer, encoder = Ear(), bound_socket(), bound_socket(), G722Encoder()
    to = ours.getsockname()
    ear.plane.open_rtp(0, ours, RtpMedia("G722", 9, peer.getsockname(), 7))
    ear.plane.start(0)
    for i in range(len(lost)):
        payload = encoder.encode(pcm[i * 320 : (i + 1) * 320].astype(np.float32))
        if not lost[i]:
            peer.sendto(HEADER.pack(0x80, 9, i & 0xFFFF, i * 160, 9) + payload, to)
        ear.step()
    ear.plane.close_all()
    peer.close()
    return ear.heard(), ear


def libopus(pcm: np.ndarray, lost: np.ndarray, how: str) -> np.ndarray:
    """libopus alone: `zero`, `plc` or `fec`."""
    encoder, decoder = OpusEncoder(bitrate=32_000), OpusDecoder()
    encoder.set_loss(round(100 * lost.mean()) if how == "fec" else 0, how == "fec")
    blocks = [pcm[at : at + 480].astype(np.float32) for at in range(0, 480 * len(lost), 480)]
    packets = [encoder.encode(block) for block in blocks]
    out = []
    for i, packet in enumerate(packets):
        if not lost[i]:
            out.append(decoder.decode(packet))
        elif how == "zero":
            out.append(np.zeros(480, np.float32))
        elif how == "fec" and i + 1 < len(lost) and not lost[i + 1]:
            out.append(decoder.recover(packets[i + 1], 480))
        else:
            out.append(decoder.conceal(480))
    return np.concatenate(out)


def scored(reference: np.ndarray, heard: np.ndarray, rate: int) -> tuple[float, float]:
    """PESQ and STOI after alignment."""
    from pesq import pesq
    from pystoi import stoi

    mode = "nb" if rate == 8_000 else "wb"
    skip = SCORED_FROM_S * rate
    pair = align(heard[skip:].astype(np.float64), reference[skip:].astype(np.float64), rate)
    return float(pesq(rate, pair.sent, pair.heard, mode)), float(stoi(pair.sent, pair.heard, rate))


def g711_row(report: Report, voices: list[np.ndarray], case: Case) -> None:
    """Voices at 8 kHz."""
    scores: Scores = {"zero": [], "plc": []}
    for seed, speech in enumerate(voices):
        lost = losses(len(speech) // 160, case.loss, case.burst, seed)
        heard, _ = through_g711(speech, lost)
        scores["plc"].append(scored(speech, resampled(heard, WIDE, 8_000), 8_000))
        coded = g711.decode(g711.encode(speech, 0), 0)
        scores["zero"].append(scored(speech, zero_filled(coded, lost, 160).astype(np.float64), 8_000))
    put(report, "G.711", case, scores)


def g722_row(report: Report, voices: list[np.ndarray], case: Case) -> None:
    """Voices at 16 kHz."""
    scores: Scores = {"zero": [], "plc": []}
    for seed, speech in enumerate(voices):
        lost = losses(len(speech) // 320, case.loss, case.burst, seed)
        heard, _ = through_g722(speech / 32_768, lost)
        scores["plc"].append(scored(speech, resampled(heard, WIDE, 16_000) * 32_768, 16_000))
        coded, _ = through_g722(speech / 32_768, np.zeros(len(lost), np.bool_))
        coded = resampled(coded, WIDE, 16_000) * 32_768
        late = round(float(align(coded.astype(np.float64), speech.astype(np.float64), 16_000).lag))
        scores["zero"].append(scored(speech, zero_filled(coded[late:], lost, 320), 16_000))
    put(report, "G.722", case, scores)


def opus_row(report: Report, voices: list[np.ndarray], case: Case) -> None:
    """Voices at 16 kHz."""
    scores: Scores = {}
    for seed, speech in enumerate(voices):
        wide = resampled(speech, 16_000, WIDE) / 32_768
        lost = losses(len(wide) // 480, case.loss, case.burst, seed)
        heard = {"zero": libopus(wide, lost, "zero")}
        for how in ("plc", "fec"):
            heard[how], _ = through_opus(wide, lost, fec=how == "fec")
            heard[f"libopus_{how}"] = libopus(wide, lost, how)
        for name, pcm in heard.items():
            score = scored(speech, resampled(pcm, WIDE, 16_000) * 32_768, 16_000)
            scores.setdefault(name, []).append(score)
    put(report, "Opus", case, scores)


Scores = dict[str, list[tuple[float, float]]]


def put(report: Report, codec: str, case: Case, scores: Scores) -> None:
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    pesqs = {f"pesq_{name}": round(float(mean[0]), 2) for name, mean in means.items()}
    stois = {f"stoi_{name}": round(float(mean[1]), 3) for name, mean in means.items()}
    report.row(codec=codec, loss_percent=100 * case.loss, burst=case.burst, **pesqs, **stois)


def exact_minutes(report: Report, seconds: int, ppm: float = 0.0) -> None:
    """A clean path, from a sender whose clock is `ppm` fast: is the ear's audio the sender's, to the sample?

    `delay_ms` is the buffer's at the end: drift must not make it grow.
    """
    ear, ours, peer = Ear(), bound_socket(), bound_socket()
    to, rng = ours.getsockname(), np.random.default_rng(1)
    ear.plane.open_rtp(0, ours, RtpMedia("PCMU", 0, peer.getsockname(), 7))
    ear.plane.start(0)
    sent = unaccounted = 0
    for tick in range(seconds * 50):
        if tick == SETTLED_TICKS:
            unaccounted = _unaccounted(sent, ear.plane.stats(0))
        while sent * (1 - ppm * 1e-6) <= tick:
            payload = g711.encode((rng.standard_normal(160) * 3_000).astype(np.int16), 0).tobytes()
            peer.sendto(HEADER.pack(0x80, 0, sent & 0xFFFF, sent * 160, 9) + payload, to)
            sent += 1
        ear.step()
        ear.pieces.clear()
    stats = ear.plane.stats(0)
    ear.plane.close_all()
    peer.close()
    report.row(
        codec="G.711",
        clean_s=seconds,
        ppm=ppm,
        lost=stats.lost,
        late=stats.late,
        concealed_samples=stats.concealed_samples,
        scaled_samples=stats.squeezed_samples + stats.stretched_samples,
        missing_samples=_unaccounted(sent, stats) - unaccounted,
        delay_ms=stats.delay_ms,
    )


def _unaccounted(sent: int, stats: MediaStats) -> int:
    """Samples sent and neither heard nor cut; the same at any time, where none is lost or doubled."""
    return sent * 480 - stats.samples_in - stats.squeezed_samples + stats.stretched_samples


def voices(folder: Path, quick: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Recordings at 8 and at 16 kHz. Raises SystemExit where the folder has none."""
    files = {rate: sorted(folder.glob(f"*_{rate}k.flac")) for rate in (8, 16)}
    far = {rate: [f for f in found if "far" in f.name] or found for rate, found in files.items()}
    if not far[8] and not far[16]:
        raise SystemExit(f"no speech in {folder}")
    seconds, most = (14, 1) if quick else (30, 3)

    def said(found: list[Path], rate: int) -> list[np.ndarray]:
        pcm = [resampled(*read(file), rate) for file in found[:most]]
        return [np.resize(np.rint(one), seconds * rate).astype(np.int16) for one in pcm]

    return said(far[8] or far[16], 8_000), said(far[16] or far[8], 16_000)


def main() -> None:
    options = arguments(__doc__, speech=True)
    report, quick = Report("media_quality", options), options.quick
    narrow, wide = voices(options.speech, quick)
    for burst in (1.0,) if quick else (1.0, 3.0):
        for loss in (0.0, 0.05) if quick else LOSSES:
            case = Case(loss, burst)
            g711_row(report, narrow, case)
            g722_row(report, wide, case)
            opus_row(report, wide, case)
    for ppm in (0.0, 200.0, -200.0):
        exact_minutes(report, 60 if quick else 600, ppm)
    opus = [row for row in report.rows if row["codec"] == "Opus"]
    ratio = np.mean([row["pesq_plc"] / row["pesq_libopus_plc"] for row in opus])
    with_fec = np.mean([row["pesq_fec"] / row["pesq_libopus_fec"] for row in opus])
    report.finish(plc_to_libopus=round(float(ratio), 3), fec_to_libopus=round(float(with_fec), 3))


if __name__ == "__main__":
    main()
