"""Ogg pages around Opus packets: one continuous stream out, any stream in. Sans-IO.

Source: RFC 3533 (pages), RFC 7845 (Opus in Ogg). What we write is what Kyutai's web page and servers
write on `/api/chat`: serial 42, vendor KyutaiMoshi, one packet a page, no end of stream.
"""

from __future__ import annotations

import struct
import zlib

from engine.opus import MAX_PACKET, packet_samples

_MAGIC = b"OggS"
_HEADER = struct.Struct("<4sBBqIIIB")  # magic, version, flags, granule, serial, sequence, crc, segments
_CRC_AT = 22
_CONTINUED, _BEGIN = 1, 2
_MAX_OPUS = 48 * MAX_PACKET
"""Bytes of a packet with the most frames there may be (RFC 6716 §3.2.5: 120 ms of 2.5 ms)."""
_MAX_TRIES = 64
"""False beginnings of a page after which the bytes at hand are given up: a peer pays for his own noise."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

OPUS_HEAD = b"OpusHead" + struct.pack("<BBHIHB", 1, 1, 0x0F00, 48_000, 0, 0)
OPUS_TAGS = b"OpusTags" + struct.pack("<I", 11) + b"KyutaiMoshi" + struct.pack("<I", 0)


def page_crc(page: bytes) -> int:
    """CRC-32 of a page whose CRC field is 0 (RFC 3533 §6: polynomial 04c11db7, no reflection).

    zlib's CRC is the same polynomial bit-reversed: reverse the bytes in, and the result out.
    """
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "big").translate(_REVERSED), "little")


class OggWriter:
    """Opus packets in, pages out; the two header pages ride in front of the first packet."""

    def __init__(self, serial: int = 42) -> None:
        self._serial = serial
        self._sequence = 0
        self._granule = 0

    def write(self, packet: bytes) -> bytes:
        """The page of one packet of at most 1,275 bytes. Raises OpusError for what is no packet."""
        samples = packet_samples(packet, 48_000)
        headers = b"" if self._sequence else self._page(OPUS_HEAD, _BEGIN) + self._page(OPUS_TAGS, 0)
        self._granule += samples
        return headers + self._page(packet, 0)

    def _page(self, packet: bytes, flags: int) -> bytes:
        lacing = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
        head = (_MAGIC, 0, flags, self._granule, self._serial, self._sequence)
        body = lacing + packet
        self._sequence += 1
        crc = page_crc(_HEADER.pack(*head, 0, len(lacing)) + body)
        return _HEADER.pack(*head, crc, len(lacing)) + body


class OggReader:
    """Pages in, in pieces of any length; Opus packets out.

    Header packets may be missing or come again and are left out. A bad page is counted in `bad_pages`
    and skipped to the next `OggS`; granule positions and the pre-skip are ignored, as Kyutai does.
    """

    def __init__(self) -> None:
        self.bad_pages = 0
        self._bytes = bytearray()
        self._partial: bytearray | None = None
        """The packet that goes on in the next page, or None."""

    def receive(self, data: bytes) -> list[bytes]:
        """All packets that are complete now."""
        self._bytes += data
        packets: list[bytes] = []
        while (page := self._next_page()) is not None:
            packets += self._packets(page)
        return packets

    def _next_page(self) -> bytes | None:
        """The next whole page with the right CRC, or None when more bytes are needed."""
        start = self._bytes.find(_MAGIC)
        for _ in range(_MAX_TRIES):
            if start < 0:
                self._skip(self._first_hope())
                return None
            page = self._page_at(start)
            if page is not None:
                self._skip(start)
                del self._bytes[: len(page)]
                return page
            # What does not end here may be a torn page whose length lies: a whole one behind it wins.
            start = self._bytes.find(_MAGIC, start + 1)
        self._skip(len(self._bytes))
        return None

    def _page_at(self, start: int) -> bytes | None:
        end = self._page_end(start)
        if end is None or end > len(self._bytes):
            return None
        page = bytes(self._bytes[start:end])
        return page if self._crc_holds(page) else None

    def _page_end(self, start: int) -> int | None:
        """Where the page at start would end; None while its lacing is not here."""
        body = start + _HEADER.size
        if len(self._bytes) < body:
            return None
        lacing = self._bytes[body : body + self._bytes[body - 1]]
        if len(lacing) < self._bytes[body - 1]:
            return None
        return body + len(lacing) + sum(lacing)

    def _first_hope(self) -> int:
        """The first place where a page may still be on its way."""
        start = self._bytes.find(_MAGIC)
        while start >= 0:
            end = self._page_end(start)
            version = self._bytes[start + 4 : start + 5]
            if (end is None or end > len(self._bytes)) and not version.strip(b"\0"):
                return start
            start = self._bytes.find(_MAGIC, start + 1)
        # The last three bytes may be the beginning of the magic.
        tail = (n for n in (3, 2, 1) if self._bytes.endswith(_MAGIC[:n]))
        return len(self._bytes) - next(tail, 0)

    def _skip(self, count: int) -> None:
        if count:
            self.bad_pages += 1
            self._partial = None
            del self._bytes[:count]

    @staticmethod
    def _crc_holds(page: bytes) -> bool:
        stated = int.from_bytes(page[_CRC_AT : _CRC_AT + 4], "little")
        return page[4] == 0 and page_crc(page[:_CRC_AT] + bytes(4) + page[_CRC_AT + 4 :]) == stated

    def _packets(self, page: bytes) -> list[bytes]:
        """Packets that end in this page; the last may go on in the next."""
        segments = page[_HEADER.size - 1]
        at = _HEADER.size + segments
        if not page[5] & _CONTINUED:
            self._partial = None
        orphan = bool(page[5] & _CONTINUED) and self._partial is None
        packet = self._partial or bytearray()
        packets: list[bytes] = []
        for size in page[_HEADER.size : _HEADER.size + segments]:
            packet += page[at : at + size]
            at += size
            if size < 255:
                if not orphan and _is_audio(packet):
                    packets.append(bytes(packet))
                packet, orphan = bytearray(), False
        goes_on = segments and page[_HEADER.size + segments - 1] == 255
        self._partial = packet if goes_on and not orphan and len(packet) <= _MAX_OPUS else None
        return packets


def _is_audio(packet: bytearray) -> bool:
    return 0 < len(packet) <= _MAX_OPUS and not packet.startswith((b"OpusHead", b"OpusTags"))
