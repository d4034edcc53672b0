"""PrefixCache: prompts that were run once and are shared, page by page, by all calls of their persona.

Full pages are shared by reference; the last, partly filled one is copied for each call, because the call
goes on writing in it. Keys are stored rotated for their position and every prompt starts at frame 0, so a
shared page means the same to everyone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from engine.api import Persona
from engine.kv import PAGE, OutOfPages, PagedCache
from engine.model.transformer import Pool
from engine.prompt import Prompt

LIMIT = 64
"""Prompts kept at most; the least recently used go first, also when pages run out."""

Key = tuple[str | None, str | None]


def prompt_key(persona: Persona) -> Key | None:
    """What of a persona makes its prompt; None where it has none."""
    text = (persona.text_prompt or "").strip() or None
    return None if persona.voice is None and text is None else (persona.voice, text)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt's pages, as (number in the call, page of the pool)."""

    prompt: Prompt
    pages: tuple[tuple[int, int], ...]


class PrefixCache:
    def __init__(self, cache: PagedCache, pool: Pool) -> None:
        self._cache, self._pool = cache, pool
        self._prefixes: OrderedDict[Key, Prefix] = OrderedDict()

    def get(self, key: Key) -> Prefix | None:
        prefix = self._prefixes.get(key)
        if prefix is not None:
            self._prefixes.move_to_end(key)
        return prefix

    def own_pages(self, prefix: Prefix) -> int:
        """Pages a call takes for itself when it adopts the prefix."""
        return 1 if prefix.prompt.frames % PAGE else 0

    def store(self, key: Key, slot: int, prompt: Prompt) -> None:
        """Keep what a slot has just prefilled. Does nothing while there is no page for the copy."""
        pages = self._cache.pages_of(slot)
        try:
            kept = self._share(pages, prompt.frames)
        except OutOfPages:
            return
        self._prefixes[key] = Prefix(prompt, kept)
        while len(self._prefixes) > LIMIT:
            self.evict()

    def adopt(self, slot: int, prefix: Prefix) -> None:
        """Start a cleared slot behind the prompt. Raises OutOfPages."""
        pages = self._share(list(prefix.pages), prefix.prompt.frames)
        self._cache.install(slot, list(pages), prefix.prompt.frames)

    def evict(self) -> bool:
        """Give back the pages of the least recently used prompt; False where there is none."""
        if not self._prefixes:
            return False
        _, prefix = self._prefixes.popitem(last=False)
        for _, page in prefix.pages:
            self._cache.give_back(page)
        return True

    def _share(self, pages: list[tuple[int, int]], frames: int) -> tuple[tuple[int, int], ...]:
        partial = frames % PAGE != 0
        copy = self._cache.take(1)[0] if partial else 0
        shared = pages[:-1] if partial else pages
        for _, page in shared:
            self._cache.borrow(page)
        if not partial:
            return tuple(shared)
        number, page = pages[-1]
        self._pool.copy(page, copy)
        return (*shared, (number, copy))
