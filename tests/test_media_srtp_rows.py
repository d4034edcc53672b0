"""SRTP over many rows: the compiled loop and the plain one give equal octets and equal judgements."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.media.srtp_rows import BAD, ROOM, SrtpRows, loops
from sip.sdes import SrtpKeys
from sip.srtp import SrtpContext
from tests.phone import HEADER

SUITES = {"AES_CM_128_HMAC_SHA1_80": 30, "AES_CM_128_HMAC_SHA1_32": 30, "AEAD_AES_128_GCM": 28}
COUNT, PAYLOAD = 6, 160
ROWS = np.array([0, 2, 5])
REPORT = bytes([0x80, 200, 0, 6]) + (7).to_bytes(4, "big") + bytes(20)


def both(compiled: bool, suite: str = "AES_CM_128_HMAC_SHA1_80") -> tuple[SrtpRows, SrtpRows]:
    """Us and the peers: three of six rows are encrypted."""
    ours, theirs = SrtpRows(COUNT, compiled), SrtpRows(COUNT, compiled)
    for row in ROWS.tolist():
        a, b = (bytes([row + k]) * SUITES[suite] for k in (1, 100))
        ours.set(row, SrtpContext(SrtpKeys(suite, a, b)))
        theirs.set(row, SrtpContext(SrtpKeys(suite, b, a)))
    return ours, theirs


def packets(sequence: int) -> tuple[np.ndarray, np.ndarray]:
    """(COUNT, …) RTP packets of noise, and their sizes."""
    data = np.random.default_rng(sequence).integers(0, 256, (COUNT, HEADER.size + PAYLOAD + ROOM))
    data = data.astype(np.uint8)
    for row in range(COUNT):
        head = HEADER.pack(0x80, 0, sequence, sequence * 160, 0x1000 + row)
        data[row, : HEADER.size] = np.frombuffer(head, np.uint8)
    return data, np.full(COUNT, HEADER.size + PAYLOAD)


def octets(data: np.ndarray, sizes: np.ndarray) -> list[bytes]:
    return [data[k, :size].tobytes() for k, size in enumerate(sizes.tolist())]


def test_numba_reaches_libsrtp() -> None:
    assert loops() is not None


@pytest.mark.parametrize("suite", SUITES)
def test_compiled_and_plain_packets_are_the_same_octets(suite: str) -> None:
    fast, plain = both(True, suite)[0], both(False, suite)[0]
    for sequence in range(5):
        (one, sizes), (two, _) = packets(sequence), packets(sequence)
        clear = one.copy()
        made = fast.protect(ROWS, one, sizes[ROWS])
        assert made.tolist() == plain.protect(ROWS, two, sizes[ROWS]).tolist()
        assert (made > sizes[ROWS]).all()
        assert octets(one[ROWS], made) == octets(two[ROWS], made)
        assert (one[1] == clear[1]).all() and (one[0, 12:80] != clear[0, 12:80]).any()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("suite", SUITES)
def test_what_we_encrypt_the_peer_reads_and_clear_rows_are_left_alone(suite: str, compiled: bool) -> None:
    ours, theirs = both(compiled, suite)
    data, sizes = packets(3)
    clear = data.copy()
    lengths = sizes.copy()
    lengths[ROWS] = ours.protect(ROWS, data, sizes[ROWS])
    assert theirs.unprotect(np.arange(COUNT), data, lengths).tolist() == sizes.tolist()
    assert octets(data, sizes) == octets(clear, sizes)


@pytest.mark.parametrize("compiled", [True, False])
def test_what_was_changed_repeated_cut_or_made_up_is_not_authentic(compiled: bool) -> None:
    ours, theirs = both(compiled)
    data, sizes = packets(9)
    lengths = ours.protect(ROWS, data, sizes[ROWS])
    wire = data[ROWS]
    changed = wire.copy()
    changed[:, 40] ^= 1
    assert theirs.unprotect(ROWS, changed, lengths).tolist() == [BAD] * 3
    for size in range(20):
        assert theirs.unprotect(ROWS, wire.copy(), np.full(3, size)).tolist() == [BAD] * 3
    assert theirs.unprotect(ROWS, wire.copy(), lengths).tolist() == sizes[ROWS].tolist()
    assert theirs.unprotect(ROWS, wire.copy(), lengths).tolist() == [BAD] * 3, "a replay"
    rng = np.random.default_rng(1)
    for _ in range(300):
        noise, size = rng.integers(0, 256, (3, 200)).astype(np.uint8), rng.integers(0, 200, 3)
        assert theirs.unprotect(ROWS, noise, size).tolist() == [BAD] * 3


@pytest.mark.parametrize("compiled", [True, False])
def test_reports_are_read_beside_audio(compiled: bool) -> None:
    ours, theirs = both(compiled)
    data = np.zeros((1, 300), np.uint8)
    made = ours[2].protect_rtcp(REPORT)
    data[0, : len(made)] = np.frombuffer(made, np.uint8)
    assert theirs.unprotect(np.array([2]), data, np.array([len(made)])).tolist() == [len(REPORT)]
    assert data[0, : len(REPORT)].tobytes() == REPORT


def test_a_row_that_lost_its_keys_is_in_the_clear_again() -> None:
    ours, _ = both(True)
    ours.set(2, None)
    data, sizes = packets(1)
    assert not ours.encrypted[2] and len(ours) == 2
    assert ours.unprotect(np.array([2]), data, sizes[:1]).tolist() == [sizes[0]]
