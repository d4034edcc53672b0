"""A route's announcement: before the answer where the caller can hear it then, always before the agent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from engine.echo import greeting_frames
from gateway.audio_file import resampled
from gateway.call import Call
from sip.message import Response
from tests.audio import align
from tests.phone import Phone, speech
from tests.sip_house import House, ack, bye, open_house, reinvite
from tests.sip_wire import OFFER, request

NOTICE = speech()[8_000:16_000]
"""One second, int16 at 8 kHz."""
STEPS = 50
RELIABLE = "Supported: 100rel\r\n"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house(announcements()) as made:
        yield made


def announcements() -> dict[str, bytes]:
    pcm = resampled(NOTICE / np.float32(32_768), 8_000, 24_000)
    return {"moshi": np.rint(pcm * 32_767).astype(np.int16).tobytes()}


class Caller(Phone):
    """A phone at the scripted caller's offer."""

    def __init__(self, house: House) -> None:
        super().__init__(speech("ast_en_far_8k"))
        self.house = house
        port = str(self.sock.getsockname()[1]).encode()
        self.offer = OFFER.replace(b"198.51.100.20", b"127.0.0.1").replace(b"50000", port)

    @property
    def call(self) -> Call:
        (call,) = self.house.switchboard.calls.values()
        return call

    def run(self, steps: int, talk: bool = True) -> None:
        """20 ms each: the caller talks and listens, the media path and the engine tick."""
        bench = self.house.bench
        for _ in range(steps):
            if talk:
                self.peer = ("127.0.0.1", self.call.leg.port)  # type: ignore[union-attr]
                self.say()
            bench.plane.tick(bench.now)
            bench.engine.run_due(bench.now + 0.005)
            self.house.switchboard.deliver_media_events()
            self.house.shell.transmit()
            self.listen(bench.step_number)
            bench.step_number += 1

    def heard_notice(self) -> float:
        """How alike the recording and the best place of what was heard are, 0 to 1."""
        heard = self.heard_pcm() / 32_768
        return align(heard, NOTICE / 32_768).correlation if len(heard) > len(NOTICE) else 0.0

    def agent_hears(self) -> bool:
        return bool(self.house.bench.rows.heard_end[self.call.row])


def pass_time(house: House, seconds: float) -> None:
    """Of the user agent's timers; the media path stands still."""
    agent, until = house.script.agent.ua, house.script.now + seconds
    while (at := agent.get_timer()) is not None and at <= until:
        house.script.now = at
        agent.handle_timer(at)
        house.shell.transmit()
    house.script.now = until


def codes(house: House) -> list[int]:
    """Of the responses to the INVITE since the last look, 100 aside."""
    found = [m.code for m in house.script.sent if isinstance(m, Response) and m.cseq.method == "INVITE"]
    return [code for code in found if code != 100]


def answer_of(house: House, code: int) -> Response:
    (found,) = [m for m in house.script.sent if isinstance(m, Response) and m.code == code]
    house.script.sent.clear()
    return found


def prack(progress: Response, body: bytes | None = None) -> bytes:
    number = progress.headers.get("rseq")
    return request(
        "PRACK", branch="z9hG4bK-p", to_tag=progress.to.tag or "", cseq=2, body=body,
        extra=f"RAck: {number} 1 INVITE\r\n",
    )  # fmt: skip


@pytest.mark.parametrize("delayed", [False, True])
async def test_a_reliable_caller_hears_it_after_his_prack_and_before_the_200(
    house: House, delayed: bool
) -> None:
    caller = Caller(house)
    house.phone_says(request(extra=RELIABLE, body=None if delayed else caller.offer))
    await house.settle()
    progress = answer_of(house, 183)
    assert b"m=audio" in progress.body and progress.headers.get("rseq")
    caller.run(10)
    assert codes(house) == []
    assert not caller.heard or np.abs(caller.heard_pcm()).max() < 200, "nothing but comfort noise yet"
    house.phone_says(prack(progress, caller.offer if delayed else None))
    house.script.sent.clear()
    caller.run(STEPS - 5)
    assert codes(house) == [] and caller.call.answered_at is None, "talking is no answer while it plays"
    caller.run(10)
    assert codes(house) == [200] and caller.heard_notice() > 0.95
    answer = answer_of(house, 200)
    assert answer.body == progress.body
    assert caller.call.answered_at is None and not caller.agent_hears()
    house.phone_says(ack(answer))
    assert caller.call.answered_at is not None
    caller.run(20)
    assert caller.agent_hears()


async def test_without_100rel_it_begins_with_the_183(house: House) -> None:
    caller = Caller(house)
    house.phone_says(request(body=caller.offer))
    await house.settle()
    assert answer_of(house, 183).headers.get("rseq") is None
    caller.run(STEPS + 5, talk=False)
    assert codes(house) == [200] and caller.heard_notice() > 0.95
    house.phone_says(ack(answer_of(house, 200)))
    assert caller.call.answered_at is not None and not caller.agent_hears()


async def test_a_caller_who_wants_our_offer_is_answered_first_and_hears_it_before_the_agent(
    house: House,
) -> None:
    caller = Caller(house)
    house.phone_says(request(body=None))
    await house.settle()
    answer = answer_of(house, 200)
    house.phone_says(request("ACK", branch="z9hG4bK-ack", to_tag=answer.to.tag or "", body=caller.offer))
    caller.run(STEPS - 5)
    assert caller.call.answered_at is None and not caller.agent_hears()
    caller.run(10)
    assert caller.heard_notice() > 0.95 and caller.call.answered_at is not None
    caller.run(20)
    assert caller.agent_hears()


async def test_a_caller_who_holds_us_from_the_first_hears_it_when_he_resumes(house: House) -> None:
    caller = Caller(house)
    house.phone_says(request(body=caller.offer + b"a=inactive\r\n"))
    await house.settle()
    (answer,) = [m for m in house.script.sent if isinstance(m, Response) and m.code == 200]
    house.script.sent.clear()
    house.phone_says(ack(answer))
    caller.run(2 * STEPS, talk=False)
    assert caller.call.answered_at is None
    house.phone_says(reinvite(answer, caller.offer, cseq=2))
    await house.settle()
    caller.run(STEPS + 5)
    assert caller.heard_notice() > 0.95 and caller.call.answered_at is not None


async def test_the_agent_s_first_words_come_after_it_and_none_is_lost() -> None:
    greeting = resampled(greeting_frames().reshape(-1), 24_000, 8_000)
    async with open_house(announcements(), greeting=True) as house:
        caller = Caller(house)
        house.phone_says(request(body=caller.offer))
        await house.settle()
        house.script.sent.clear()
        caller.run(2 * STEPS, talk=False)
        house.phone_says(ack(answer_of(house, 200)))
        caller.run(len(greeting) // 160 + 30, talk=False)
        heard = caller.heard_pcm()[len(NOTICE) + 400 :] / 32_768
        said = align(heard, greeting)
        assert caller.heard_notice() > 0.9 and said.correlation > 0.9
        assert len(said.heard) == len(greeting) and said.lag > 0


@pytest.mark.parametrize("way", ["CANCEL", "BYE"])
async def test_a_caller_who_gives_up_while_it_plays_frees_his_slot(house: House, way: str) -> None:
    caller = Caller(house)
    house.phone_says(request(body=caller.offer))
    await house.settle()
    progress = answer_of(house, 183)
    caller.run(10)
    call = caller.call
    house.phone_says(request("CANCEL", body=None) if way == "CANCEL" else bye(progress))
    await house.settle()
    assert 487 in codes(house) and 200 not in codes(house)
    assert call.ended_by == "caller" and call.answered_at is None
    assert not house.switchboard.calls and house.bench.engine.capacity().used == 0


async def test_a_caller_who_hangs_up_on_it_after_the_answer_frees_his_slot(house: House) -> None:
    caller = Caller(house)
    house.phone_says(request(body=None))
    await house.settle()
    answer = answer_of(house, 200)
    house.phone_says(request("ACK", branch="z9hG4bK-ack", to_tag=answer.to.tag or "", body=caller.offer))
    caller.run(10)
    call = caller.call
    house.phone_says(bye(answer))
    await house.settle()
    assert call.ended_by == "caller" and call.answered_at is None
    assert not house.switchboard.calls and house.bench.engine.capacity().used == 0


async def test_a_caller_whose_prack_or_ack_never_comes_frees_his_slot(house: House) -> None:
    caller = Caller(house)
    for number, extra in enumerate((RELIABLE, "")):
        house.phone_says(
            request(body=caller.offer, extra=extra, call_id=f"call-{number}", branch=f"z9hG4bK-{number}")
        )
        await house.settle()
        caller.run(STEPS + 5)
        pass_time(house, 70.0)
        await house.settle()
        assert not house.switchboard.calls and house.bench.engine.capacity().used == 0
    assert 504 in codes(house)


async def test_a_slot_that_ends_while_it_plays_refuses_the_call(house: House) -> None:
    caller = Caller(house)
    house.phone_says(request(body=caller.offer))
    await house.settle()
    caller.run(10)
    caller.call.end_soon("engine", "the remote is gone")
    await house.settle()
    assert 480 in codes(house) and 200 not in codes(house)
    assert house.bench.engine.capacity().used == 0


async def test_where_all_slots_are_taken_503_comes_at_once_and_no_announcement(house: House) -> None:
    caller = Caller(house)
    for number in range(3):
        house.script.sent.clear()
        house.phone_says(request(body=caller.offer, call_id=f"call-{number}", branch=f"z9hG4bK-{number}"))
        await house.settle()
    assert codes(house) == [503]


async def test_a_number_without_one_is_answered_as_ever(house: House) -> None:
    house.phone_says(request().replace(b"To: <sip:moshi@", b"To: <sip:100@"))
    await house.settle()
    assert codes(house) == [200]
