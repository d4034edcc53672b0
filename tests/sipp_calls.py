"""sipp calling a gateway: its scenarios, and one run of it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.peers import LOOPBACK, Program, free_udp_port, need

UAC = """\
<?xml version="1.0" encoding="ISO-8859-1" ?>
<!DOCTYPE scenario SYSTEM "sipp.dtd">
<scenario name="call">
  <send retrans="500" start_rtd="setup"><![CDATA[
INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch];rport
Max-Forwards: 70
From: <sip:sipp@[local_ip]:[local_port]>;tag=[pid]t[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: <sip:sipp@[local_ip]:[local_port]>
Content-Type: application/sdp
Content-Length: [len]

v=0
o=- 1 1 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [media_port] RTP/AVP {payloads}
{attributes}
]]></send>
  <recv response="100" optional="true"/>
  <recv response="180" optional="true"/>
  <recv response="{final}" rtd="setup" rrs="true"/>
  <send><![CDATA[
ACK {ack_uri} SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch={ack_branch};rport
Max-Forwards: 70
From: <sip:sipp@[local_ip]:[local_port]>;tag=[pid]t[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
Content-Length: 0

]]></send>
{rest}
</scenario>
"""
HELD = """\
  <pause milliseconds="{milliseconds}"/>
  <send retrans="500"><![CDATA[
BYE [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch];rport
Max-Forwards: 70
From: <sip:sipp@[local_ip]:[local_port]>;tag=[pid]t[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
Content-Length: 0

]]></send>
  <recv response="200"/>
"""
OPTIONS = """\
<?xml version="1.0" encoding="ISO-8859-1" ?>
<!DOCTYPE scenario SYSTEM "sipp.dtd">
<scenario name="ping">
  <send retrans="500"><![CDATA[
OPTIONS sip:[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch];rport
Max-Forwards: 70
From: <sip:sipp@[local_ip]:[local_port]>;tag=[pid]t[call_number]
To: <sip:[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 OPTIONS
Accept: application/sdp
Content-Length: 0

]]></send>
  <recv response="200">
    <action>
      <ereg regexp="INVITE" search_in="hdr" header="Allow:" check_it="true" assign_to="1"/>
      <ereg regexp="application/sdp" search_in="hdr" header="Accept:" check_it="true" assign_to="2"/>
    </action>
  </recv>
  <Reference variables="1,2"/>
</scenario>
"""


def uac(hold_ms: int = 2_000, final: int = 200, payloads: str = "0 101", attributes: str = "") -> str:
    """A caller's scenario: INVITE, the expected final answer, ACK, and after 200 a pause and BYE.

    An ACK to a refusal belongs to the INVITE's transaction, and so has its branch (RFC 3261 §17.1.1.3).
    """
    answered = final == 200
    mapped = attributes or "a=rtpmap:0 PCMU/8000\na=rtpmap:101 telephone-event/8000\na=fmtp:101 0-15"
    return UAC.format(
        payloads=payloads,
        attributes=mapped,
        final=final,
        ack_uri="[next_url]" if answered else "sip:[service]@[remote_ip]:[remote_port]",
        ack_branch="[branch]" if answered else "[branch-3]",
        rest=HELD.format(milliseconds=hold_ms) if answered else "",
    )


class Sipp(Program):
    """One run of sipp's scenario against a gateway."""

    def __init__(self, folder: Path, scenario: str, port: int, calls: int = 1, rate: int = 10) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scenario.xml").write_text(scenario)
        self.statistics = folder / "statistics.csv"
        command = [need("sipp", "sip-tester"), f"{LOOPBACK}:{port}", "-sf", str(folder / "scenario.xml")]
        command += ["-i", LOOPBACK, "-p", str(free_udp_port()), "-mp", str(free_udp_port() & ~1)]
        command += ["-m", str(calls), "-r", str(rate), "-s", "moshi", "-nostdin", "-timeout", "60"]
        command += [
            "-trace_stat",
            "-stf",
            str(self.statistics),
            "-trace_err",
            "-error_file",
            str(folder / "errors"),
        ]
        super().__init__(command, folder, {**os.environ, "TERM": "dumb"})

    def result(self, within_s: float = 70.0) -> dict[str, str]:
        """The last line of its statistics once it has ended, by column."""
        self.process.wait(within_s)
        header, *lines = self.statistics.read_text().splitlines()
        return dict(zip(header.split(";"), lines[-1].split(";"), strict=False))
