"""PyPI's `moshi` 0.2.13 as the oracle: the same random weights in Kyutai's own modules.

It is no dependency of the product: tests that need it skip where it is not installed.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.model.config import LMConfig, MimiConfig
from engine.seeded import lm_json, mimi_json, with_file_extras


def require() -> None:
    os.environ.update(NO_TORCH_COMPILE="1", NO_CUDA_GRAPH="1")
    pytest.importorskip(
        "moshi", reason="PyPI's moshi is not installed: pip install --no-deps moshi==0.2.13 einops"
    )


def kyutai_lm(config: LMConfig, tensors: dict[str, Tensor]) -> Any:
    """Their LMModel with these weights, fp32."""
    require()
    from moshi.models.lm import LMModel

    model = LMModel(**lm_json(config), device="cpu", dtype=torch.float32).eval()
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    return model


def kyutai_generator(config: LMConfig, tensors: dict[str, Tensor], **options: Any) -> Any:
    """Their LMGen, greedy unless told otherwise, for desynchronised slots."""
    model = kyutai_lm(config, tensors)
    from moshi.models.lm import LMGen

    return LMGen(model, **({"use_sampling": False, "support_out_of_sync": True} | options))


def kyutai_mimi(config: MimiConfig, tensors: dict[str, Tensor], codebooks: int) -> Any:
    """Their MimiModel with these weights, fp32."""
    require()
    from moshi.models import loaders

    model = loaders.get_mimi(None, mimi_json(config), num_codebooks=codebooks)
    model.load_state_dict(with_file_extras(tensors))
    return model
