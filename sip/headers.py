"""Header fields: an ordered store that parses nothing until asked, and the grammar of the common types.

Names are kept lower case and long (`v` becomes `via`); values are str, unfolded, as received. Bytes that
are no UTF-8 travel through as surrogates, so that what is echoed is what came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sip.errors import PeerError

COMPACT = {
    "a": "accept-contact", "b": "referred-by", "c": "content-type", "d": "request-disposition",
    "e": "content-encoding", "f": "from", "i": "call-id", "j": "reject-contact", "k": "supported",
    "l": "content-length", "m": "contact", "n": "identity-info", "o": "event", "r": "refer-to",
    "s": "subject", "t": "to", "u": "allow-events", "v": "via", "x": "session-expires", "y": "identity",
}  # fmt: skip
"""One-letter forms (RFC 3261 §7.3.3 and the IANA registry)."""
_SPECIAL = {
    "call-id": "Call-ID", "cseq": "CSeq", "www-authenticate": "WWW-Authenticate", "rseq": "RSeq",
    "rack": "RAck", "min-se": "Min-SE", "mime-version": "MIME-Version", "sip-etag": "SIP-ETag",
    "sip-if-match": "SIP-If-Match", "p-asserted-identity": "P-Asserted-Identity",
}  # fmt: skip
_display: dict[str, str] = dict(_SPECIAL)
_TOKEN = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]+\Z")
_DISPLAY_TOKENS = re.compile(r"[A-Za-z0-9\-.!%*_+`'~\s]*\Z")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


class MalformedHeader(PeerError):
    """A header field breaks its grammar."""


def canonical(name: str) -> str:
    """Lower case and long: `F` -> `from`."""
    lower = name.lower()
    return COMPACT.get(lower, lower)


def display_name_of(name: str) -> str:
    """How a header's name is written on the wire: `content-length` -> `Content-Length`."""
    shown = _display.get(name)
    if shown is None:
        shown = "-".join(part.capitalize() for part in name.split("-"))
        if len(_display) < 512:  # a peer may invent names without end
            _display[name] = shown
    return shown


def is_token(text: str) -> bool:
    return _TOKEN.match(text) is not None


class Headers:
    """Ordered (name, value) pairs; get() of any spelling of a name."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._items: list[tuple[str, str]] = [(canonical(name), value) for name, value in items]

    @classmethod
    def of_canonical(cls, items: list[tuple[str, str]]) -> Headers:
        """Take over a list whose names are canonical already."""
        made = cls.__new__(cls)
        made._items = items
        return made

    def get(self, name: str) -> str | None:
        """The first value, or None. `name` must be canonical."""
        for key, value in self._items:
            if key == name:
                return value
        return None

    def get_all(self, name: str) -> list[str]:
        """Every value in order, one an occurrence, commas not split."""
        return [value for key, value in self._items if key == name]

    def get_list(self, name: str) -> list[str]:
        """Every element of a comma-separated header, over all its occurrences."""
        return [element for value in self.get_all(name) for element in split_list(value)]

    def tokens(self, name: str) -> set[str]:
        """A list header as a set of lower-case tokens: Supported, Require, Allow …"""
        return {element.lower() for element in self.get_list(name)}

    def add(self, name: str, value: str) -> None:
        self._items.append((canonical(name), value))

    def set(self, name: str, value: str) -> None:
        """Replace every occurrence, in the place of the first; append when there is none."""
        for at, (key, _) in enumerate(self._items):
            if key == name:
                self._items[at] = (name, value)
                self._items[at + 1 :] = [item for item in self._items[at + 1 :] if item[0] != name]
                return
        self._items.append((name, value))

    def set_first(self, name: str, value: str) -> None:
        """Replace the first occurrence and leave the others."""
        for at, (key, _) in enumerate(self._items):
            if key == name:
                self._items[at] = (name, value)
                return
        self._items.append((name, value))

    def insert_first(self, name: str, value: str) -> None:
        self._items.insert(0, (name, value))

    def remove(self, name: str) -> None:
        self._items = [item for item in self._items if item[0] != name]

    def copy(self) -> Headers:
        return Headers.of_canonical(list(self._items))

    def public(self) -> tuple[tuple[str, str], ...]:
        """Everything with wire-style names, for events."""
        return tuple((display_name_of(name), value) for name, value in self._items)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._items)

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)


def split_outside(text: str, mark: str) -> list[str]:
    """Split at a character that stands outside of "quotes" and <angles>. Raises MalformedHeader for a
    quote that does not end."""
    if '"' not in text and "<" not in text:
        return [part.strip() for part in text.split(mark)]
    parts: list[str] = []
    start = at = 0
    angle = False
    while at < len(text):
        char = text[at]
        if char == '"' and not angle:
            match = _QUOTED.match(text, at)
            if match is None:
                raise MalformedHeader("unterminated quoted string")
            at = match.end()
            continue
        if char == "<":
            angle = True
        elif char == ">":
            angle = False
        elif char == mark and not angle:
            parts.append(text[start:at].strip())
            start = at + 1
        at += 1
    parts.append(text[start:].strip())
    return parts


def split_list(text: str) -> list[str]:
    """Elements of a comma-separated value; an empty element is malformed, an empty value is no element."""
    if not text.strip():
        return []
    parts = split_outside(text, ",")
    if not all(parts):
        raise MalformedHeader("empty list element")
    return parts


Params = dict[str, str | None]


def parse_params(parts: list[str]) -> Params:
    """`["tag=x", "lr"]` -> `{"tag": "x", "lr": None}`; names lower case, quotes kept in values."""
    params: Params = {}
    for part in parts:
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if not is_token(name) or name in params:
            raise MalformedHeader("bad or repeated parameter")
        params[name] = value.strip() if equals else None
    return params


def params_text(params: Params) -> str:
    return "".join(f";{name}" if value is None else f";{name}={value}" for name, value in params.items())


@dataclass(frozen=True, slots=True)
class NameAddr:
    """From, To, Contact, Route, Refer-To, P-Asserted-Identity (RFC 3261 §20.10)."""

    uri: str
    display_name: str
    """Unquoted and unescaped."""
    params: Params

    @property
    def tag(self) -> str | None:
        return self.params.get("tag")

    def __str__(self) -> str:
        name = ""
        if self.display_name:
            name = '"' + self.display_name.replace("\\", "\\\\").replace('"', '\\"') + '" '
        return f"{name}<{self.uri}>{params_text(self.params)}"


def parse_name_addr(text: str) -> NameAddr:
    """Parse `"Name" <uri>;params` or `uri;params`. The URI itself is not looked into."""
    text = text.strip()
    name = ""
    quoted = _QUOTED.match(text)
    if quoted is not None:
        name = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.S)
        text = text[quoted.end() :].lstrip()
        if not text.startswith("<"):
            raise MalformedHeader("display name without <URI>")
    open_at = text.find("<")
    if open_at < 0:
        return _parse_addr_spec(text)
    if quoted is None:
        name = text[:open_at].strip()
        if not _DISPLAY_TOKENS.match(name):
            raise MalformedHeader("display name must be quoted")
    close_at = text.find(">", open_at)
    if close_at < 0:
        raise MalformedHeader("unterminated <URI>")
    uri = text[open_at + 1 : close_at]
    if not uri or uri != uri.strip() or " " in uri or "<" in uri:
        raise MalformedHeader("blank in <URI>")
    rest = text[close_at + 1 :].strip()
    if rest and not rest.startswith(";"):
        raise MalformedHeader("rubbish after <URI>")
    return NameAddr(uri, name, parse_params(split_outside(rest[1:], ";")) if rest else {})


def _parse_addr_spec(text: str) -> NameAddr:
    uri, *rest = [part.strip() for part in split_outside(text, ";")]
    if not uri or re.search(r'[\s",?]', uri):
        raise MalformedHeader("a URI with a comma, question mark or blank wants <>")
    return NameAddr(uri, "", parse_params(rest))


class CSeq(NamedTuple):
    number: int
    method: str


def parse_cseq(text: str) -> CSeq:
    """Raises MalformedHeader; the number must be below 2**31 (RFC 3261 §8.1.1.5)."""
    match = re.fullmatch(r"\s*(\d{1,10})\s+([A-Za-z0-9\-.!%*_+`'~]+)\s*", text)
    if match is None or int(match[1]) >= 2**31:
        raise MalformedHeader("bad CSeq")
    return CSeq(int(match[1]), match[2])
