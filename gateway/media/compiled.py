"""kernel: a loop compiled by numba where numba works, its numpy twin where it does not.

Compilation happens at the first call and is cached on disk. The twin gives equal output to rounding,
so nothing depends on the compiler but speed. MOSHI_NUMBA=0 turns it off.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Kernel = Callable[..., Any]


class kernel:
    """Calls `loop` compiled, or `twin` when numba is missing, switched off or cannot compile it."""

    def __init__(self, loop: Kernel, twin: Kernel) -> None:
        self.loop = loop
        self.twin = twin
        self._chosen: Kernel | None = None

    @property
    def chosen(self) -> bool:
        """Whether it has been called, so that the next call takes no time to compile."""
        return self._chosen is not None

    def __call__(self, *args: Any) -> Any:
        if self._chosen is None:
            self._chosen = _compile(self.loop) or self.twin
        return self._chosen(*args)


def _compile(loop: Kernel) -> Kernel | None:
    if os.environ.get("MOSHI_NUMBA", "1") == "0":
        return None
    os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_dir()))
    try:
        import numba
    except ImportError as error:
        log.warning(
            "numba is not usable (%s): the echo canceller takes several times the processor time", error
        )
        return None
    jitted: Kernel = numba.njit(fastmath=True, nogil=True, cache=True, error_model="numpy")(loop)
    return jitted


def _cache_dir() -> Path:
    """A folder this user can write: XDG_CACHE_HOME, ~/.cache, or one of our own under the temp folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "moshi-gateway" / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="moshi-gateway-numba-"))
