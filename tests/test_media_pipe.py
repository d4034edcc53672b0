"""The pipe between our own processes: what is put in comes out, in order, whatever its size and speed."""

import os
import socket

import pytest

from gateway.media.pipe import LARGEST, Pipe
from tests.phone import bound_socket


@pytest.fixture
def ends() -> tuple[Pipe, Pipe]:
    ours, theirs = Pipe.pair()
    return Pipe(ours), Pipe(theirs)


def things(pipe: Pipe) -> list[object]:
    return [item.thing for item in pipe.take()]


def test_things_arrive_in_order_and_nothing_is_there_before(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    assert far.take() == []
    for number in range(300):
        near.put(number)
    assert near.flush()
    assert things(far) == list(range(300))


def test_a_thing_larger_than_a_message_arrives_whole(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    large = os.urandom(40 * LARGEST)
    near.put("before")
    near.put(large)
    near.put("after")
    near.flush()
    assert things(far) == ["before", large, "after"]


def test_an_open_socket_goes_with_its_thing_and_is_ours_no_more(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    sock, sender = bound_socket(), bound_socket()
    address = sock.getsockname()
    near.put("plain")
    near.put("with a socket", sock)
    near.put("plain again")
    near.flush()
    assert sock.fileno() == -1
    items = far.take()
    assert [len(item.files) for item in items] == [0, 1, 0]
    sender.sendto(b"hello", address)
    with socket.socket(fileno=items[1].files[0]) as theirs:
        theirs.settimeout(2)
        assert theirs.recv(10) == b"hello"


def test_a_large_thing_may_carry_a_socket_too(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    sock, large = bound_socket(), bytes(2 * LARGEST)
    address = sock.getsockname()
    near.put(large, sock)
    near.flush()
    (item,) = far.take()
    with socket.socket(fileno=item.files[0]) as theirs:
        assert item.thing == large and theirs.getsockname() == address


def test_what_the_other_end_has_no_room_for_waits_and_is_sent_later(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    count, block = 200, bytes(LARGEST // 4)
    for number in range(count):
        near.put((number, block))
        near.flush()
    assert near.waiting > 0
    got: list[object] = []
    while len(got) < count:
        got += things(far)
        near.flush()
    assert got == [(number, block) for number in range(count)]


def test_an_end_that_is_gone_is_told_after_what_it_said(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    near.put("last words")
    near.flush()
    near.close()
    assert things(far) == ["last words"]
    with pytest.raises(EOFError):
        far.take()
    far.put("too late")
    with pytest.raises(EOFError):
        far.flush()
    far.close()
    near.close()
