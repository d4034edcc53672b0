"""`python -m gateway.warm`: compile what numba compiles, so that the first gateway starts from the cache."""

from __future__ import annotations

from importlib.util import find_spec

from engine.local import LocalOptions, load_runner
from gateway.engines import tiny_folder
from gateway.media import compiled_io, linked, srtp_rows
from gateway.media.processing import DuplexProcessing


def warm() -> None:
    """Half a minute the first time, a few seconds later. Without numba it has nothing to do."""
    linked.steps(True)
    compiled_io.functions()
    srtp_rows.loops()
    DuplexProcessing(1).warm()
    _warm_engine()


def _warm_engine() -> None:
    """A few ticks of the embedded model: whoever has no GPU begins with it."""
    folder = tiny_folder()
    if folder is not None and find_spec("torch") is not None:
        load_runner(LocalOptions(str(folder), slots=1, device="cpu"), lambda _: None)


if __name__ == "__main__":
    warm()
