"""Calls that last too long, and callers who fall silent."""

from gateway.watch import Action, CallWatch, WatchLimits

QUIET, VOICE = -70.0, -25.0


def test_without_limits_a_call_lasts_for_ever() -> None:
    watch = CallWatch(WatchLimits(), 0.0)
    assert watch.look(1e6, QUIET, QUIET, False) is Action.NOTHING


def test_a_call_ends_when_it_has_lasted_as_long_as_it_may() -> None:
    watch = CallWatch(WatchLimits(max_call_s=60.0), 100.0)
    assert watch.look(159.9, VOICE, VOICE, False) is Action.NOTHING
    assert watch.look(160.0, VOICE, VOICE, False) is Action.END_LONG


def test_a_silent_caller_is_asked_once_and_then_the_call_ends() -> None:
    watch = CallWatch(WatchLimits(caller_silence_s=10.0), 0.0)
    seen = [(t, watch.look(float(t), QUIET, QUIET, False)) for t in range(25)]
    assert [(t, a) for t, a in seen if a is not Action.NOTHING][:2] == [
        (10, Action.ASK),
        (20, Action.END_SILENT),
    ]


def test_the_question_itself_does_not_count_as_an_answer() -> None:
    watch = CallWatch(WatchLimits(caller_silence_s=10.0), 0.0)
    assert watch.look(10.0, QUIET, QUIET, False) is Action.ASK
    assert watch.look(11.0, QUIET, VOICE, False) is Action.NOTHING
    assert watch.look(20.0, QUIET, QUIET, False) is Action.END_SILENT


def test_who_answers_is_left_alone() -> None:
    watch = CallWatch(WatchLimits(caller_silence_s=10.0), 0.0)
    assert watch.look(10.0, QUIET, QUIET, False) is Action.ASK
    assert watch.look(15.0, VOICE, QUIET, False) is Action.NOTHING
    assert watch.look(24.0, QUIET, QUIET, False) is Action.NOTHING
    assert watch.look(25.0, QUIET, QUIET, False) is Action.ASK


def test_nobody_owes_an_answer_while_the_agent_speaks_or_the_call_is_held() -> None:
    watch = CallWatch(WatchLimits(caller_silence_s=10.0), 0.0)
    assert watch.look(9.0, QUIET, VOICE, False) is Action.NOTHING
    assert watch.look(18.0, QUIET, QUIET, False) is Action.NOTHING
    assert watch.look(100.0, QUIET, QUIET, True) is Action.NOTHING
    assert watch.look(109.0, QUIET, QUIET, False) is Action.NOTHING
    assert watch.look(110.0, QUIET, QUIET, False) is Action.ASK
