"""OrderReader: takes the tokens by which a model tells the gateway to act out of its text. Pure.

The tokens are those that train/receptionist.py teaches the embedded model; a remote model may be prompted
to write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Order = Literal["transfer", "hangup"]
TOKENS: Mapping[str, Order] = {"<transfer>": "transfer", "<hangup>": "hangup"}
_TOKEN = re.compile(r"\s?(" + "|".join(TOKENS) + ")")
_LONGEST = max(map(len, TOKENS))


class OrderReader:
    """One agent's text, piece by piece. A token may be spread over several pieces."""

    def __init__(self) -> None:
        self._held = ""

    def take(self, piece: str) -> tuple[str, list[Order]]:
        """What of the text may be shown now, and the orders in it. What may be the beginning of a token
        is held back until the next piece decides."""
        text = self._held + piece
        orders = [TOKENS[token] for token in _TOKEN.findall(text)]
        text = _TOKEN.sub("", text)
        begun = _beginning(text)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun], orders


def _beginning(text: str) -> int:
    """Characters at the end of the text with which a token may begin."""
    at = text.rfind("<", -_LONGEST)
    if at < 0 or not any(token.startswith(text[at:]) for token in TOKENS):
        return 0
    if text[:at].endswith(" "):
        at -= 1
    return len(text) - at
