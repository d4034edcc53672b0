"""SIP messages: bytes to Request or Response and back (RFC 3261 §7), size-limited, parsed once and lazily.

parse_message() finds the start line, the header lines and the body. The typed views (`via`, `cseq`,
`from_` …) parse on first use; check_message() forces those that every message must have.
"""

from __future__ import annotations

import re

from sip.errors import PeerError
from sip.headers import (
    COMPACT,
    CSeq,
    Headers,
    MalformedHeader,
    NameAddr,
    display_name_of,
    is_token,
    parse_cseq,
    parse_name_addr,
    split_outside,
)
from sip.via import Via, parse_via

MAX_HEADERS = 256
MAX_HEAD_BYTES = 32_768
VERSION = "SIP/2.0"
METHODS = frozenset({
    "INVITE", "ACK", "CANCEL", "BYE", "OPTIONS", "PRACK", "UPDATE", "INFO", "REFER", "NOTIFY", "REGISTER",
    "SUBSCRIBE", "MESSAGE", "PUBLISH",
})  # fmt: skip
"""The registered ones."""
_FOLD = re.compile(r"[ \t]*\r\n[ \t]+")
_LONE = re.compile(r"\r(?!\n)|(?<!\r)\n")
_REQUEST_LINE = re.compile(r"([A-Za-z0-9\-.!%*_+`'~]+) (\S+) (SIP/\d+\.\d+)\Z", re.I)
_STATUS_LINE = re.compile(r"SIP/2\.0 ([1-6]\d\d) (.*)\Z", re.I | re.S)


class MalformedMessage(PeerError):
    """Bytes that are no SIP message. `request` is what could be read of a request, so that a 400 (or
    505) can be sent; None when there is nothing to answer."""

    def __init__(self, message: str, code: int = 400, request: Request | None = None) -> None:
        super().__init__(message, code)
        self.request = request


class Message:
    """What requests and responses share."""

    __slots__ = ("_cseq", "_from", "_to", "_via", "body", "headers")

    def __init__(self, headers: Headers, body: bytes = b"") -> None:
        self.headers = headers
        self.body = body
        self._via: Via | None = None
        self._cseq: CSeq | None = None
        self._from: NameAddr | None = None
        self._to: NameAddr | None = None

    def _required(self, name: str) -> str:
        value = self.headers.get(name)
        if value is None:
            raise MalformedHeader(f"no {display_name_of(name)}")
        return value

    @property
    def via(self) -> Via:
        """The topmost Via."""
        if self._via is None:
            self._via = parse_via(split_outside(self._required("via"), ",")[0])
        return self._via

    @via.setter
    def via(self, via: Via) -> None:
        first, *others = split_outside(self._required("via"), ",")
        del first
        self.headers.set_first("via", ", ".join([str(via), *others]))
        self._via = via

    def forget_via(self) -> None:
        """Parse the topmost Via anew: the headers were changed underneath."""
        self._via = None

    @property
    def cseq(self) -> CSeq:
        if self._cseq is None:
            self._cseq = parse_cseq(self._required("cseq"))
        return self._cseq

    @property
    def from_(self) -> NameAddr:
        if self._from is None:
            self._from = parse_name_addr(self._required("from"))
        return self._from

    @property
    def to(self) -> NameAddr:
        if self._to is None:
            self._to = parse_name_addr(self._required("to"))
        return self._to

    @property
    def call_id(self) -> str:
        return self._required("call-id")

    def start_line(self) -> str:
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """The message as it goes on the wire; Content-Length is always right."""
        lines = [self.start_line()]
        for name, value in self.headers:
            if name != "content-length":
                lines.append(f"{display_name_of(name)}: {value}")
        lines.append(f"Content-Length: {len(self.body)}\r\n\r\n")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + self.body


class Request(Message):
    __slots__ = ("method", "uri")

    def __init__(self, method: str, uri: str, headers: Headers, body: bytes = b"") -> None:
        super().__init__(headers, body)
        self.method = method
        self.uri = uri

    def start_line(self) -> str:
        return f"{self.method} {self.uri} {VERSION}"


class Response(Message):
    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str, headers: Headers, body: bytes = b"") -> None:
        super().__init__(headers, body)
        self.code = code
        self.reason = reason

    def start_line(self) -> str:
        return f"{VERSION} {self.code} {self.reason}"


def parse_message(data: bytes) -> Request | Response:
    """Parse one datagram or framed message. Raises MalformedMessage and nothing else.

    A datagram longer than its Content-Length is cut there; a shorter one is malformed (§18.3).
    """
    if data[:2] == b"\r\n":
        data = data.lstrip(b"\r\n")
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        raise MalformedMessage("no end of headers")
    if len(head) > MAX_HEAD_BYTES:
        raise MalformedMessage("headers too long", 513)
    text = head.decode("utf-8", "surrogateescape")
    start, _, rest = text.partition("\r\n")
    message = _parse_start_line(start)
    torn = _lone_controls(text)
    if torn:
        rest = _LONE.sub(" ", rest)  # so that what is echoed in a 400 holds no line of its own
    problem = _parse_header_lines(rest, message.headers)
    if problem is None and (torn or not _start_line_read(message)):
        problem = "control character or blank in the wrong place"
    if problem is None:
        problem = _cut_body(message, body)
    if problem is not None:
        raise MalformedMessage(problem, request=message if isinstance(message, Request) else None)
    if isinstance(message, Request) and not start.upper().endswith(VERSION):
        raise MalformedMessage("SIP version not supported", 505, message)
    return message


def _lone_controls(text: str) -> bool:
    """A CR or LF that is no line end would let a value pass for a header further on."""
    return not text.count("\r") == text.count("\n") == text.count("\r\n")


def _start_line_read(message: Request | Response) -> bool:
    return not isinstance(message, Request) or bool(message.uri)


def _parse_start_line(start: str) -> Request | Response:
    headers = Headers.of_canonical([])
    match = _REQUEST_LINE.match(start)
    if match is not None:
        return Request(match[1], match[2], headers)
    match = _STATUS_LINE.match(start)
    if match is not None:
        return Response(int(match[1]), match[2], headers)
    # A request line with blanks too many still names a method, and its sender deserves the 400.
    words = start.split()
    if len(words) >= 3 and words[-1].upper() == VERSION and is_token(words[0]):
        request = Request(words[0], " ".join(words[1:-1]), headers)
        request.uri = ""
        return request
    raise MalformedMessage("no SIP start line")


def _parse_header_lines(text: str, headers: Headers) -> str | None:
    """Fill `headers`; return what is wrong, or None."""
    if "\r\n " in text or "\r\n\t" in text:
        text = _FOLD.sub(" ", text)
    items: list[tuple[str, str]] = []
    problem = None
    for line in text.split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.rstrip(" \t").lower()
        if not colon or not is_token(name):
            problem = "bad header line"
            continue
        items.append((COMPACT.get(name, name), value.strip(" \t")))
    if len(items) > MAX_HEADERS:
        return "too many headers"
    for name, value in items:
        headers.add(name, value)
    return problem


def _cut_body(message: Message, body: bytes) -> str | None:
    lengths = message.headers.get_all("content-length")
    if not lengths:
        message.body = body
        return None
    if len(lengths) > 1 and len(set(lengths)) > 1:
        return "Content-Length given twice"
    if not re.fullmatch(r"[0-9]{1,9}", lengths[0]):
        return "bad Content-Length"
    length = int(lengths[0])
    if length > len(body):
        return "body shorter than Content-Length"
    message.body = body[:length]
    return None


def check_message(message: Request | Response) -> None:
    """Demand what §8.1.1 demands of every message: one each of From, To, Call-ID, CSeq, and a Via.

    Raises MalformedHeader.
    """
    headers = message.headers
    for name in ("from", "to", "call-id", "cseq"):
        if len(headers.get_all(name)) != 1:
            raise MalformedHeader(f"{display_name_of(name)} must stand once")
    if not message.call_id:
        raise MalformedHeader("empty Call-ID")
    if not (message.from_.uri and message.to.uri and message.via.host and message.cseq.method):
        raise MalformedHeader("empty address")
    if isinstance(message, Request):
        _check_request(message)


def _check_request(request: Request) -> None:
    if request.cseq.method != request.method:
        code = 400 if request.method in METHODS else 501  # of a method yet to come we know nothing
        raise MalformedHeader("CSeq method differs from the request's", code)
    if not request.uri or request.uri.startswith("<"):
        raise MalformedHeader("bad Request-URI")
    for name in ("max-forwards", "content-type", "expires"):
        if len(request.headers.get_all(name)) > 1:
            raise MalformedHeader(f"{display_name_of(name)} must stand once")
    hops = request.headers.get("max-forwards")
    if hops is not None and (not hops.isdigit() or int(hops) > 255):
        raise MalformedHeader("bad Max-Forwards")
    for value in request.headers.get_list("via"):
        parse_via(value)
    for value in request.headers.get_list("contact"):
        if value != "*":
            parse_name_addr(value)
