"""Where each key of a TOML text stands: `tomllib` parses but keeps no line numbers.

It expects text that tomllib has accepted, and reads only as much of the grammar as locating needs:
headers, keys, and where multi-line strings and arrays end. Keys of inline tables are not located; ask
for their parent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

Path = tuple[str | int, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")
_TOKEN = re.compile(r'"""|\'\'\'|"(?:[^"\\]|\\.)*"|\'[^\']*\'|#|[\[\]{}]')


def key_lines(text: str) -> dict[Path, int]:
    """Line (from 1) of every table header and key, by path; an array of tables counts from 0."""
    scan = _Scan()
    for number, line in enumerate(text.splitlines(), 1):
        scan.take(number, line)
    return scan.lines


def nearest_line(lines: dict[Path, int], path: Path) -> int | None:
    """The line of the path, or of its nearest parent that has one."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


@dataclass(slots=True)
class _Scan:
    lines: dict[Path, int] = field(default_factory=dict)
    table: Path = ()
    counts: dict[Path, int] = field(default_factory=dict)
    depth: int = 0
    """Open brackets of a value that goes on over lines."""
    quote: str = ""
    """The quotes that end the multi-line string we are in."""

    def take(self, number: int, line: str) -> None:
        if self.quote or self.depth:
            self._value(line)
            return
        if header := _HEADER.match(line):
            self._header(number, _parts(header[2]), array=header[1] == "[[")
        elif key := _KEY.match(line):
            self._note((*self.table, *_parts(key[1])), number)
            self._value(line[key.end() :])

    def _header(self, number: int, parts: tuple[str, ...], array: bool) -> None:
        path: Path = ()
        for at, part in enumerate(parts):
            path = (*path, part)
            last = at == len(parts) - 1
            if array and last:
                self.counts[path] = self.counts.get(path, -1) + 1
            if path in self.counts:
                self.lines.setdefault(path, number)
                path = (*path, self.counts[path])
        self.table = path
        self._note(path, number)

    def _note(self, path: Path, number: int) -> None:
        for end in range(1, len(path) + 1):
            self.lines.setdefault(path[:end], number)
        self.lines[path] = number

    def _value(self, rest: str) -> None:
        at = 0
        if self.quote:
            end = rest.find(self.quote)
            if end < 0:
                return
            at, self.quote = end + 3, ""
        while found := _TOKEN.search(rest, at):
            at = found.end()
            if found[0] == "#":
                return
            if found[0] in ('"""', "'''"):
                end = rest.find(found[0], at)
                if end < 0:
                    self.quote = found[0]
                    return
                at = end + 3
            elif found[0] in "[{":
                self.depth += 1
            elif found[0] in "]}":
                self.depth -= 1


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part[1:-1] if part[0] in "\"'" else part for part in re.findall(_PART, dotted))
