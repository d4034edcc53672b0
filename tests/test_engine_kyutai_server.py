"""ChatEngine against Kyutai's own server: the code of `moshi.server` with the seeded tiny weights."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from engine.api import FRAME, EngineFull, TextSpoken
from engine.chat import ChatEngine
from engine.chat_line import Remote
from tests import oracle
from tests.workers import until

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


def kyutai_server(folder: Path) -> Any:
    """Their ServerState on the CPU, without the warm-up that wants CUDA."""
    oracle.require()
    pytest.importorskip("sphn")
    import sentencepiece

    from engine.seeded import TINY_LM, TINY_MIMI, invent_lm, invent_mimi, write_tokenizer

    write_tokenizer(folder / "tokenizer.model", TINY_LM.text_card)
    words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    lm = oracle.kyutai_lm(TINY_LM, invent_lm(TINY_LM, 5)[1])
    mimi = oracle.kyutai_mimi(TINY_MIMI, invent_mimi(TINY_MIMI, TINY_LM.codebooks, 6)[1], TINY_LM.codebooks)
    return server_state()("moshi", mimi, words, lm, 1.0, "cpu")


def server_state() -> Any:
    """Their class; the module itself parses arguments and serves when it is imported."""
    spec = importlib.util.find_spec("moshi.server")
    assert spec is not None and spec.origin is not None
    source, _, _ = Path(spec.origin).read_text().rpartition("with torch.no_grad():")
    module = types.ModuleType("moshi.server")
    module.__package__ = "moshi"
    sys.modules["moshi.server"] = module  # dataclasses look their module up
    try:
        exec(compile(source, spec.origin, "exec"), module.__dict__)
    finally:
        del sys.modules["moshi.server"]
    return module.ServerState


@pytest.fixture
def without_gradients() -> Iterator[None]:
    """What their module has around its main."""
    with torch.no_grad():
        yield


async def test_kyutais_own_server_holds_a_call_and_is_busy_for_a_second(
    tmp_path: Path, without_gradients: None
) -> None:
    app = web.Application()
    app.router.add_get("/api/chat", kyutai_server(tmp_path).handle_chat)
    async with TestServer(app) as server:
        remote = Remote(str(server.make_url("/api/chat")).replace("http", "ws", 1), handshake_timeout_s=0.3)
        engine = ChatEngine(remote, slots=2)
        engine.begin(0.0)
        slot = await engine.open()
        [line] = engine.lines()
        voice = 0.1 * np.random.default_rng(0).standard_normal((20, FRAME)).astype(np.float32)
        for n, frame in enumerate(voice):
            slot.write(frame)
            engine.run_due(engine.clock.deadline)
            if n > 3:  # the model's delay, and the first frame their server skips
                await until(lambda: line.voice.packets >= 1)
        assert slot.counters.frames >= 14 and line.unknown_messages == 0
        spoken = engine.rows.read_spoken(slot.row, 5 * FRAME, 8 * FRAME)
        assert np.isfinite(spoken).all() and np.abs(spoken).max() > 1e-3
        assert any(isinstance(event, TextSpoken) for event in slot.take_events())
        with pytest.raises(EngineFull, match="handshake"):
            await engine.open()
        await engine.stop()
