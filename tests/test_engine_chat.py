"""ChatEngine against a real WebSocket server that speaks `/api/chat`, and what the wire itself says."""

import asyncio

import numpy as np
import pytest

from engine.api import FRAME, EngineError, EngineFull, EngineRefused, Persona, SlotClosed, SlotEnded
from engine.chat import ChatEngine
from engine.chat_line import Remote, backoff
from engine.ogg import OPUS_HEAD, OPUS_TAGS, OggReader
from engine.opus import OpusDecoder
from engine.slot import RowSlot
from tests.chat_remote import ChatRemote, answered, serving


def voice(frames: int, seed: int = 0) -> np.ndarray:
    """Low-passed noise: wide enough to correlate, narrow enough for the coder."""
    noise = np.random.default_rng(seed).standard_normal(frames * FRAME + 15)
    return (0.2 * np.convolve(noise, np.ones(16) / 4, "valid")).astype(np.float32)


async def tick(engine: ChatEngine) -> None:
    assert engine.run_due(engine.clock.deadline)
    await answered(engine)


async def converse(engine: ChatEngine, slot: RowSlot, said: np.ndarray) -> np.ndarray:
    start = int(engine.rows.spoken_end[slot.row])
    for frame in said.reshape(-1, FRAME):
        slot.write(frame)
        await tick(engine)
    end = int(engine.rows.spoken_end[slot.row])
    return np.concatenate([(await slot.read()).pcm for _ in range((end - start) // FRAME)])


async def until(happened: object) -> None:
    async with asyncio.timeout(10):
        while not happened():  # type: ignore[operator]
            await asyncio.sleep(0)


def engine_for(remote: ChatRemote, **options: object) -> ChatEngine:
    engine = ChatEngine(Remote(remote.url, **options), slots=4)  # type: ignore[arg-type]
    engine.begin(0.0)
    return engine


@pytest.mark.parametrize("style", ["python", "rust"])
async def test_both_servers_handshakes_lead_to_a_conversation_in_the_callers_own_voice(style: str) -> None:
    async with serving(ChatRemote(style)) as remote:
        engine = engine_for(remote)
        slot = await engine.open()
        said = voice(24)
        heard = await converse(engine, slot, said)
        assert len(heard) == 23 * FRAME
        match = np.correlate(heard[5 * FRAME : 15 * FRAME], said[5 * FRAME : 14 * FRAME], "valid")
        lag = int(match.argmax())
        a, b = heard[5 * FRAME + lag : 15 * FRAME], said[5 * FRAME : 15 * FRAME - lag]
        assert lag < 700 and np.corrcoef(a, b)[0, 1] > 0.9
        assert slot.counters.missed_ticks == 0
        words = "".join(getattr(event, "text", "") for event in slot.take_events())
        assert words == " word0 word4 word8 word12 word16 word20"
        await engine.stop()
        await until(lambda: remote.open == 0)


async def test_what_we_send_is_one_message_a_tick_with_two_packets_and_the_heads_first() -> None:
    async with serving(ChatRemote()) as remote:
        engine = engine_for(remote)
        await converse(engine, await engine.open(), voice(5))
        await engine.stop()
    assert len(remote.received) == 5 and {message[0] for message in remote.received} == {1}
    assert remote.received[0][29:48] == OPUS_HEAD and OPUS_TAGS in remote.received[0]
    reader, decoder = OggReader(), OpusDecoder()
    for message in remote.received:
        packets = reader.receive(message[1:])
        assert [len(decoder.decode(packet)) for packet in packets] == [960, 960]
    assert reader.bad_pages == 0


@pytest.mark.parametrize(
    ("auth", "where"),
    [
        ("bearer", {"authorization": "Bearer s3cret"}),
        ("kyutai", {"kyutai-api-key": "s3cret"}),
        ("token", {"token": "s3cret"}),
        ("auth_id", {"auth_id": "s3cret"}),
    ],
)
async def test_the_key_goes_where_the_remote_looks_for_it(auth: str, where: dict[str, str]) -> None:
    async with serving(ChatRemote(token="s3cret")) as remote:
        engine = engine_for(remote, token="s3cret", auth=auth)
        await engine.open()
        assert where.items() <= (remote.headers[0] | remote.queries[0]).items()
        await engine.stop()


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_a_refused_key_is_a_refusal_that_does_not_repeat_it(token: str | None) -> None:
    async with serving(ChatRemote(token="s3cret")) as remote:
        engine = engine_for(remote, token=token)
        with pytest.raises(EngineRefused, match="401") as refusal:
            await engine.open()
        assert "wrong" not in str(refusal.value)
        assert engine.capacity().used == 0
        await engine.stop()


async def test_a_full_remote_is_full_with_its_reason_and_takes_the_next_call_later() -> None:
    async with serving(ChatRemote(slots=1)) as remote:
        engine = engine_for(remote)
        first = await engine.open()
        with pytest.raises(EngineFull, match="all workers are busy"):
            await engine.open()
        assert engine.capacity().used == 1
        first.close()
        await until(lambda: remote.open == 0)
        await tick(engine)
        await engine.open()
        await engine.stop()


@pytest.mark.parametrize(
    ("status", "error"),
    [(503, EngineFull), (429, EngineFull), (403, EngineRefused), (400, EngineRefused), (404, EngineError)],
)
async def test_an_answer_that_is_no_websocket_says_what_it_means(
    status: int, error: type[EngineError]
) -> None:
    async with serving(ChatRemote(status=status)) as remote:
        engine = engine_for(remote)
        with pytest.raises(error, match=str(status)) as refusal:
            await engine.open()
        if isinstance(refusal.value, EngineFull):
            assert refusal.value.retry_after_s == 7.0
        await engine.stop()


async def test_a_remote_that_never_shakes_hands_is_busy() -> None:
    async with serving(ChatRemote(silent=True)) as remote:
        engine = engine_for(remote, handshake_timeout_s=0.05)
        with pytest.raises(EngineFull, match="handshake"):
            await engine.open()
        await engine.stop()


async def test_a_host_that_is_not_there_is_named_as_unreachable(unused_tcp_port: int) -> None:
    engine = ChatEngine(Remote(f"ws://127.0.0.1:{unused_tcp_port}/api/chat", token="s3cret"))
    engine.begin(0.0)
    with pytest.raises(EngineError, match="cannot be reached") as error:
        await engine.open()
    assert "s3cret" not in str(error.value)
    await engine.stop()


async def test_a_persona_becomes_query_parameters() -> None:
    persona = Persona(temperature=0.6, top_k=200, text_temperature=0.5, text_top_k=20, seed=99)
    async with serving(ChatRemote()) as remote:
        engine = engine_for(remote, query={"max_steps": "4500"})
        await engine.open(persona)
        assert remote.queries[0] == {
            "audio_temperature": "0.6",
            "audio_topk": "200",
            "text_temperature": "0.5",
            "text_topk": "20",
            "audio_seed": "99",
            "text_seed": "99",
            "max_steps": "4500",
        }
        await engine.stop()


async def test_personaplex_gets_both_prompts_and_never_a_seed_or_a_path() -> None:
    async with serving(ChatRemote()) as remote:
        engine = engine_for(remote, dialect="personaplex", voices=("NATF2", "NATM1"))
        await engine.open(Persona(seed=5))
        await engine.open(Persona(voice="NATM1", text_prompt="You sell tea."))
        assert remote.queries == [
            {"voice_prompt": "NATF2.pt", "text_prompt": ""},
            {"voice_prompt": "NATM1.pt", "text_prompt": "You sell tea."},
        ]
        with pytest.raises(EngineRefused, match="voice"):
            await engine.open(Persona(voice="../../etc/passwd"))
        assert engine.capacity().used == 2
        await engine.stop()


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"\x01",
        b"\x01OggSgarbage",
        b"\x04{no json",
        b"\x04[]",
        b"\x05oops",
        b"\x06",
        b"\x07",
        b"\xfe\1\2",
    ],
    ids=repr,
)
async def test_whatever_else_the_remote_sends_the_call_goes_on(noise: bytes) -> None:
    async with serving(ChatRemote(noise=noise)) as remote:
        engine = engine_for(remote)
        slot = await engine.open()
        heard = await converse(engine, slot, voice(10))
        assert len(heard) == 9 * FRAME and np.abs(heard[FRAME:]).max() > 0.05
        await engine.stop()


async def test_a_lost_call_is_dialled_again_and_begins_a_new_stream() -> None:
    async with serving(ChatRemote(hang_up_after=5)) as remote:
        engine = engine_for(remote, reconnect_for_s=0.2)
        slot = await engine.open()
        await converse(engine, slot, voice(5))
        [line] = engine.lines()
        await until(lambda: not line.up)
        silence = await converse(engine, slot, voice(6))
        assert not silence[5 * FRAME :].any() and slot.counters.missed_ticks >= 5
        await until(lambda: line.up)
        again = await converse(engine, slot, voice(6))
        assert np.abs(again[3 * FRAME :]).max() > 0.05
        assert remote.connections == 2 and engine.capacity().detail["reconnects"] == 1
        assert [OPUS_HEAD in message for message in remote.received].count(True) == 2
        assert not [event for event in slot.take_events() if isinstance(event, SlotEnded)]
        await engine.stop()


@pytest.mark.parametrize(("status", "reason"), [(503, "503"), (401, "key")])
async def test_a_call_that_cannot_come_back_ends_its_slot_and_no_other(status: int, reason: str) -> None:
    async with serving(ChatRemote()) as remote:
        engine = engine_for(remote, reconnect_for_s=0.05)
        lost, kept = await engine.open(), await engine.open()
        await tick(engine)
        remote.status = status
        await engine.lines()[0].close()
        await until(lambda: lost.ended is not None)
        [ended] = [event for event in lost.take_events() if isinstance(event, SlotEnded)]
        assert "lost" in ended.reason and reason in ended.reason
        with pytest.raises(SlotClosed):
            lost.write(voice(1))
        assert len(await converse(engine, kept, voice(4))) >= 3 * FRAME
        lost.close()
        await tick(engine)
        assert engine.capacity().used == 1
        await engine.stop()


@pytest.mark.slow
async def test_four_calls_in_real_time_lose_no_frame() -> None:
    async with serving(ChatRemote("rust")) as remote:
        engine = ChatEngine(Remote(remote.url), slots=4)
        await engine.start()
        slots = [await engine.open() for _ in range(4)]
        said = voice(25)
        for frame in said.reshape(-1, FRAME):
            for slot in slots:
                slot.write(frame)
            await asyncio.wait_for(asyncio.gather(*(slot.read() for slot in slots)), 5)
        assert all(slot.counters.frames >= 25 for slot in slots)
        assert all(slot.counters.missed_ticks <= 2 for slot in slots)
        await engine.stop()
        await until(lambda: remote.open == 0)


async def test_no_message_stops_a_remote_and_we_say_so() -> None:
    async with serving(ChatRemote()) as remote:
        engine = engine_for(remote)
        assert (await engine.open()).interrupt(0) is False
        await engine.stop()


async def test_an_open_given_up_while_dialling_frees_its_row() -> None:
    async with serving(ChatRemote(silent=True)) as remote:
        engine = engine_for(remote)
        opening = asyncio.ensure_future(engine.open())
        await until(lambda: remote.open == 1)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert engine.capacity().used == 0
        await until(lambda: remote.open == 0)
        await engine.stop()


def test_pauses_between_dials_grow_to_a_bound() -> None:
    pauses = backoff()
    assert [next(pauses) for _ in range(6)] == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
