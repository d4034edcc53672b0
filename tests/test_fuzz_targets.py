"""Every fuzz target runs over its seeds and its past findings, without a fuzzer."""

import random

import pytest

from fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_whole_cut_and_damaged(name: str) -> None:
    rng = random.Random(name)
    for seed in seeds(name)[:60]:
        TARGETS[name](seed)
        TARGETS[name](seed[: rng.randint(0, len(seed))])
        damaged = bytearray(seed)
        for _ in range(min(3, len(damaged))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        TARGETS[name](bytes(damaged))


def test_a_target_that_meets_an_error_that_is_not_the_peers_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> object:
        raise IndexError("a bug")

    monkeypatch.setattr("fuzz.targets.parse_message", broken)
    with pytest.raises(IndexError):
        TARGETS["message"](b"x")
