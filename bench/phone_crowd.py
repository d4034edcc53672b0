"""Many phones for the load bench, in a process of their own: SIP calls to one user agent, then from each a
packet every 20 ms: of a quiet line (`quiet`), or of somebody who speaks half of the time (`speech`).

    python bench/phone_crowd.py SIP_PORT CALLS SECONDS SRTP(0|1) quiet|speech

Prints `talking` once all calls stand, then one JSON line: packets expected and heard, and by how much the
peer's packets came after the 20 ms grid of the monotonic clock by the kernel's stamps (milliseconds).
"""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.media.srtp_rows import ROOM, SrtpRows
from gateway.media.udp_wire import UdpWire
from sip.sdes import SrtpKeys
from sip.srtp import SrtpContext
from tests.audio import steady_noise
from tests.phone import HEADER, speech
from tests.rtp_caller import PACKET, PCMU_OFFER, RtpCaller, to_mulaw

TICK_S = 0.02
PHASE_S = 0.010
"""The phones speak between two ticks of the gateway."""
SUITE = "AES_CM_128_HMAC_SHA1_80"
KEY = bytes(range(30))
CRYPTO = f"a=crypto:1 {SUITE} inline:{base64.b64encode(KEY).decode()}\r\n"
SETTLE_S = 2.0
QUIET_DBFS = -66.0
SPEECH = "ast_en_far_8k"
TURN = 200
"""Packets of speech, and of the pause after it."""


def call(port: int, count: int, secure: bool) -> list[RtpCaller]:
    """So many calls that stand. Raises AssertionError when one is refused."""
    phones = []
    for _ in range(count):
        phone = RtpCaller(port)
        offer = (PCMU_OFFER + CRYPTO, "RTP/SAVP") if secure else (PCMU_OFFER, "RTP/AVP")
        answer = phone.invite("0", *offer)
        assert answer.startswith("SIP/2.0 200"), answer
        phones.append(phone)
    return phones


def packets_of(sound: str) -> np.ndarray:
    """(n, 160) µ-law."""
    line = steady_noise(8.0, 8_000, QUIET_DBFS)
    if sound == "speech":
        turns = (speech(SPEECH) / 32_768)[: 10 * TURN * PACKET].reshape(-1, TURN * PACKET)
        line = np.concatenate([np.stack([turn, np.resize(line, len(turn))]).reshape(-1) for turn in turns])
    return np.frombuffer(to_mulaw(line), np.uint8).reshape(-1, PACKET)


class Crowd:
    """The phones' audio, in arrays."""

    def __init__(self, phones: list[RtpCaller], secure: bool, sound: str) -> None:
        self.count = len(phones)
        self.wire = UdpWire(self.count)
        for row, phone in enumerate(phones):
            assert phone.media is not None
            self.wire.open(row, phone.rtp)
            self.wire.connect(row, phone.media)
        self.rows = np.arange(self.count)
        self.data = np.zeros((self.count, HEADER.size + PACKET + ROOM), np.uint8)
        self.sound = packets_of(sound)
        self.offsets = 37 * self.rows  # so that not all speak at once
        self.head = np.zeros((self.count, HEADER.size), np.uint8)
        self.head[:, 0] = 0x80
        self.head[:, 8:12] = (0x1000 + self.rows).astype(">u4").view(np.uint8).reshape(-1, 4)
        self.srtp = SrtpRows(self.count)
        for row in self.rows.tolist() if secure else ():
            self.srtp.set(row, SrtpContext(SrtpKeys(SUITE, KEY, bytes(30))))

    def say(self, tick: int) -> None:
        """The next packet of everyone."""
        self.head[:, 2:4] = np.array([tick & 0xFFFF], ">u2").view(np.uint8)
        self.head[:, 4:8] = np.array([tick * PACKET & 0xFFFF_FFFF], ">u4").view(np.uint8)
        self.data[:, : HEADER.size] = self.head
        said = self.sound[(tick + self.offsets) % len(self.sound)]
        self.data[:, HEADER.size : HEADER.size + PACKET] = said
        sizes = np.full(self.count, HEADER.size + PACKET)
        if len(self.srtp):
            sizes = self.srtp.protect(self.rows, self.data, sizes)
        self.wire.send_rows(self.rows, self.data, sizes)

    def listen(self) -> np.ndarray:
        """When the audio packets came that came since the last time, in seconds after the 20 ms grid."""
        came = self.wire.receive(0.0)
        kinds = came.data[:, 1] & 0x7F if len(came.rows) else np.zeros(0, np.uint8)
        return came.arrivals[(kinds < 64) | (kinds > 95)] % TICK_S


def main() -> None:
    port, count, seconds, secure = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1"
    phones = call(port, count, secure)
    crowd = Crowd(phones, secure, sys.argv[5])
    late: list[np.ndarray] = []
    tick = int(time.monotonic() / TICK_S) + 2
    first = tick + int(SETTLE_S / TICK_S)
    end = first + int(seconds / TICK_S)
    while tick < end:
        if tick == first:
            print("talking", flush=True)
        time.sleep(max(0.0, tick * TICK_S + PHASE_S - time.monotonic()))
        crowd.say(tick)
        came = crowd.listen()
        if tick >= first:
            late.append(came)
        tick += 1
    for phone in phones:
        phone._request("BYE", phone.contact)
    ms = 1_000 * np.concatenate(late)
    ms = np.where(ms > 19.5, ms - 20, ms)  # just before the grid is as good as on it
    figures = {f"p{p}": round(float(np.percentile(ms, p)), 3) for p in (50, 99, 100)}
    print(json.dumps({"expected": (end - first) * count, "heard": len(ms), **figures}), flush=True)


if __name__ == "__main__":
    main()
