"""A call's passage out of the runner and back in, in loads of a few pages beside the ticks.

A page that no step and no rewind can write again is settled: those leave while the call goes on, and only the
last pages and the small states once it stands still. Coming in, a call has its pages from the first moment
and steps when the last of them is filled. Both go on by `advance`, called between two steps.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from torch import Tensor

from engine.shuttle import Cargo
from engine.snapshot import CallState, SlotSnapshot

if TYPE_CHECKING:
    from engine.runner import ModelRunner

_TOKENS = "tokens"


class Departure:
    """Out. `advance` until it says that one load is left; then keep the slot from stepping, and `finish`."""

    def __init__(self, runner: ModelRunner, slot: int) -> None:
        self._runner, self._slot = runner, slot
        self._landed: dict[int, Tensor] = {}
        self._sent: list[int] = []
        self._load: Future[Cargo] | None = None
        self._held: list[int] = []
        self._call: CallState | None = None

    def advance(self) -> bool:
        """Start the next load if none is under way. True: none is, and what is left is the last one."""
        if not self._runner.shuttle.collect():
            return False
        self._unload()
        left = self._left()
        settled = self._runner.settled_pages(self._slot)
        some = {number: page for number, page in left.items() if number < settled}
        if len(left) <= self._runner.shuttle.load or not some:
            return True
        self._send(dict(list(some.items())[: self._runner.shuttle.load]))
        return False

    def finish(self) -> None:
        """Start the last load, whatever its size. From now on the slot must not step or rewind."""
        self._runner.shuttle.wait()
        self._unload()
        self._call = self._runner.call_state(self._slot)
        self._held = [number for number, _ in self._runner.pages_of(self._slot)]
        self._send(self._left(), last=True)

    def snapshot(self) -> SlotSnapshot | None:
        """The whole, once the last load has landed."""
        if self._call is None or not self._runner.shuttle.collect():
            return None
        state = self._unload()
        return SlotSnapshot(
            model=self._runner.fingerprint,
            call=self._call,
            pages={number: self._landed[number] for number in self._held},
            tokens=state.pop(_TOKENS),
            codec=state,
        )

    def _left(self) -> dict[int, int]:
        """Number in the call -> page of the pool, oldest first, of those that are not on the host."""
        pages = self._runner.pages_of(self._slot)
        return {number: page for number, page in pages if number not in self._landed}

    def _send(self, pages: dict[int, int], last: bool = False) -> None:
        runner, slot = self._runner, self._slot
        self._sent = list(pages)
        self._load = runner.shuttle.out(
            list(pages.values()), lambda: runner.small_state(slot) if last else {}
        )

    def _unload(self) -> dict[str, Tensor]:
        if self._load is None:
            return {}
        cargo, self._load = self._load.result(), None
        self._landed.update(zip(self._sent, cargo.pages, strict=True))
        return cargo.state


class Arrival:
    """In. `advance` until it says that the call may step."""

    def __init__(self, runner: ModelRunner, slot: int, snapshot: SlotSnapshot) -> None:
        """For a slot that has its pages (ModelRunner.arrive)."""
        self._runner, self._slot, self._snapshot = runner, slot, snapshot
        self._waiting = dict(snapshot.pages)
        self._load: Future[Cargo] | None = None
        self._last = False

    def advance(self) -> bool:
        """Start the next load if none is under way. True: all is in, and the slot is ready."""
        if self._load is None:
            self._send_next()
        if not self._runner.shuttle.collect() or self._load is None:
            return False
        cargo, self._load = self._load.result(), None
        if self._last:
            tokens = cargo.state.pop(_TOKENS)
            self._runner.seat(self._slot, self._snapshot.call, tokens, cargo.state)
        return self._last

    def _send_next(self) -> None:
        if not self._runner.shuttle.collect():
            return
        # Under page pressure the oldest may have been let go meanwhile: they need not come.
        places = dict(self._runner.pages_of(self._slot))
        left = [number for number in self._waiting if number in places]
        some, self._last = left[: self._runner.shuttle.load], len(left) <= self._runner.shuttle.load
        state = {_TOKENS: self._snapshot.tokens, **self._snapshot.codec} if self._last else {}
        given = [self._waiting.pop(number) for number in some]
        self._load = self._runner.shuttle.into([places[number] for number in some], given, state)
