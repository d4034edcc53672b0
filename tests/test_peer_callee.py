"""Real programs that we call: sipp that echoes our audio, challenges us or never answers; and a baresip that
has registered with us."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sip.events import CallAnswered, CallEnded, CallRinging, Event
from sip.settings import Access, AgentSettings, Credentials, Trunk
from tests.audio import likeness, read_wav, steady_noise, write_wav
from tests.peers import LOOPBACK, ROOT, Program, need
from tests.sipp import MEDIA, Site, answer, free_port, needs_sipp, run_sipp, scenario
from tests.softphone import CONFIG, free_tcp_port

pytestmark = pytest.mark.peer
RATE = 8_000
TAGGED = "[last_To:];tag=[call_number]\n"


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    await made.endpoint.close()


@needs_sipp
def test_a_file_that_sipp_echoes_comes_back_as_it_was(tmp_path: Path) -> None:
    port = free_port()
    speech = write_wav(tmp_path / "speech.wav", steady_noise(4, RATE), RATE)
    # Its media port is even, and the two above it are its own too.
    command = [
        "sipp",
        "-sn",
        "uas",
        "-i",
        LOOPBACK,
        "-p",
        str(port),
        "-mp",
        str(free_port() & ~3),
        "-rtp_echo",
    ]
    command += ["-m", "1", "-nostdin", "-timeout", "30"]
    call = [sys.executable, "-m", "gateway", "call", f"sip:echo@{LOOPBACK}:{port}", "--in", str(speech)]
    call += ["--out", "both.wav", "--tail", "1"]
    with Program(command, tmp_path, {**os.environ, "TERM": "dumb"}):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    both, rate = read_wav(tmp_path / "both.wav")
    said, heard = both[:, 0], both[:, 1]
    assert likeness(heard[rate : 4 * rate], said, rate) >= 0.95


async def called(site: Site, tmp_path: Path, *steps: str, credentials: Credentials | None = None) -> None:
    """Call a sipp that follows these steps; all of them must happen."""
    file = tmp_path / "uas.xml"
    file.write_text(scenario(*steps))
    port = free_port()
    await site.endpoint.open_udp(LOOPBACK, 0)
    arguments = ["-sf", str(file), "-i", LOOPBACK, "-p", str(port), "-m", "1", "-timeout", "20"]
    peer = asyncio.create_task(run_sipp(*arguments))
    site.agent.invite(f"sip:sipp@{LOOPBACK}:{port}", MEDIA, site.endpoint.now(), credentials=credentials)
    site.endpoint.transmit()
    await site.until(lambda: site.count(CallEnded) == 1)
    status, screen = await peer
    assert status == 0, screen


OK = """<send retrans="500"><![CDATA[

SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:];tag=[call_number]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:sipp@[local_ip]:[local_port]>
Content-Type: application/sdp
Content-Length: [len]

v=0
o=- 1 1 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio 6000 RTP/AVP 0
]]></send>"""


@needs_sipp
@pytest.mark.parametrize(("code", "header"), [(401, "WWW"), (407, "Proxy")])
async def test_sipp_asks_who_we_are_and_checks_it(site: Site, tmp_path: Path, code: int, header: str) -> None:
    challenge = answer(code).replace(
        "[last_To:]\n", f'{TAGGED}{header}-Authenticate: Digest realm="pbx", nonce="47ebe028", qop="auth"\n'
    )
    kind = "" if code == 401 else ' auth_header="proxy-authorization"'
    check = f'<action><verifyauth assign_to="1" username="1000" password="secret"{kind}/></action>'
    if code == 407:  # this sipp looks into Authorization alone; that the header is there must do
        check = (
            '<action><ereg regexp="username=.1000.*response=" search_in="hdr" header="Proxy-Authorization:"'
            ' check_it="true" assign_to="1"/></action>'
        )

    def hang_up(event: Event) -> None:
        if isinstance(event, CallAnswered):
            site.agent.hang_up(event.call, site.endpoint.now())

    site.act = hang_up
    judged = '<nop><action><test assign_to="2" variable="1" compare="equal" value="1"/></action></nop>'
    steps = (
        '<recv request="INVITE"/>',
        challenge,
        '<recv request="ACK"/>',
        f'<recv request="INVITE">{check}</recv>',
        *((judged,) if code == 401 else ()),
        OK,
        '<recv request="ACK"/>',
        '<recv request="BYE"/>',
        answer(200),
        f'<Reference variables="{"1,2" if code == 401 else "1"}"/>',
    )
    await called(site, tmp_path, *steps, credentials=Credentials("1000", "secret"))
    assert site.count(CallAnswered) == 1


@needs_sipp
async def test_we_give_up_a_sipp_that_only_rings(site: Site, tmp_path: Path) -> None:
    def give_up(event: Event) -> None:
        if isinstance(event, CallRinging):
            site.agent.hang_up(event.call, site.endpoint.now())

    site.act = give_up
    terminated = answer(487).replace("[last_To:]\n", TAGGED).replace("[last_CSeq:]", "CSeq: 1 INVITE")
    steps = (
        '<recv request="INVITE"/>',
        answer(180).replace("[last_To:]\n", TAGGED),
        '<recv request="CANCEL"/>',
        answer(200).replace("[last_To:]\n", TAGGED),
        terminated,
        '<recv request="ACK"/>',
    )
    await called(site, tmp_path, *steps)
    ended = next(event for event in site.events if isinstance(event, CallEnded))
    assert ended.code == 487 and not site.count(CallAnswered)


@pytest.mark.skipif(shutil.which("baresip") is None, reason="baresip is not installed")
async def test_a_baresip_registers_with_us_is_called_and_leaves(tmp_path: Path) -> None:
    trunk = Trunk("desk", (), Credentials("bob", "secret"))
    site = Site(AgentSettings(registrar=True, access=Access(trunks=(trunk,), algorithms=("MD5",))))

    def hang_up(event: Event) -> None:
        if isinstance(event, CallAnswered):
            site.agent.hang_up(event.call, site.endpoint.now())

    site.act = hang_up
    _, port = await site.endpoint.open_udp(LOOPBACK, 0)
    modules = next(
        p for p in ("/usr/lib/baresip/modules", "/usr/local/lib/baresip/modules") if Path(p).is_dir()
    )
    text = CONFIG.format(
        address=LOOPBACK, port=free_port(), source=write_wav(tmp_path / "s.wav", steady_noise(5, RATE), RATE),
        modules=modules, recordings=tmp_path, control=free_tcp_port(),
    )  # fmt: skip
    (tmp_path / "config").write_text(text)
    account = f"<sip:bob@{LOOPBACK}:{port}>;auth_user=bob;auth_pass=secret;regint=60;answermode=auto"
    (tmp_path / "accounts").write_text(account + "\n")
    (tmp_path / "contacts").write_text("")
    with Program([need("baresip", "baresip-core"), "-f", str(tmp_path)], tmp_path) as phone:
        await site.until(lambda: bool(site.agent.phones_of("bob", site.endpoint.now())))
        ((uri, destination),) = site.agent.phones_of("bob", site.endpoint.now())
        site.agent.invite(uri, MEDIA, site.endpoint.now(), destination=destination)
        site.endpoint.transmit()
        await site.until(lambda: site.count(CallEnded) == 1)
        assert site.count(CallAnswered) == 1
        await asyncio.to_thread(phone.end)
        await site.until(lambda: not site.agent.phones_of("bob", site.endpoint.now()))
    await site.endpoint.close()
