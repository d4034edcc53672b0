"""Building a ModelRunner's parts from a checkpoint: device, types, memory, codec, prompts."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import engine.model.mimi
import engine.model.tiny_codec
from engine.api import EngineError
from engine.checkpoint import Checkpoint, CheckpointError
from engine.generation import Generator
from engine.graphs import GraphStages
from engine.kv import PAGE, PagedCache, columns_for
from engine.model.codec import Codec, codec_loader
from engine.model.config import LMConfig
from engine.model.lm import LM
from engine.persona import Casting, default_carrier
from engine.prompt import SILENCE, SINE, Carrier
from engine.stages import EagerStages, Stages
from engine.tensorfiles import open_weights
from engine.text import Vocabulary
from engine.voices import Voice, load_voice

__all__ = ["Built", "OutOfMemory", "RunnerOptions", "build"]

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KV_DTYPES = _DTYPES | {"float8": torch.float8_e4m3fn}
_MIMI_CARD, _MIMI_CODEBOOKS = 2048, 8
engine.model.mimi.register()
engine.model.tiny_codec.register()


class OutOfMemory(EngineError):
    """The model does not fit with that many slots; the message says how many would."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a checkpoint is laid on a device. Values of None leave the checkpoint's or device's own."""

    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`."""
    dtype: str | None = None
    """`float32`, `bfloat16`; None: bfloat16 on CUDA, float32 elsewhere."""
    kv_dtype: str | None = None
    """None: as dtype. `float8` halves the memory of a call."""
    weight_dtype: str | None = None
    """None: as dtype. `float8` halves what a tick reads (H100 and newer, L4, RTX 4090)."""
    context: int | None = None
    """Frames of attention; None: the checkpoint's (3,000 = 240 s for Moshi). Calls have no length limit."""
    pages: int | None = None
    """Pages of 64 frames shared by all slots; None: what every slot needs for a full window, or what fits."""
    prefill_frames: int = 48
    """Prompt frames run a step beside the live calls."""
    history: int = 25
    """Steps `rewind` can go back."""


@dataclass(frozen=True, slots=True)
class Built:
    """A ModelRunner's parts."""

    name: str
    fingerprint: str
    slots: int
    options: RunnerOptions
    generator: Generator
    codec: Codec
    cache: PagedCache
    stages: Stages
    casting: Casting
    vocabulary: Vocabulary


def build(checkpoint: Checkpoint, slots: int, options: RunnerOptions) -> Built:
    """Raises CheckpointError, OutOfMemory."""
    if slots < 1:
        raise EngineError(f"slots must be at least 1, not {slots}")
    device = _device(options.device)
    try:
        with torch.no_grad():
            return _build(checkpoint, slots, options, device)
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(_fitting(checkpoint, slots, options, device)) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise OutOfMemory(_fitting(checkpoint, slots, options, device)) from error


def _build(checkpoint: Checkpoint, slots: int, options: RunnerOptions, device: torch.device) -> Built:
    lm = load_lm(checkpoint, device, options)
    codec = load_codec(checkpoint, lm.config, device)
    config = lm.config
    identity = Identity(
        name=f"{checkpoint.model_type} ({checkpoint.name})",
        fingerprint=_fingerprint(checkpoint, config, options),
        sampling=checkpoint.sampling,
        voices={name: _checked(load_voice(path), config, name) for name, path in checkpoint.voices.items()},
        vocabulary=_vocabulary(checkpoint, config),
    )
    return assemble(identity, lm, codec, slots, options)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a model is called, says and sounds like."""

    name: str
    fingerprint: str
    sampling: dict[str, float]
    voices: dict[str, Voice]
    vocabulary: Vocabulary


def assemble(identity: Identity, lm: LM, codec: Codec, slots: int, options: RunnerOptions) -> Built:
    """Lay a loaded model out for `slots` calls on its device. Raises MemoryError where it does not fit."""
    config, device = lm.config, lm.table.device
    kv_dtype = _KV_DTYPES[options.kv_dtype] if options.kv_dtype else lm.table.dtype
    if device.type == "cpu":
        _must_fit_in_ram(config, slots, options, kv_dtype)
    codec.allocate(slots, options.history)
    pages = options.pages or _affordable(config, slots, options, device, kv_dtype)
    generator = Generator(lm, slots, options.history, pages, kv_dtype)
    cache = PagedCache(pages, slots, config.context, options.history, device)
    carrier = find_carrier(codec, config)
    codec.listen_for([code for code in range(codec.codebooks) if lm.reads(config.dep_q + code)])
    casting = Casting(config, identity.sampling, identity.voices, identity.vocabulary, carrier)
    stages = make_stages(generator, codec, cache.tables, carrier.tone.to(device))
    return Built(
        identity.name,
        identity.fingerprint,
        slots,
        options,
        generator,
        codec,
        cache,
        stages,
        casting,
        identity.vocabulary,
    )


def make_stages(generator: Generator, codec: Codec, tables: Tensor, tone: Tensor) -> Stages:
    """Recorded graphs on CUDA, plain steps elsewhere."""
    if tables.device.type != "cuda":
        return EagerStages(generator, codec, tables, tone)
    stages = GraphStages(generator, codec, tables, tone)
    stages.warm_up()
    return stages


def _vocabulary(checkpoint: Checkpoint, config: LMConfig) -> Vocabulary:
    specials = config.existing_text_padding_id, config.existing_text_end_padding_id
    vocabulary = Vocabulary(checkpoint.tokenizer, *specials)
    if len(vocabulary) > config.text_card:
        raise CheckpointError(
            f"{checkpoint.tokenizer} has {len(vocabulary)} pieces, the model {config.text_card}: "
            "they belong to different checkpoints"
        )
    return vocabulary


def load_lm(checkpoint: Checkpoint, device: torch.device, options: RunnerOptions) -> LM:
    """The language model; a model that also predicts its caller runs only the agent's depth steps.

    Raises CheckpointError.
    """
    config = checkpoint.lm
    if config.dep_q == 0:
        raise CheckpointError(f"{checkpoint.name} has dep_q 0: it hears but cannot speak")
    agent = config.n_q // 2 if config.dep_q == config.n_q else None
    dtype = _dtype(options.dtype, device)
    weights = open_weights(checkpoint.weights, device, dtype, checkpoint.lora, checkpoint.lora_scaling)
    if options.weight_dtype == "float8":
        must_multiply_float8(device)
        weights.float8 = True
    if options.context is not None:
        config = _with_context(config, options.context)
    lm = LM(weights, config, agent)
    weights.finish()
    if checkpoint.model_type == "hibiki":  # an early end of sequence reads as padding (Kyutai loaders.py)
        lm.table[2] = lm.table[3]
    return lm


def load_codec(checkpoint: Checkpoint, config: LMConfig, device: torch.device) -> Codec:
    """Raises CheckpointError, EngineError for an unknown kind."""
    load = codec_loader(checkpoint.codec.get("type", "mimi"))
    codec = load(checkpoint.codec_weights, checkpoint.codec, config.codebooks, device)
    streams = {config.dep_q, config.n_q - config.dep_q, codec.codebooks}
    if len(streams) != 1 or codec.card > config.card:
        raise CheckpointError(
            f"{checkpoint.codec_weights}: {codec.codebooks} codebooks of {codec.card}, "
            f"the model hears {config.n_q - config.dep_q} and says {config.dep_q} of {config.card}"
        )
    return codec


def find_carrier(codec: Codec, config: LMConfig) -> Carrier:
    """What silence and a tone are to the model: NVIDIA's constants for Mimi, else what the codec says."""
    if codec.card == _MIMI_CARD and codec.codebooks == _MIMI_CODEBOOKS:
        return default_carrier(torch.tensor(SILENCE), torch.tensor(SINE), config)
    return default_carrier(_steady(codec, 0.0), _steady(codec, 1.0), config)


def _steady(codec: Codec, amplitude: float) -> Tensor:
    """The code a codec settles on for a 440 Hz tone; slot 0 is used and left fresh."""
    rows = torch.zeros(1, dtype=torch.int64, device=codec.device)
    time = torch.arange(1_920 * 8, device=codec.device) / 24_000
    tone = amplitude * torch.sin(2 * math.pi * 440 * time)
    codes = torch.empty(0)
    for frame in tone.view(8, 1, 1_920):
        codes = codec.encode_step(frame, rows)
    codec.reset([0])
    return codes[0].cpu()


def _checked(voice: Voice, config: LMConfig, name: str) -> Voice:
    fits = (
        voice.codes.shape[1:] == (config.dep_q,)
        if voice.codes is not None
        else voice.embeddings is not None
        and voice.embeddings.shape[1] == config.dim
        and voice.cache is not None
        and voice.cache.shape == (config.n_q + 1, config.max_delay + 3)
    )
    if not fits:
        raise CheckpointError(f"voice {name} was made for another model: its shapes do not fit")
    return voice


def _with_context(config: LMConfig, context: int) -> LMConfig:
    if context < 1:
        raise EngineError(f"context must be at least 1 frame, not {context}")
    return replace(config, context=context)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device {name!r}: no CUDA device here, or a torch without CUDA")
    return device


def must_multiply_float8(device: torch.device) -> None:
    """A CPU has a slow twin, for tests. Raises EngineError for a GPU whose tensor cores lack float8."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise EngineError(
            f"engine.weight_dtype float8 needs an H100, L4, RTX 4090 or newer; {name} cannot multiply it"
        )


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise EngineError(f"dtype {name!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _page_bytes(config: LMConfig, kv_dtype: torch.dtype) -> int:
    return config.num_layers * 2 * config.dim * PAGE * kv_dtype.itemsize


def _affordable(
    config: LMConfig, slots: int, options: RunnerOptions, device: torch.device, kv: torch.dtype
) -> int:
    """Pages for a full window of every slot, or on CUDA what is left after 4 % + 2 GiB of reserve."""
    wanted = slots * columns_for(config.context, options.history)
    if device.type != "cuda":
        return wanted
    free, total = torch.cuda.mem_get_info(device)
    room = (free - int(0.04 * total) - 2 * 2**30) // _page_bytes(config, kv)
    if room < 2 * slots:
        raise MemoryError
    return min(wanted, room)


def _must_fit_in_ram(config: LMConfig, slots: int, options: RunnerOptions, kv: torch.dtype) -> None:
    """The kernel would grant the memory and end the process later."""
    pages = options.pages or slots * columns_for(config.context, options.history)
    if pages * _page_bytes(config, kv) > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise MemoryError


def _fitting(checkpoint: Checkpoint, slots: int, options: RunnerOptions, device: torch.device) -> str:
    """How many slots of full windows would fit beside the weights, for the error message."""
    kv = _KV_DTYPES[options.kv_dtype] if options.kv_dtype else _dtype(options.dtype, device)
    config = checkpoint.lm if options.context is None else _with_context(checkpoint.lm, options.context)
    each = _page_bytes(config, kv) * columns_for(config.context, options.history)
    if device.type != "cuda":
        return f"{slots} slots need {slots * each / 2**30:.1f} GiB for their windows: ask for fewer slots"
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(device)
    weights = checkpoint.weights.stat().st_size
    fit = max(0, int(0.96 * total - 2 * 2**30 - weights) // each)
    return (
        f"{checkpoint.name} with {slots} slots does not fit on {device} ({total / 2**30:.0f} GiB): "
        f"{fit} slots of full windows would, more with kv_dtype float8 or a smaller context"
    )


def _fingerprint(checkpoint: Checkpoint, config: LMConfig, options: RunnerOptions) -> str:
    """Snapshots move between runners of equal fingerprints."""
    size = checkpoint.weights.stat().st_size
    kinds = (options.kv_dtype or options.dtype, options.history, checkpoint.codec.get("type"))
    text = f"{config}|{kinds}|{size}"
    return f"{checkpoint.name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
