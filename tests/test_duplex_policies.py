"""Who gives way to whom: every race between caller and agent, stepped by hand in blocks of 20 ms."""

from collections.abc import Iterable

import pytest

from gateway.duplex import (
    MS,
    AgentStarted,
    AgentStopped,
    CallerStarted,
    CallerStopped,
    Ducked,
    Duplex,
    DuplexEvent,
    DuplexSettings,
    Give,
    Held,
    Interrupted,
    Policy,
    Resumed,
)

BLOCK = 480
SETTINGS = DuplexSettings()


class Room:
    """A caller and an agent around one Duplex; what the detector would say is counted here."""

    def __init__(self, policy: Policy) -> None:
        self.duplex = Duplex(policy)
        self.at = 0
        self.speech = self.silence = 0.0
        self.events: list[DuplexEvent] = []
        self.gives: list[Give] = []
        self.sent = 0

    def go(self, ms: int, caller: bool = False, agent: bool = False, sure: bool = True) -> "Room":
        for _ in range(ms // 20):
            self.at += BLOCK
            self._detect(caller)
            self.duplex.hear(self.at, self.speech, self.silence, sure=sure)
            self.duplex.speak(self.at, agent, self.sent)
            self.sent += BLOCK if self.duplex.give in (Give.WHOLE, Give.LOW) else 0
            self.gives.append(self.duplex.give)
            self.events += self.duplex.take_events()
        return self

    def _detect(self, caller: bool) -> None:
        if caller:
            self.speech, self.silence = self.speech + 20, 0.0
        elif self.speech:
            self.silence += 20
            if self.silence >= 320:
                self.speech = 0.0

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]

    def only(self, kind: type) -> list[DuplexEvent]:
        return [event for event in self.events if isinstance(event, kind)]


def kinds_of(events: Iterable[DuplexEvent]) -> set[type]:
    return {type(event) for event in events}


@pytest.mark.parametrize("policy", [Policy.MODEL, Policy.NEVER])
def test_model_and_never_leave_the_agents_voice_alone_and_tell_what_happens(policy: Policy) -> None:
    room = Room(policy).go(400, agent=True).go(2_000, caller=True, agent=True).go(1_000)
    assert set(room.gives) == {Give.WHOLE}
    assert room.kinds() == [AgentStarted, CallerStarted, CallerStopped, AgentStopped]
    assert room.only(CallerStarted) == [CallerStarted(400 * MS, over_agent=True)]


def test_duck_lowers_within_40_ms_then_holds_then_cuts() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True).go(600, caller=True, agent=True)
    begun = 1_000 * MS
    assert room.kinds() == [AgentStarted, CallerStarted, Ducked, Held, Interrupted]
    ducked, held, cut = room.events[2:]
    assert ducked.at - begun == 40 * MS
    assert held.at - begun == 120 * MS
    assert cut.at - begun == 500 * MS
    assert room.duplex.give is Give.NOTHING


def test_what_the_caller_heard_is_what_was_sent_before_the_hold() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True).go(600, caller=True, agent=True)
    (cut,) = room.only(Interrupted)
    assert isinstance(cut, Interrupted)
    assert cut.heard == (1_000 + 100) * MS


def test_cut_falls_silent_without_ducking_and_cuts_what_outlasts_a_backchannel() -> None:
    room = Room(Policy.CUT).go(1_000, agent=True).go(700, caller=True, agent=True)
    assert room.kinds() == [AgentStarted, CallerStarted, Held, Interrupted]
    assert room.only(Held)[0].at - 1_000 * MS == 160 * MS
    assert room.only(Interrupted)[0].at - 1_000 * MS == 500 * MS


@pytest.mark.parametrize("length", [20, 60, 100, 200, 300, 400, 480])
def test_a_backchannel_does_not_stop_a_ducked_agent(length: int) -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True).go(length, caller=True, agent=True).go(600, agent=True)
    assert not room.only(Interrupted)
    assert room.duplex.give is Give.WHOLE
    if length > 20:
        (resumed,) = room.only(Resumed)
        assert resumed == Resumed(resumed.at, "passed")
        assert resumed.at - (1_000 + length) * MS == SETTINGS.forget_ms * MS


def test_something_loud_lowers_the_agent_at_once_and_not_for_long() -> None:
    duplex = Duplex(Policy.DUCK)
    events: list[DuplexEvent] = []
    for block in range(100):
        duplex.hear(block * BLOCK, 0.0, 0.0, loud=50 <= block < 80)  # a vacuum cleaner: loud and no speech
        duplex.speak(block * BLOCK, True, block * BLOCK)
        events += duplex.take_events()
    lowered, back = events[1:]
    assert lowered == Ducked(50 * BLOCK)
    assert back == Resumed(50 * BLOCK + int(SETTINGS.doubt_ms) * MS, "passed")
    duplex.hear(101 * BLOCK, 0.0, 0.0, loud=True)
    assert duplex.give is Give.LOW


def test_while_the_echo_is_not_known_what_is_loud_does_not_lower_the_agent() -> None:
    duplex = Duplex(Policy.DUCK)
    for block in range(200):
        duplex.hear(block * BLOCK, 0.0, 0.0, loud=block >= 50, sure=block >= 150)
        duplex.speak(block * BLOCK, True, block * BLOCK)
        if duplex.give is not Give.WHOLE:
            break
    assert block == 150


@pytest.mark.parametrize(
    ("policy", "kinds"), [(Policy.DUCK, [Ducked, Held, Interrupted]), (Policy.CUT, [Held, Interrupted])]
)
def test_while_the_echo_is_not_known_speech_must_last_longer_and_is_cut_for_all_the_same(
    policy: Policy, kinds: list[type]
) -> None:
    room = Room(policy).go(1_000, agent=True, sure=False).go(600, caller=True, agent=True, sure=False)
    assert room.kinds() == [AgentStarted, CallerStarted, *kinds]
    after = {type(event): event.at - 1_000 * MS for event in room.events}
    assert after[Held] == 200 * MS
    assert after[Interrupted] == SETTINGS.cut_ms * MS
    assert after.get(Ducked, 100 * MS) == 100 * MS


def test_a_burst_taken_for_speech_changes_nothing_while_the_echo_is_not_known() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True, sure=False)
    room.go(80, caller=True, agent=True, sure=False).go(1_000, agent=True, sure=False)
    assert set(room.gives) == {Give.WHOLE}


def test_speech_that_was_loud_first_stays_lowered_until_it_is_held() -> None:
    duplex = Duplex(Policy.DUCK)
    gives = []
    for block in range(40):
        speech = max(0, block - 24) * 20.0  # the model takes 80 ms to say so
        duplex.hear(block * BLOCK, speech, 0.0, loud=block >= 20)
        duplex.speak(block * BLOCK, True, block * BLOCK)
        gives.append(duplex.give)
    assert gives[20:30] == [Give.LOW] * 10
    assert gives[30] is Give.HELD
    assert [type(event) for event in duplex.take_events()] == [AgentStarted, Ducked, CallerStarted, Held]


@pytest.mark.parametrize("policy", [Policy.CUT, Policy.MODEL, Policy.NEVER])
def test_loudness_alone_moves_no_other_policy(policy: Policy) -> None:
    duplex = Duplex(policy)
    for block in range(40):
        duplex.hear(block * BLOCK, 0.0, 0.0, loud=block >= 20)
        duplex.speak(block * BLOCK, True, block * BLOCK)
        assert duplex.give is Give.WHOLE


@pytest.mark.parametrize("length", [20, 140, 300, 480])
def test_a_cough_or_a_backchannel_does_not_cut_under_policy_cut(length: int) -> None:
    room = Room(Policy.CUT).go(1_000, agent=True).go(length, caller=True, agent=True).go(600, agent=True)
    assert not room.only(Interrupted)
    assert len(room.only(Held)) == (length > 140)
    assert room.duplex.give is Give.WHOLE


def test_two_backchannels_in_one_talkspurt_do_not_add_up() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True)
    for _ in range(4):
        room.go(300, caller=True, agent=True).go(280, agent=True)
    assert not room.only(Interrupted)
    assert len(room.only(CallerStarted)) == 1


def test_a_breath_between_words_does_not_restart_the_count() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True)
    room.go(260, caller=True, agent=True).go(100, agent=True).go(260, caller=True, agent=True)
    assert len(room.only(Interrupted)) == 1


def test_a_caller_who_is_still_talking_when_the_agent_begins_does_not_cut_it_at_once() -> None:
    room = Room(Policy.DUCK).go(2_000, caller=True).go(400, caller=True, agent=True)
    assert not room.only(Interrupted)
    assert room.only(AgentStarted) == [AgentStarted(2_020 * MS, over_caller=True)]
    room.go(200, caller=True, agent=True)
    assert len(room.only(Interrupted)) == 1


def test_a_caller_who_ends_as_the_agent_begins_changes_nothing() -> None:
    room = Room(Policy.DUCK).go(2_000, caller=True).go(20, caller=True, agent=True).go(1_000, agent=True)
    assert set(room.gives) == {Give.WHOLE}


def test_after_the_engine_has_yielded_the_agent_is_heard_again_while_the_caller_still_talks() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True).go(600, caller=True, agent=True)
    room.duplex.yielded(room.at)
    room.go(400, caller=True, agent=True)
    assert room.duplex.give is Give.WHOLE
    assert len(room.only(Interrupted)) == 1
    assert room.only(Resumed) == [Resumed(1_760 * MS, "yielded")]


def test_the_next_talkspurt_cuts_again() -> None:
    room = Room(Policy.CUT).go(1_000, agent=True).go(600, caller=True, agent=True)
    room.duplex.yielded(room.at)
    room.go(400, agent=True).go(600, caller=True, agent=True)
    assert len(room.only(Interrupted)) == 2


def test_an_engine_that_cannot_be_told_is_muted_until_it_pauses() -> None:
    room = Room(Policy.CUT).go(1_000, agent=True).go(1_000, caller=True, agent=True)
    assert room.duplex.give is Give.NOTHING
    room.go(380, caller=True)
    assert room.duplex.give is Give.NOTHING
    room.go(40)
    assert room.duplex.give is Give.WHOLE
    assert room.only(Resumed)[-1] == Resumed(room.only(Resumed)[-1].at, "yielded")


def test_the_watchdog_frees_an_agent_whose_engine_never_yields() -> None:
    room = Room(Policy.CUT).go(1_000, agent=True).go(4_700, caller=True, agent=True)
    (resumed,) = room.only(Resumed)
    assert resumed == Resumed(resumed.at, "watchdog")
    assert resumed.at - room.only(Interrupted)[0].at == SETTINGS.unyielding_ms * MS


def test_the_watchdog_frees_an_agent_held_by_a_doubt_that_never_ends() -> None:
    duplex = Duplex(Policy.DUCK)
    for at in range(0, 200 * BLOCK, BLOCK):  # a detector stuck at 200 ms of speech
        duplex.hear(at, 200.0 if at > 20 * BLOCK else 0.0, 0.0)
        duplex.speak(at, True, at)
    assert duplex.give is Give.WHOLE
    assert kinds_of(duplex.take_events()) == {AgentStarted, CallerStarted, Held, Resumed}


def test_yielded_without_a_cut_changes_nothing() -> None:
    duplex = Duplex(Policy.DUCK)
    duplex.yielded(0)
    assert duplex.give is Give.WHOLE
    assert duplex.take_events() == []


def test_an_agent_that_stops_by_itself_while_ducked_is_not_cut_later() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True).go(320, agent=False)
    room.go(2_000, caller=True).go(400)
    assert room.kinds() == [AgentStarted, CallerStarted, Ducked, AgentStopped, Resumed, CallerStopped]


def test_an_agent_that_ends_while_held_is_not_let_loose_over_the_caller() -> None:
    room = Room(Policy.DUCK).go(1_000, agent=True).go(200, caller=True, agent=True).go(280, caller=True)
    assert room.duplex.give is Give.HELD
    room.go(40, caller=True)
    assert len(room.only(Interrupted)) == 1


def test_silence_tells_nothing() -> None:
    room = Room(Policy.DUCK).go(5_000)
    assert room.events == []


def test_events_come_with_the_times_of_what_they_tell() -> None:
    room = Room(Policy.MODEL).go(200).go(600, caller=True).go(1_000)
    started, stopped = room.events
    assert started == CallerStarted(200 * MS, over_agent=False)
    assert stopped == CallerStopped(800 * MS)
    room = Room(Policy.MODEL).go(200).go(600, agent=True).go(1_000)
    assert room.events == [AgentStarted(220 * MS, over_caller=False), AgentStopped(820 * MS)]
