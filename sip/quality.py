"""What a call sounded like, guessed from its packets: the E-model (ITU-T G.107, G.113 Appendix I)."""

from __future__ import annotations

import math

_R0 = 93.2
"""R with every other input of G.107 at its default."""
_CODECS = {"PCMU": (0.0, 25.1), "PCMA": (0.0, 25.1)}
"""(Ie, Bpl) with packet loss concealment, of G.113 Appendix I."""


def r_factor(one_way_ms: float, loss: float, codec: str = "PCMU", burst_ratio: float = 1.0) -> float:
    """The transmission rating, 0 to 93.2. `loss` is 0 to 1; perfect echo control is assumed (Idte = 0).

    The narrow-band scale is used for every codec: G.722 and Opus are rated as if they were G.711.
    """
    ie, robustness = _CODECS.get(codec, _CODECS["PCMU"])
    percent = 100 * min(1.0, max(0.0, loss))
    impairment = ie + (95 - ie) * percent / (percent / max(1.0, burst_ratio) + robustness)
    return max(0.0, _R0 - delay_impairment(one_way_ms) - impairment)


def delay_impairment(one_way_ms: float) -> float:
    """Idd of G.107 (equation 7-28): nothing up to 100 ms."""
    if one_way_ms <= 100:
        return 0.0
    x = math.log2(one_way_ms / 100)
    return 25.0 * (math.pow(1 + x**6, 1 / 6) - 3 * math.pow(1 + (x / 3) ** 6, 1 / 6) + 2)


def mos(r: float) -> float:
    """Mean opinion score of a rating, 1 to 4.5 (G.107 Annex B)."""
    if r <= 0:
        return 1.0
    if r >= 100:
        return 4.5
    return max(1.0, 1 + 0.035 * r + r * (r - 60) * (100 - r) * 7e-6)
