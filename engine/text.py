"""Vocabulary: text tokens of the inner monologue, through sentencepiece."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from engine.weights import CheckpointError

BOS, EOS = 1, 2


class Vocabulary:
    """Pieces of a sentencepiece model; padding and the other specials have no text."""

    def __init__(self, path: Path, padding: int, end_of_padding: int) -> None:
        self._spm = sentencepiece.SentencePieceProcessor()
        try:
            self._spm.Load(str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is not a sentencepiece model. Download the tokenizer again."
            ) from error
        self.padding, self._silent = padding, {padding, end_of_padding, BOS, EOS, -1}

    def __len__(self) -> int:
        return int(self._spm.GetPieceSize())

    def piece(self, token: int) -> str | None:
        """The token's text, leading blank kept; None for padding, specials and tokens out of range."""
        if token in self._silent or not 0 <= token < len(self):
            return None
        if self._spm.IsControl(token) or self._spm.IsUnknown(token):
            return None
        return str(self._spm.IdToPiece(token)).replace("▁", " ")

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._spm.EncodeAsIds(text)
        return tokens
