"""G.711 tables against the standard's own values and against their inverse."""

import numpy as np
import pytest

from gateway.media import g711, packing


@pytest.mark.parametrize(
    ("law", "code", "value"),
    [
        (0, 0x00, -32124), (0, 0x80, 32124), (0, 0xFF, 0), (0, 0x7F, 0), (0, 0xFE, 8), (0, 0x0F, -16764),
        (1, 0x55, -8), (1, 0xD5, 8), (1, 0x2A, -32256), (1, 0xAA, 32256), (1, 0x54, -24), (1, 0x80, 5504),
    ],
)  # fmt: skip
def test_code_words_have_the_standards_values(law: int, code: int, value: int) -> None:
    assert g711.DECODE[law][code] == value


@pytest.mark.parametrize("law", [0, 1])
def test_encoding_takes_the_nearest_code_word(law: int) -> None:
    samples = np.arange(-32768, 32768, dtype=np.int32)
    decoded = g711.decode(g711.encode(samples.astype(np.int16), law), law).astype(np.int32)
    nearest = np.abs(samples[:, None] - np.unique(g711.DECODE[law]).astype(np.int32)[None]).min(axis=1)
    np.testing.assert_array_equal(np.abs(decoded - samples), nearest)


@pytest.mark.parametrize("law", [0, 1])
def test_every_code_word_survives_decoding_and_encoding(law: int) -> None:
    codes = np.arange(256, dtype=np.uint8)
    again = g711.encode(g711.decode(codes, law), law)
    np.testing.assert_array_equal(g711.DECODE[law][again], g711.DECODE[law][codes])


def test_silence_is_the_byte_that_telephones_send() -> None:
    silence = np.zeros(4, np.int16)
    assert bytes(g711.encode(silence, 0)) == b"\xff" * 4
    assert bytes(g711.encode(silence, 1)) in (b"\xd5" * 4, b"\x55" * 4)


@pytest.mark.parametrize("law", [0, 1])
def test_blocks_become_packets_as_the_tables_say_compiled_or_not(law: int) -> None:
    rng, table, rows = np.random.default_rng(4), g711.encode_table(law), np.array([4, 0, 3])
    sides = [packing.packets(5, 400) for _ in "ab"]
    for side in sides:
        side.sequence[:], side.origin[:], side.clock[:] = 65_530, (1 << 32) - 300, 8_000
        side.ptime[3] = 2
        side.sends[[3, 4]] = True
    for tick in range(12):
        pcm = rng.uniform(-1.2, 1.2, (3, 160)).astype(np.float32)
        pcm[0, :8] = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 32_767.5, -32_768.5, 0.0])  # halves, limits
        pcm[0, :8] /= 32_768
        whole = np.zeros((2, 3), np.bool_)
        packing.pack(rows, pcm, table, sides[0], tick, whole[0])
        packing.pack.twin(rows, pcm, table, sides[1], tick, whole[1])
        for ours, twin in zip((whole[0], *sides[0]), (whole[1], *sides[1]), strict=True):
            np.testing.assert_array_equal(ours, twin)
        for k, begins in enumerate((12, 12, 172 if tick % 2 else 12)):
            written = sides[0].data[rows[k], begins : begins + 160]
            np.testing.assert_array_equal(written, g711.encode(g711.to_int16(pcm[k]), law))
        assert whole[0].tolist() == [True, True, tick % 2 == 1]
        assert sides[0].octets[3] == (320 if tick else 0)
    first = sides[0].data[4]
    assert int.from_bytes(first[2:4], "big") == (65_530 + 12) & 0xFFFF
    assert sides[0].sequence[[0, 3]].tolist() == [65_530, 65_530 + 6], "what is not sent has no number"
    assert int.from_bytes(first[4:8], "big") == ((1 << 32) - 300 + 11 * 160) & 0xFFFF_FFFF
