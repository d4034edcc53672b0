"""The shapes of the networks, read from Kyutai's config.json (defaults: Moshi 7B and its Mimi)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from engine.weights import CheckpointError


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """One transformer: the temporal one, the depth one, or one of Mimi's two."""

    dim: int
    heads: int
    layers: int
    feed_forward: int
    """Hidden width of the feed-forward part: per half when gated."""
    context: int
    norm: str = "rms_norm_f32"
    gating: str = "silu"
    """`silu` (and the like) or `none`: linear, GELU, linear."""
    rope: bool = True
    max_period: float = 10_000.0
    layer_scale: bool = False

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class LMConfig:
    """The language model; names as in config.json."""

    dim: int = 4096
    num_heads: int = 32
    num_layers: int = 32
    hidden_scale: float = 4.125
    gating: str = "silu"
    norm: str = "rms_norm_f32"
    context: int = 3000
    max_period: float = 10_000.0
    positional_embedding: str = "rope"
    text_card: int = 32000
    text_card_out: int | None = None
    existing_text_padding_id: int = 3
    existing_text_end_padding_id: int = 0
    n_q: int = 16
    dep_q: int = 8
    card: int = 2048
    depformer_dim: int = 1024
    depformer_dim_feedforward: int | None = 4224
    depformer_num_heads: int | None = 16
    depformer_num_layers: int | None = 6
    depformer_gating: str | None = "silu"
    depformer_multi_linear: bool = True
    depformer_weights_per_step: bool = True
    depformer_weights_per_step_schedule: tuple[int, ...] | None = None
    depformer_pos_emb: str = "none"
    depformer_norm: str | None = None
    extra_heads_num_heads: int = 0
    extra_heads_dim: int = 6
    bias_proj: bool = False
    delays: tuple[int, ...] = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)

    @classmethod
    def read(cls, raw: dict[str, Any], label: str) -> LMConfig:
        """Raises CheckpointError for a key or value this engine does not know."""
        raw = {key: value for key, value in raw.items() if key not in _UNUSED}
        for key, harmless in _ONLY.items():
            if raw.pop(key, harmless) != harmless:
                raise CheckpointError(f"{label}: {key} is not supported; it must be {harmless!r}")
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise CheckpointError(f"{label}: unknown keys {', '.join(unknown)}; a newer engine may know them")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()
        }
        config = cls(**values)
        config.check(label)
        return config

    def check(self, label: str) -> None:
        """Raises CheckpointError for values that contradict each other."""
        wrong = None
        if len(self.delays) != self.n_q + 1:
            wrong = f"delays has {len(self.delays)} entries, expected n_q + 1 = {self.n_q + 1}"
        elif self.dim % self.num_heads or self.temporal.head_dim % 2:
            wrong = f"dim {self.dim} does not divide into {self.num_heads} heads of even size"
        elif self.positional_embedding != "rope":
            wrong = f"positional_embedding {self.positional_embedding!r}, only rope is supported"
        elif self.dep_q and self.depformer_pos_emb != "none":
            wrong = f"depformer_pos_emb {self.depformer_pos_emb!r}, only none is supported"
        elif self.dep_q and not (self.depformer_weights_per_step and self.depformer_multi_linear):
            wrong = "depformer_weights_per_step and depformer_multi_linear must be true"
        elif self.dep_q and self.depformer_norm is not None:
            wrong = "depformer_norm is not supported"
        elif self.dep_q > self.n_q:
            wrong = f"dep_q {self.dep_q} is more than n_q {self.n_q}"
        if wrong:
            raise CheckpointError(f"{label}: {wrong}")

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def temporal(self) -> TransformerConfig:
        width = gated_width(self.dim, int(self.hidden_scale * self.dim), self.gating)
        return TransformerConfig(
            self.dim,
            self.num_heads,
            self.num_layers,
            width,
            self.context,
            self.norm,
            self.gating,
            max_period=self.max_period,
        )

    @property
    def depth(self) -> TransformerConfig:
        gating = self.depformer_gating or self.gating
        wide = self.depformer_dim_feedforward or int(self.hidden_scale * self.depformer_dim)
        return TransformerConfig(
            self.depformer_dim,
            self.depformer_num_heads or self.num_heads,
            self.depformer_num_layers or self.num_layers,
            gated_width(self.depformer_dim, wide, gating),
            self.dep_q,
            self.norm,
            gating,
            rope=False,
        )

    @property
    def codebooks(self) -> int:
        """Codes of the codec in use (Kyutai loaders.py `get_mimi`)."""
        return max(self.dep_q, self.n_q - self.dep_q)

    def with_depth_steps(self, steps: int) -> LMConfig:
        """The same weights with fewer depth steps: the codes past `steps` belong to the caller's stream."""
        schedule = self.depformer_weights_per_step_schedule
        return replace(self, dep_q=steps, depformer_weights_per_step_schedule=schedule and schedule[:steps])


_UNUSED = {
    "causal",
    "depformer_causal",
    "depformer_context",
    "depformer_max_period",
    "quantize",
    "lora",
    "lora_rank",
    "lora_scaling",
    "norm_emb",
    "gradient_checkpointing",
}
_ONLY: dict[str, Any] = {
    "layer_scale": None,
    "depformer_layer_scale": None,
    "conditioners": {},
    "fuser": None,
    "cross_attention": False,
    "demux_second_stream": False,
    "demux_second_text_stream": False,
    "depformer_low_rank_embeddings": None,
    "kv_repeat": 1,
    "depformer_kv_repeat": 1,
}


def gated_width(dim: int, feed_forward: int, gating: str) -> int:
    """Width of each half of a gated layer (Kyutai moshi/modules/gating.py)."""
    if gating == "none":
        return feed_forward
    return 21 * dim // 8 if feed_forward == 4 * dim else 2 * feed_forward // 3


@dataclass(frozen=True, slots=True)
class SeanetConfig:
    channels: int = 1
    dimension: int = 512
    n_filters: int = 64
    n_residual_layers: int = 1
    compress: int = 2
    dilation_base: int = 2
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    ratios: tuple[int, ...] = (8, 6, 5, 4)

    @property
    def hop(self) -> int:
        hop = 1
        for ratio in self.ratios:
            hop *= ratio
        return hop


@dataclass(frozen=True, slots=True)
class MimiConfig:
    """The codec (Kyutai loaders.py `_mimi_config`)."""

    seanet: SeanetConfig = field(default_factory=SeanetConfig)
    transformer: TransformerConfig = TransformerConfig(
        512, 8, 8, 2048, 250, "layer_norm", "none", layer_scale=True
    )
    quantizer_dim: int = 256
    quantizer_levels: int = 32
    bins: int = 2048

    @classmethod
    def read(cls, raw: dict[str, Any], label: str) -> MimiConfig:
        """From the JSON of `mimi_config_name`. Raises CheckpointError for what is not 12.5 Hz Mimi."""
        try:
            seanet = {key: value for key, value in raw["seanet"].items() if key in _SEANET}
            seanet["ratios"] = tuple(seanet["ratios"])
            tower, quantizer = raw["transformer"], raw["quantizer"]
            config = cls(
                SeanetConfig(**seanet),
                _mimi_transformer(tower),
                quantizer["dimension"],
                quantizer["n_q"],
                quantizer["bins"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{label}: not a Mimi configuration ({error!r})") from error
        rates = raw.get("sample_rate"), raw.get("frame_rate")
        if rates != (24_000, 12.5) or 1_920 % config.seanet.hop:
            raise CheckpointError(f"{label}: expected 24,000 Hz and 12.5 frames a second, found {rates}")
        if tower["d_model"] != config.seanet.dimension:
            raise CheckpointError(f"{label}: transformer d_model must equal the SEANet dimension")
        return config


def _mimi_transformer(raw: dict[str, Any]) -> TransformerConfig:
    width = gated_width(raw["d_model"], raw["dim_feedforward"], raw["gating"])
    return TransformerConfig(
        raw["d_model"],
        raw["num_heads"],
        raw["num_layers"],
        width,
        raw["context"],
        raw["norm"],
        raw["gating"],
        raw["positional_embedding"] == "rope",
        raw["max_period"],
        raw.get("layer_scale") is not None,
    )


_SEANET = {entry.name for entry in fields(SeanetConfig)}
