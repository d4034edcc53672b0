"""Keys for SRTP in SDP: a=crypto lines (RFC 4568, RFC 7714). Parsing and writing; no packet here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field

KEY_BYTES = {
    "AES_CM_128_HMAC_SHA1_80": 30,
    "AES_CM_128_HMAC_SHA1_32": 30,
    "AEAD_AES_128_GCM": 28,
    "AEAD_AES_256_GCM": 44,
}
"""Suites we speak, in the order we offer them, and the length of master key and salt together."""
_LINE = re.compile(r"(\d{1,9})\s+(\S+)\s+(\S+)(?:\s+(\S.*))?\Z")
_HARMLESS = re.compile(r"WSH=\d+\Z|-")


@dataclass(frozen=True, slots=True)
class SrtpKeys:
    """The two keys of one SDES exchange (RFC 4568): master key followed by master salt."""

    suite: str
    """Such as AES_CM_128_HMAC_SHA1_80."""
    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CryptoLine:
    tag: int
    suite: str
    key: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.tag} {self.suite} inline:{base64.b64encode(self.key).decode()}"


def parse_crypto(value: str) -> CryptoLine | None:
    """The value of one a=crypto; None for a suite, key method, MKI or parameter that we do not take,
    which RFC 4568 §5.1.2 has us skip."""
    match = _LINE.match(value)
    if match is None:
        return None
    tag, suite, keys, parameters = match.groups()
    wanted = KEY_BYTES.get(suite)
    if wanted is None or ";" in keys or not keys.lower().startswith("inline:"):
        return None
    if parameters and not all(_HARMLESS.match(word) for word in parameters.split()):
        return None
    encoded, *rest = keys[7:].split("|")
    if any(":" in part for part in rest):
        return None  # a master key identifier: libsrtp's policy here has none
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return CryptoLine(int(tag), suite, key) if len(key) == wanted else None


def own_key(seed: bytes, suite: str) -> bytes:
    """Our master key and salt for a suite: one seed a call gives each suite a key of its own, and the
    same key again when the call is negotiated anew."""
    return hmac.new(seed, suite.encode(), hashlib.sha512).digest()[: KEY_BYTES[suite]]


def offer_lines(seed: bytes) -> list[CryptoLine]:
    """One line a suite, tags from 1."""
    return [CryptoLine(at, suite, own_key(seed, suite)) for at, suite in enumerate(KEY_BYTES, 1)]


def choose(values: list[str]) -> CryptoLine | None:
    """The offerer's first line that we can take."""
    return next((line for line in map(parse_crypto, values) if line is not None), None)
