"""SRTP and SRTCP for one call, by libsrtp (RFC 3711, RFC 7714), keyed from SDES (sip.sdes)."""

from __future__ import annotations

from typing import Any, NamedTuple

import pylibsrtp

from sip.errors import PeerError
from sip.sdes import SrtpKeys

_PROFILES = {
    "AES_CM_128_HMAC_SHA1_80": pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
    "AES_CM_128_HMAC_SHA1_32": pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_32,
    "AEAD_AES_128_GCM": pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    "AEAD_AES_256_GCM": pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
}
REPLAY_WINDOW = 1_024
"""Packets; anything older, or seen before, is refused."""


class BadSrtp(PeerError):
    """A packet that is not authentic, is a replay, or is none."""


class SrtpContext:
    """Both directions of one call. Not for two threads at once."""

    def __init__(self, keys: SrtpKeys, before: SrtpContext | None = None) -> None:
        """`before` is the same call's until now: a direction that keeps its key counts on in it. Begun anew,
        it would use a keystream twice, and a peer who counts on could not read it (RFC 3711 §3.3.1).

        Raises pylibsrtp.Error where libsrtp lacks the suite.
        """
        self.keys = keys
        alike = before if before is not None and before.keys.suite == keys.suite else None
        out = pylibsrtp.Policy.SSRC_ANY_OUTBOUND
        into = pylibsrtp.Policy.SSRC_ANY_INBOUND
        self._out: pylibsrtp.Session
        self._in: pylibsrtp.Session
        keeps = alike is not None and alike.keys.send == keys.send
        self._out = alike._out if alike and keeps else _session(keys.suite, keys.send, out)
        keeps = alike is not None and alike.keys.receive == keys.receive
        self._in = alike._in if alike and keeps else _session(keys.suite, keys.receive, into)

    @property
    def handles(self) -> tuple[int, int]:
        """Addresses of libsrtp's sessions, out and in, for functions(); good while this object lives."""
        return _address(self._out), _address(self._in)

    def protect(self, packet: bytes) -> bytes:
        """Encrypt an RTP packet of ours."""
        return bytes(self._out.protect(packet))

    def protect_rtcp(self, packet: bytes) -> bytes:
        return bytes(self._out.protect_rtcp(packet))

    def unprotect(self, packet: bytes) -> bytes:
        """Decrypt an RTP packet of the peer's. Raises BadSrtp."""
        try:
            return bytes(self._in.unprotect(packet))
        except (pylibsrtp.Error, TypeError, ValueError) as error:
            raise BadSrtp(str(error)) from None

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """Raises BadSrtp."""
        try:
            return bytes(self._in.unprotect_rtcp(packet))
        except (pylibsrtp.Error, TypeError, ValueError) as error:
            raise BadSrtp(str(error)) from None


def _session(suite: str, key: bytes, kind: int) -> pylibsrtp.Session:
    policy = pylibsrtp.Policy(key, kind, srtp_profile=_PROFILES[suite])
    policy.window_size = REPLAY_WINDOW
    return pylibsrtp.Session(policy)


class Functions(NamedTuple):
    """Addresses of libsrtp's `int f(srtp_t session, void *packet, int *length)`."""

    srtp_protect: int
    srtp_unprotect: int
    srtp_unprotect_rtcp: int


def functions() -> Functions | None:
    """What compiled code may call; None where pylibsrtp is not built as it was up to 1.0."""
    try:
        from pylibsrtp._binding import ffi, lib

        found = [int(ffi.cast("intptr_t", ffi.addressof(lib, name))) for name in Functions._fields]
        _address(pylibsrtp.Session())
    except (ImportError, AttributeError, TypeError):
        return None
    return Functions(*found)


def _address(session: Any) -> int:
    from pylibsrtp._binding import ffi

    return int(ffi.cast("intptr_t", session._srtp[0]))
