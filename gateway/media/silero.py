"""SileroNet: the 8 kHz half of Silero VAD v5 as a few matrix products over all frames at once.

onnxruntime takes each frame through five small convolutions by itself; written as products over all frames
they take a quarter of the time. The weights are read from `silero_vad.onnx` as it is shipped; a file of
another shape is not understood, and left to onnxruntime (see vad.Silero).

Sources: the graph in silero_vad.onnx (github.com/snakers4/silero-vad, MIT); the wire format of ONNX's
protocol buffers (developers.google.com/protocol-buffers/docs/encoding; onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

SAMPLES, HOP, WINDOW, BINS = 288, 64, 128, 65
PADDING = 32
"""Samples mirrored behind a frame."""
AT_ONCE = 96
"""Frames whose numbers stay in a core's cache."""
SHAPES = {
    "stft.forward_basis_buffer": (2 * BINS, 1, WINDOW),
    "encoder.0.reparam_conv.weight": (128, BINS, 3),
    "encoder.0.reparam_conv.bias": (128,),
    "encoder.1.reparam_conv.weight": (64, 128, 3),
    "encoder.1.reparam_conv.bias": (64,),
    "encoder.2.reparam_conv.weight": (64, 64, 3),
    "encoder.2.reparam_conv.bias": (64,),
    "encoder.3.reparam_conv.weight": (128, 64, 3),
    "encoder.3.reparam_conv.bias": (128,),
    "decoder.rnn.weight_ih": (512, 128),
    "decoder.rnn.weight_hh": (512, 128),
    "decoder.rnn.bias_ih": (512,),
    "decoder.rnn.bias_hh": (512,),
    "decoder.decoder.2.weight": (1, 128, 1),
    "decoder.decoder.2.bias": (1,),
}
"""Of the 8 kHz half; the 16 kHz half has the same names and another basis."""
_GRAPH, _NODES, _ATTRIBUTES = 7, 1, 5  # field numbers: ModelProto.graph, GraphProto.node, NodeProto.attribute
_OUTPUT, _TENSOR, _SUBGRAPH = 2, 5, 6  # NodeProto.output; AttributeProto.t, .g
_DIMS, _TYPE, _RAW = 1, 2, 9  # TensorProto
_FLOAT = 1


class NotUnderstood(Exception):
    """The file is no silero_vad.onnx as we know it."""


class SileroNet:
    """Speech probabilities of frames at 8 kHz."""

    def __init__(self, weights: dict[str, F32]) -> None:
        """weights: by the names of SHAPES."""
        self._basis = np.ascontiguousarray(weights["stft.forward_basis_buffer"][:, 0].T)  # (128, 130)
        self._layers = [
            (
                _taps(weights[f"encoder.{n}.reparam_conv.weight"], taps),
                weights[f"encoder.{n}.reparam_conv.bias"],
            )
            for n, taps in enumerate(((0, 1, 2), (0, 1, 2), (1, 2), (1,)))
        ]
        both = np.concatenate([weights["decoder.rnn.weight_ih"], weights["decoder.rnn.weight_hh"]], axis=1)
        self._gates = np.ascontiguousarray(both.T)  # (input and hidden, 512)
        self._gates_bias = weights["decoder.rnn.bias_ih"] + weights["decoder.rnn.bias_hh"]
        self._last = weights["decoder.decoder.2.weight"][0, :, 0]
        self._last_bias = weights["decoder.decoder.2.bias"]

    @classmethod
    def load(cls, path: Path) -> SileroNet:
        """Raises NotUnderstood, OSError."""
        return cls(weights_in(path.read_bytes()))

    def __call__(self, frames: F32, state: F32) -> tuple[F32, F32]:
        """Probabilities (n,) and new state (2, n, 128) from frames (n, 288) and state."""
        after = np.empty_like(state)
        for at in range(0, len(frames), AT_ONCE):
            some = slice(at, at + AT_ONCE)
            after[0, some], after[1, some] = self._remember(self._encode(frames[some]), state[:, some])
        return _sigmoid(np.maximum(after[0], 0) @ self._last + self._last_bias), after

    def _encode(self, frames: F32) -> F32:
        """(n, 128) of frames (n, 288)."""
        n = len(frames)
        padded = np.concatenate([frames, frames[:, -2 : -2 - PADDING : -1]], axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::HOP]  # (n, 4, 128)
        spectra = windows.reshape(-1, WINDOW) @ self._basis
        x = np.zeros((n, 6, BINS), np.float32)  # between two frames of zeros
        x[:, 1:5] = np.sqrt(spectra[:, :BINS] ** 2 + spectra[:, BINS:] ** 2).reshape(n, 4, BINS)
        y = np.zeros((n, 6, 128), np.float32)
        y[:, 1:5] = self._layer(0, np.concatenate([x[:, k : k + 4] for k in range(3)], axis=2))
        z = self._layer(1, np.concatenate([y[:, k : k + 3 : 2] for k in range(3)], axis=2))  # (n, 2, 64)
        return self._layer(3, self._layer(2, z.reshape(n, 128)))

    def _layer(self, number: int, x: F32) -> F32:
        """A convolution of inputs (..., taps * channels), with its ReLU."""
        matrix, bias = self._layers[number]
        y = x.reshape(-1, x.shape[-1]) @ matrix
        y += bias
        np.maximum(y, 0, out=y)
        return y.reshape(*x.shape[:-1], -1)

    def _remember(self, x: F32, state: F32) -> tuple[F32, F32]:
        """The LSTM's hidden and cell state, (n, 128) each."""
        gates = np.concatenate([x, state[0]], axis=1) @ self._gates
        gates += self._gates_bias
        opened = _sigmoid(gates[:, :256])
        cell = opened[:, 128:] * state[1] + opened[:, :128] * np.tanh(gates[:, 256:384])
        return _sigmoid(gates[:, 384:]) * np.tanh(cell), cell


def _taps(weight: F32, taps: tuple[int, ...]) -> F32:
    """(out, channels, 3) to (taps * channels, out); taps: those that see more than padding."""
    return np.concatenate([weight[:, :, tap].T for tap in taps])


def _sigmoid(x: F32) -> F32:
    y: F32 = np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)
    return y


# -- the file


def weights_in(model: bytes) -> dict[str, F32]:
    """By the names of SHAPES. Raises NotUnderstood."""
    try:
        halves = [half for graph in _grouped(model).get(_GRAPH, []) for half in _halves(graph)]
    except (IndexError, ValueError, TypeError) as error:
        raise NotUnderstood(f"no ONNX model: {error}") from error
    for half in halves:
        found = {name: half[name] for name in SHAPES if name in half and half[name].shape == SHAPES[name]}
        if len(found) == len(SHAPES):
            return found
    raise NotUnderstood("its weights are not those of Silero VAD v5 at 8 kHz")


def _halves(graph: bytes) -> Iterator[dict[str, F32]]:
    """The constants of each branch at the top, by what their names end in."""
    for _, attributes in _nodes(graph):
        for attribute in attributes:
            for branch in attribute.get(_SUBGRAPH, []):
                yield dict(_constants(branch))


def _constants(graph: bytes) -> Iterator[tuple[str, F32]]:
    for outputs, attributes in _nodes(graph):
        for attribute in attributes:
            for tensor in attribute.get(_TENSOR, []):
                value = _floats(tensor)
                if value is not None and outputs:
                    yield outputs[0].decode().rpartition("__")[2], value


def _nodes(graph: bytes) -> Iterator[tuple[list[bytes], list[dict[int, list[bytes]]]]]:
    """Names of the outputs, and the attributes' fields."""
    for node in _grouped(graph).get(_NODES, []):
        known = _grouped(node)
        yield known.get(_OUTPUT, []), [_grouped(attribute) for attribute in known.get(_ATTRIBUTES, [])]


def _floats(tensor: bytes) -> F32 | None:
    fields = list(_fields(tensor))
    raw = [value for number, value in fields if number == _RAW and isinstance(value, bytes)]
    if not raw or (_TYPE, _FLOAT) not in fields:
        return None
    shape = [value for number, value in fields if number == _DIMS and isinstance(value, int)]
    return np.frombuffer(raw[0], "<f4").reshape(shape).astype(np.float32)


def _grouped(message: bytes) -> dict[int, list[bytes]]:
    """Its fields that are bytes."""
    found: dict[int, list[bytes]] = {}
    for number, value in _fields(message):
        if isinstance(value, bytes):
            found.setdefault(number, []).append(value)
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protocol buffers message. Raises IndexError or ValueError for what is none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of kind {kind}")
        if at + size > len(message):
            raise ValueError("cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
