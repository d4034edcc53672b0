"""What this machine can run: torch, CUDA, and which weights are already here. Asks, loads nothing."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

MOSHI_REPO = "kyutai/moshiko-pytorch-bf16"
"""The weights `engine.kind = moshi` takes unless told otherwise."""
WEIGHT_FILES = (
    "model.safetensors",
    "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_spm_32k_3.model",
)
"""The names in Kyutai's repositories without a config.json that says otherwise."""

DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")
"""One of these exists where CUDA may work; without any, importing torch to ask would cost seconds."""


@dataclass(frozen=True, slots=True)
class TorchState:
    """Whether torch is installed, and whether it sees a GPU."""

    version: str | None
    """None: not installed."""
    cuda_device: str | None
    """The first GPU's name, None without one."""
    why: str
    """One phrase for a person."""


def torch_state() -> TorchState:
    """Imports torch (seconds) only where an NVIDIA driver is present."""
    if importlib.util.find_spec("torch") is None:
        return TorchState(None, None, "torch is not installed")
    version = metadata.version("torch")
    if not any(Path(driver).exists() for driver in DRIVERS):
        return TorchState(version, None, "no CUDA GPU")
    import torch

    if not torch.cuda.is_available():
        return TorchState(version, None, "an NVIDIA driver, but a torch that cannot use it")
    name = str(torch.cuda.get_device_name(0))
    return TorchState(version, name, name)


def weights_missing(model: str | None = None, revision: str | None = None) -> list[str]:
    """Names of the checkpoint files that are neither in the folder `model` nor in the Hugging Face cache.

    Never touches the network. A checkpoint with a config.json may name its files otherwise; then only
    what config.json names counts, and that is the loader's to say, so an existing config.json is enough.
    """
    source = model or MOSHI_REPO
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return []
        return [name for name in WEIGHT_FILES if not (folder / name).is_file()]
    if importlib.util.find_spec("huggingface_hub") is None:
        return list(WEIGHT_FILES)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return [
            name
            for name in WEIGHT_FILES
            if not isinstance(try_to_load_from_cache(source, name, revision=revision), str)
        ]
    except HFValidationError:
        return list(WEIGHT_FILES)
