"""sipp calls us and is called, over real sockets."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from sip.events import (
    CallAnswered,
    CallCancelled,
    CallConfirmed,
    CallEnded,
    CallHeld,
    CallOffered,
    CallResumed,
    Event,
    Registered,
)
from sip.settings import Access, Account, AgentSettings, Credentials, Trunk
from tests.sipp import (
    MEDIA,
    Site,
    answer,
    expect,
    free_port,
    message,
    needs_sipp,
    pause,
    run_sipp,
    scenario,
)

pytestmark = [pytest.mark.peer, needs_sipp]
OPENING = (message("INVITE", 1, tagged=False), expect(100, True), expect(180, True))
CLOSING = (message("BYE", 9, body="-"), expect(200))


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    await made.endpoint.close()


async def play(site: Site, tmp_path: Path, text: str, *options: str, calls: int = 5) -> None:
    """Run a scenario against us; every call of it must go as written."""
    file = tmp_path / "scenario.xml"
    file.write_text(text)
    tcp = "t1" in options or "tn" in options
    _, port = await (site.endpoint.open_tcp if tcp else site.endpoint.open_udp)("127.0.0.1", 0)
    arguments = ["-sf", str(file), f"127.0.0.1:{port}", "-i", "127.0.0.1", "-m", str(calls), "-r", "20"]
    status, screen = await run_sipp(*arguments, "-timeout", "20", "-timeout_error", *options)
    assert status == 0, screen
    await site.until(lambda: site.agent.call_count == 0)


async def test_twenty_calls_at_ten_a_second(site: Site) -> None:
    _, port = await site.endpoint.open_udp("127.0.0.1", 0)
    status, screen = await run_sipp(
        "-sn", "uac", f"127.0.0.1:{port}", "-i", "127.0.0.1", "-m", "20", "-r", "10", "-d", "200"
    )
    assert status == 0, screen
    assert site.count(CallConfirmed) == site.count(CallEnded) == 20
    assert site.agent.counters.malformed == site.agent.counters.rejected == 0


async def test_calls_over_tcp_share_one_connection(site: Site, tmp_path: Path) -> None:
    steps = (*OPENING, expect(200), message("ACK", 1, body="-"), pause(50), *CLOSING)
    await play(site, tmp_path, scenario(*steps), "-t", "t1", calls=20)
    assert site.count(CallConfirmed) == 20


async def test_a_delayed_offer_is_answered_in_the_ack(site: Site, tmp_path: Path) -> None:
    invite = message("INVITE", 1, tagged=False, body="-")
    steps = (
        invite,
        expect(100, True),
        expect(180, True),
        expect(200),
        message("ACK", 1),
        pause(50),
        *CLOSING,
    )
    await play(site, tmp_path, scenario(*steps))
    confirmed = [event for event in site.events if isinstance(event, CallConfirmed)]
    assert len(confirmed) == 5 and all(event.media.remote_port == 6000 for event in confirmed)


async def test_hold_and_resume_by_reinvite(site: Site, tmp_path: Path) -> None:
    steps = [*OPENING, expect(200), message("ACK", 1, body="-")]
    for cseq, direction in ((2, "sendonly"), (3, "sendrecv")):
        steps += [message("INVITE", cseq, body=f"a={direction}\n"), expect(100, True), expect(200)]
        steps += [message("ACK", cseq, body="-"), pause(30)]
    await play(site, tmp_path, scenario(*steps, *CLOSING))
    assert site.count(CallHeld) == site.count(CallResumed) == 5


async def test_a_caller_who_cancels(site: Site, tmp_path: Path) -> None:
    def ring_only(event: Event) -> None:
        if isinstance(event, CallOffered):
            site.agent.ring(event.call, site.endpoint.now())

    site.act = ring_only
    # CANCEL and the ACK of the 487 carry the branch of the INVITE, so many messages before
    cancel = message("CANCEL", 1, tagged=False, body="-").replace("[branch]", "[branch-3]")
    ack = message("ACK", 1, tagged=False, body="-").replace("[branch]", "[branch-6]")
    ack = ack.replace("[remote_port]>\nCall", "[remote_port]>[peer_tag_param]\nCall")
    steps = (OPENING[0], expect(100), expect(180), cancel, expect(200), expect(487), ack)
    await play(site, tmp_path, scenario(*steps))
    assert site.count(CallCancelled) == site.count(CallEnded) == 5


async def test_we_hang_up_and_sipp_says_goodbye(site: Site, tmp_path: Path) -> None:
    def short(event: Event) -> None:
        site.pick_up(event)
        if isinstance(event, CallConfirmed):
            site.agent.hang_up(event.call, site.endpoint.now())

    site.act = short
    steps = (*OPENING, expect(200), message("ACK", 1, body="-"), '<recv request="BYE"/>', answer(200))
    await play(site, tmp_path, scenario(*steps))
    ended = [event for event in site.events if isinstance(event, CallEnded)]
    assert {(event.by, event.code) for event in ended} == {("us", 200)}


@pytest.mark.parametrize("mode", ["u1", "t1"])
async def test_we_call_sipp(site: Site, mode: str) -> None:
    port = free_port()
    await site.endpoint.open_udp("127.0.0.1", 0)
    await site.endpoint.open_tcp("127.0.0.1", 0)

    def hang_up(event: Event) -> None:
        if isinstance(event, CallAnswered):
            site.agent.hang_up(event.call, site.endpoint.now())

    site.act = hang_up
    suffix = "" if mode == "u1" else ";transport=tcp"

    arguments = ["-sn", "uas", "-i", "127.0.0.1", "-p", str(port), "-m", "5", "-t", mode, "-timeout", "20"]
    peer = asyncio.create_task(run_sipp(*arguments))
    if mode == "t1":
        await site.connectable(port)  # a refused connection would be final, a lost datagram is not
    for _ in range(5):
        site.agent.invite(f"sip:sipp@127.0.0.1:{port}{suffix}", MEDIA, site.endpoint.now())
    site.endpoint.transmit()
    await site.until(lambda: site.count(CallEnded) == 5)
    status, screen = await peer
    assert status == 0, screen
    assert site.count(CallAnswered) == 5


async def test_a_caller_with_digest_is_let_in_and_one_without_is_not(tmp_path: Path) -> None:
    trunk = Trunk("pbx", (), Credentials("1000", "secret"))
    site = Site(AgentSettings(access=Access(trunks=(trunk,), algorithms=("MD5",))))
    signed = message("INVITE", 2, tagged=False, extra="[authentication username=1000 password=secret]\n")
    steps = (
        message("INVITE", 1, tagged=False),
        expect(401).replace("<recv", '<recv auth="true"'),
        message("ACK", 1, tagged=False, body="-").replace("[branch]", "[branch-2]"),
        signed,
        *(expect(code, True) for code in (100, 180)),
        expect(200),
        message("ACK", 2, body="-"),
        *CLOSING,
    )
    await play(site, tmp_path, scenario(*steps))
    await site.endpoint.close()
    assert site.count(CallConfirmed) == 5
    assert {event.trunk for event in site.events if isinstance(event, CallOffered)} == {"pbx"}


async def test_session_timers_and_update_with_sipp(site: Site, tmp_path: Path) -> None:
    wish = "Supported: timer\nSession-Expires: 100;refresher=uac\n"
    check = '<action><ereg regexp="100;refresher=uac" search_in="hdr" header="Session-Expires:" \
check_it="true" assign_to="1"/></action>'
    answered = '<recv response="200" rrs="true">' + check + "</recv>"
    steps = (
        message("INVITE", 1, tagged=False, extra=wish),
        *(expect(code, True) for code in (100, 180)),
        answered,
        message("ACK", 1, body="-"),
        message("UPDATE", 2, body="-", extra=wish),
        answered,
        *CLOSING,
    )
    text = scenario(*steps).replace("</scenario>", '<Reference variables="1"/></scenario>')
    await play(site, tmp_path, text)
    assert site.count(CallConfirmed) == 5 and site.agent.counters.rejected == 0


MOVED = "Contact: <sip:elsewhere@127.0.0.1:9>\n"


@pytest.mark.parametrize(("code", "extra"), [(302, MOVED), (486, ""), (603, "")])
async def test_a_refusal_by_sipp_ends_our_call(site: Site, tmp_path: Path, code: int, extra: str) -> None:
    refusal = answer(code).replace("[last_To:]\n", f"[last_To:];tag=[call_number]\n{extra}")
    file = tmp_path / "uas.xml"
    file.write_text(scenario('<recv request="INVITE"/>', refusal, '<recv request="ACK"/>'))
    port = free_port()
    await site.endpoint.open_udp("127.0.0.1", 0)
    arguments = ["-sf", str(file), "-i", "127.0.0.1", "-p", str(port), "-m", "1", "-timeout", "20"]
    peer = asyncio.create_task(run_sipp(*arguments))
    site.agent.invite(f"sip:sipp@127.0.0.1:{port}", MEDIA, site.endpoint.now())
    site.endpoint.transmit()
    await site.until(lambda: site.count(CallEnded) == 1)
    status, screen = await peer
    assert status == 0, screen
    ended = next(event for event in site.events if isinstance(event, CallEnded))
    assert (ended.by, ended.code) == ("peer", code) and not site.count(CallAnswered)


async def test_we_register_with_digest_at_a_registrar(site: Site, tmp_path: Path) -> None:
    challenge = answer(401).replace(
        "[last_To:]\n",
        "[last_To:];tag=[call_number]\n"
        'WWW-Authenticate: Digest realm="pbx", nonce="47ebe028cda119c3", algorithm=MD5, qop="auth"\n',
    )
    check = '<action><verifyauth assign_to="1" username="1000" password="secret"/></action>'
    granted = answer(200).replace(
        "[last_To:]\n", "[last_To:];tag=[call_number]\n[last_Contact:];expires=300\n"
    )
    steps = (
        '<recv request="REGISTER"/>',
        challenge,
        f'<recv request="REGISTER">{check}</recv>',
        '<nop><action><test assign_to="2" variable="1" compare="equal" value="1"/></action></nop>',
        granted,
        '<Reference variables="1,2"/>',
    )
    file = tmp_path / "registrar.xml"
    file.write_text(scenario(*steps))
    port = free_port()
    await site.endpoint.open_udp("127.0.0.1", 0)
    arguments = ["-sf", str(file), "-i", "127.0.0.1", "-p", str(port), "-m", "1", "-timeout", "20"]
    peer = asyncio.create_task(run_sipp(*arguments))
    account = Account("desk", f"sip:127.0.0.1:{port}", "sip:1000@pbx", Credentials("1000", "secret"))
    site.agent.register(account, site.endpoint.now())
    site.endpoint.transmit()
    await site.until(lambda: site.count(Registered) == 1)
    status, screen = await peer
    assert status == 0, screen


@pytest.mark.slow
async def test_two_hundred_calls_at_twenty_a_second(site: Site) -> None:
    _, port = await site.endpoint.open_udp("127.0.0.1", 0)
    target = f"127.0.0.1:{port}"
    status, screen = await run_sipp(
        "-sn", "uac", target, "-i", "127.0.0.1", "-m", "200", "-r", "20", "-d", "500"
    )
    assert status == 0, screen
    assert site.count(CallConfirmed) == site.count(CallEnded) == 200


TRUNK = Trunk("pbx", ("203.0.113.0/24",), Credentials("100", "secret"))
CLOSED = Access(open=False, trunks=(replace(TRUNK, credentials=None),))
ROOMY = Access(trunks=(TRUNK,), stranger_per_s=1_000, failures_before_ban=10**6)


SCRIPTS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


@pytest.mark.skipif(
    shutil.which("sipvicious_svmap", path=SCRIPTS) is None, reason="sipvicious is not installed"
)
@pytest.mark.parametrize("access", [CLOSED, ROOMY], ids=["addresses", "digest"])
@pytest.mark.parametrize(
    "attack",
    [
        ("sipvicious_svmap", "127.0.0.1", "-p{port}"),
        ("sipvicious_svwar", "-e95-105", "-p{port}", "-mINVITE", "127.0.0.1"),
        ("sipvicious_svwar", "-e95-105", "-p{port}", "-mREGISTER", "127.0.0.1"),
        ("sipvicious_svcrack", "-u100", "-r1-30", "-p{port}", "127.0.0.1"),
    ],
    ids=["svmap", "svwar-invite", "svwar-register", "svcrack"],
)
async def test_sipvicious_finds_nothing(access: Access, attack: tuple[str, ...], tmp_path: Path) -> None:
    site = Site(AgentSettings(access=access))
    _, port = await site.endpoint.open_udp("127.0.0.1", 0)
    process = await asyncio.create_subprocess_exec(
        shutil.which(attack[0], path=SCRIPTS) or attack[0],
        *(word.format(port=port) for word in attack[1:]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    await site.endpoint.close()
    assert b"found nothing" in output, output.decode()
    assert site.agent.counters.received > 0 and not site.events
