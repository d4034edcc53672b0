"""CallReport: what a call placed from the command line came to, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gateway.media.messages import MediaStats
from gateway.turns import median


@dataclass(slots=True)
class CallReport:
    """Filled while the call goes on. Times in seconds; None for what did not happen."""

    code: int = 0
    """Final SIP code of the INVITE; 200 when it was answered."""
    reason: str = ""
    ended_by: str = ""
    """us, peer, timeout or error."""
    setup_s: float | None = None
    """INVITE sent → 200 received."""
    first_audio_s: float | None = None
    """INVITE sent → first RTP packet taken."""
    duration_s: float = 0.0
    """Recorded."""
    codec: str = ""
    stats: MediaStats | None = None
    answers_s: list[float] = field(default_factory=list)
    """From the end of each of our utterances to the agent's next onset."""

    @property
    def answered(self) -> bool:
        return self.setup_s is not None


def told(report: CallReport, recording: Path) -> str:
    """The report as lines for a terminal."""
    if report.setup_s is None:
        words = f"{report.code} {report.reason}".strip() if report.code else report.reason or "no answer"
        return f"no call: {words}\n"
    stats = report.stats or MediaStats()
    expected = stats.packets_received + max(0, stats.lost)
    loss = 100 * max(0, stats.lost) / expected if expected else 0.0
    jitter = f"{stats.jitter_ms:.1f} ms"
    first = "none" if report.first_audio_s is None else f"after {report.first_audio_s:.3f} s"
    lines = [
        ("setup", f"{report.setup_s:.3f} s to the answer, first audio {first}"),
        ("media", f"{report.codec}, {stats.packets_received} packets received, {stats.packets_sent} sent"),
        (
            "loss",
            f"{max(0, stats.lost)} packets ({loss:.2f} %), {stats.late} late; jitter {jitter}",
        ),
        ("answer", _latency(report.answers_s)),
        ("ended", f"by {report.ended_by} after {report.duration_s:.1f} s"),
        ("saved", f"{recording} (left: you, right: the agent)"),
    ]
    return "".join(f"{name:8} {text}\n" for name, text in lines)


def _latency(answers: list[float]) -> str:
    middle = median(answers)
    if middle is None:
        return "none measured: the agent did not begin to speak after you had ended"
    turns = (
        "1 turn" if len(answers) == 1 else f"{len(answers)} turns, {min(answers):.2f} to {max(answers):.2f}"
    )
    return f"{middle:.2f} s ({turns})"
