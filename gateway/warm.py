"""`python -m gateway.warm`: compile what numba compiles, so that the first gateway starts from the cache."""

from __future__ import annotations

from gateway.media import compiled_io, linked, srtp_rows
from gateway.media.processing import DuplexProcessing


def warm() -> None:
    """Half a minute the first time, a second later. Without numba it has nothing to do."""
    linked.steps(True)
    compiled_io.functions()
    srtp_rows.loops()
    DuplexProcessing(1).warm()


if __name__ == "__main__":
    warm()
