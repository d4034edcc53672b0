"""MediaProcess: the gateway's end of one media process: its life, what it is asked, what it tells.

It belongs to one event loop and decides nothing about calls: whoever owns it is told when the process is
lost and starts another.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol

from gateway.media.pipe import Pipe
from gateway.media.served import Hello, Packet, Ready, Told
from gateway.media.shared import PULSE, SharedMedia

log = logging.getLogger(__name__)

STARTING_S = 600.0
"""How long a process may take until it ticks: the first one ever compiles, for half a minute of a processor
of which a busy machine may give it a tenth."""
LONG_S = 10.0
"""After which the log says that it takes long, and why."""
LEAVING_S = 2.0
MOST_PACKETS = 256
"""Packets that may wait for a process that stands still; more are dropped."""
STUCK_LOOKS = 4
"""Looks without a new tick after which a process is taken for hung."""
_RUN = "from gateway.media.served import main; main({fd})"


class Child(Protocol):
    """What subprocess.Popen is to us."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def kill(self) -> None: ...


Spawn = Callable[[socket.socket], Child]


class ProcessOwner(Protocol):
    def told(self, process: MediaProcess, told: Told) -> None: ...

    def lost(self, process: MediaProcess, why: str) -> None:
        """It is gone, with all its calls. Not said of a process that was asked to stop."""
        ...


class MediaProcess:
    """One media process."""

    def __init__(
        self, owner: ProcessOwner, memory: SharedMedia, hello: Hello, spawn: Spawn | None = None
    ) -> None:
        """`spawn` starts what serves the other end of the pipe; a fresh interpreter unless given."""
        self.index = hello.index
        self.up = False
        """It ticks."""
        self.dropped = 0
        """Packets it never got because it stood still."""
        self._owner, self._memory, self._hello = owner, memory, hello
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._pulse, self._still = 0.0, 0
        self._waits = self._flushing = self._closed = False
        ours, theirs = Pipe.pair()
        self._pipe = Pipe(ours)
        self._child = (spawn or spawn_interpreter)(theirs)
        theirs.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    async def start(self) -> None:
        """Return once it ticks. Raises OSError when it ends or hangs instead."""
        self._memory.health[self.index] = 0.0
        self._pipe.put(self._hello, io.FileIO(os.dup(self._memory.fd)))
        self._loop.add_reader(self._pipe.fileno(), self._readable)
        self._flush()
        telling = self._loop.call_later(
            LONG_S, log.info, "the media process is still starting: the first one ever compiles its loops"
        )
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), STARTING_S)
        except TimeoutError:
            self.kill()
            raise OSError(f"did not start within {STARTING_S:.0f} s") from None
        finally:
            telling.cancel()

    def ask(self, command: object, file: socket.socket | None = None) -> None:
        """Have it apply a command at its next tick, with a socket that is its own from now on."""
        self._pipe.put(command, file)
        self._flush()

    def deliver(self, packet: Packet) -> None:
        """A packet of a browser; sent with the others that came in the same turn of the loop."""
        if self._pipe.waiting >= MOST_PACKETS:
            self.dropped += 1
            return
        self._pipe.put(packet)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def look(self) -> None:
        """Called every half second: a process that does not tick any more is killed."""
        pulse = float(self._memory.health[self.index, PULSE])
        self._still = self._still + 1 if self.up and pulse == self._pulse else 0
        self._pulse = pulse
        if self._still >= STUCK_LOOKS:
            log.error("media process %d stands still; it is killed", self.pid)
            self.kill()

    def kill(self) -> None:
        """End it at once; the owner hears of it when it is gone."""
        if self._child.poll() is None:
            self._child.kill()

    async def stop(self) -> None:
        """Close its calls' sockets and wait until it is gone. Idempotent."""
        self._close()
        try:
            await asyncio.wait_for(asyncio.to_thread(self._child.wait), LEAVING_S)
        except TimeoutError:
            self.kill()
            await asyncio.to_thread(self._child.wait)

    def _readable(self) -> None:
        try:
            items = self._pipe.take()
        except EOFError:
            self._gone()
            return
        for item in items:
            if isinstance(item.thing, Told):
                self._owner.told(self, item.thing)
            elif isinstance(item.thing, Ready):
                self.up = True
                if not self._ready.done():
                    self._ready.set_result(None)

    def _flush(self) -> None:
        self._flushing = False
        if self._closed:
            return
        try:
            sent = self._pipe.flush()
        except EOFError:
            return  # the reader sees it too, after what was told before the end
        if sent and self._waits:
            self._loop.remove_writer(self._pipe.fileno())
        elif not sent and not self._waits:
            self._loop.add_writer(self._pipe.fileno(), self._flush)
        self._waits = not sent

    def _gone(self) -> None:
        self._close()
        self.kill()
        code = self._child.wait()
        why = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
        if not self._ready.done():
            self._ready.set_exception(OSError(why))
            return
        self._owner.lost(self, why)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed, self.up = True, False
        self._loop.remove_reader(self._pipe.fileno())
        self._loop.remove_writer(self._pipe.fileno())
        self._pipe.close()


def spawn_interpreter(end: socket.socket) -> subprocess.Popen[bytes]:
    """A fresh interpreter that sees the same modules as this one, whatever folder it was started in.

    Its matrix products run on its one thread: handed to others, they wait for those to be scheduled, tick by
    tick, and take their processor time from the engine.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        [sys.executable, "-c", _RUN.format(fd=end.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[end.fileno()],
        env=environment,
    )
