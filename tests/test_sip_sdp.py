"""Offer and answer: what is taken, what is refused, and what both sides believe afterwards."""

import base64
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sip import sdes
from sip.description import MalformedSdp, parse_description
from sip.sdp import AgreedMedia, LocalMedia, NoCommonCodec, Origin, SdpError, accept_answer, answer, offer

OURS = LocalMedia("192.0.2.1", 4000)
ALL = ("PCMU", "PCMA", "G722", "opus")
HEAD = "v=0\r\no=- 5 6 IN IP4 198.51.100.2\r\ns=-\r\nc=IN IP4 198.51.100.2\r\nt=0 0\r\n"


def described(media: str, head: str = HEAD) -> bytes:
    return (head + media.strip().replace("\n", "\r\n") + "\r\n").encode()


PLAIN = described("m=audio 6000 RTP/AVP 8 0 101\na=rtpmap:101 telephone-event/8000\na=ptime:30")


def lines(body: bytes, prefix: str) -> list[str]:
    return [line for line in body.decode().split("\r\n") if line.startswith(prefix)]


def test_the_offerers_first_codec_that_we_take_is_chosen() -> None:
    outcome = answer(PLAIN, OURS)
    media = outcome.media
    assert (media.codec, media.payload_type, media.clock_rate, media.ptime_ms) == ("PCMA", 8, 8000, 30)
    assert (media.remote_host, media.remote_port, media.remote_rtcp) == (
        "198.51.100.2", 6000, ("198.51.100.2", 6001)
    )  # fmt: skip
    assert (media.dtmf_payload_type, media.direction, media.srtp, media.rtcp_mux) == (
        101,
        "sendrecv",
        None,
        False,
    )
    assert lines(outcome.answer, "m=") == ["m=audio 4000 RTP/AVP 8 101"]
    assert "a=ptime:20" in lines(outcome.answer, "a=") and "a=fmtp:101 0-15" in lines(outcome.answer, "a=")


def test_without_telephone_event_there_is_none() -> None:
    assert answer(described("m=audio 6000 RTP/AVP 0"), OURS).media.dtmf_payload_type is None
    outcome = answer(PLAIN, replace(OURS, dtmf=False))
    assert outcome.media.dtmf_payload_type is None and b"telephone-event" not in outcome.answer


def test_every_media_line_is_answered_and_those_we_do_not_take_with_port_0() -> None:
    body = described(
        "m=video 7000 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
        "m=audio 0 RTP/AVP 0\n"
        "m=audio 6000 RTP/AVP 18\n"
        "m=audio 6002 RTP/AVP 0\nc=IN IP4 203.0.113.9\n"
        "m=audio 6004 RTP/AVP 8\n"
        "m=image 6006 udptl t38"
    )
    outcome = answer(body, OURS)
    assert lines(outcome.answer, "m=") == [
        "m=video 0 RTP/AVP 96",
        "m=audio 0 RTP/AVP 0",
        "m=audio 0 RTP/AVP 18",
        "m=audio 4000 RTP/AVP 0",
        "m=audio 0 RTP/AVP 8",
        "m=image 0 udptl t38",
    ]
    assert (outcome.media.remote_host, outcome.media.remote_port) == ("203.0.113.9", 6002)


@pytest.mark.parametrize(
    ("offered", "host", "ours", "answered", "held"),
    [
        ("sendrecv", "198.51.100.2", "sendrecv", "sendrecv", False),
        ("sendonly", "198.51.100.2", "sendrecv", "recvonly", True),
        ("recvonly", "198.51.100.2", "sendrecv", "sendonly", False),
        ("inactive", "198.51.100.2", "sendrecv", "inactive", True),
        ("sendrecv", "0.0.0.0", "sendrecv", "recvonly", True),
        ("sendonly", "0.0.0.0", "sendrecv", "recvonly", True),
        ("sendrecv", "198.51.100.2", "sendonly", "sendonly", False),
        ("sendonly", "198.51.100.2", "sendonly", "inactive", True),
        ("sendrecv", "198.51.100.2", "inactive", "inactive", True),
    ],
)
def test_the_direction_is_mirrored(offered: str, host: str, ours: str, answered: str, held: bool) -> None:
    body = described(f"m=audio 6000 RTP/AVP 0\na={offered}", HEAD.replace("198.51.100.2", host))
    outcome = answer(body, replace(OURS, direction=ours))  # type: ignore[arg-type]
    assert f"a={answered}" in lines(outcome.answer, "a=")
    assert (outcome.media.direction, outcome.media.held) == (answered, held)


def test_a_session_wide_direction_holds_unless_the_line_has_its_own() -> None:
    head = HEAD + "a=sendonly\r\n"
    assert answer(described("m=audio 6000 RTP/AVP 0", head), OURS).media.direction == "recvonly"
    assert answer(described("m=audio 6000 RTP/AVP 0\na=sendrecv", head), OURS).media.direction == "sendrecv"


@pytest.mark.parametrize(
    ("attributes", "ptime"),
    [
        ("", 20),
        ("a=ptime:30", 30),
        ("a=ptime:200", 60),
        ("a=ptime:5", 10),
        ("a=ptime:x", 20),
        ("a=maxptime:10", 10),
        ("a=ptime:40\na=maxptime:30", 30),
        ("a=ptime:25", 20),
    ],
)
def test_ptime_is_what_the_peer_asks_within_reason(attributes: str, ptime: int) -> None:
    assert answer(described(f"m=audio 6000 RTP/AVP 0\n{attributes}"), OURS).media.ptime_ms == ptime


def test_ipv6_is_spoken() -> None:
    head = HEAD.replace("IP4 198.51.100.2", "IP6 2001:db8::2")
    outcome = answer(described("m=audio 6000 RTP/AVP 0", head), replace(OURS, host="2001:db8::1"))
    assert outcome.media.remote_host == "2001:db8::2"
    assert lines(outcome.answer, "c=") == ["c=IN IP6 2001:db8::1"]


def test_rtcp_mux_and_the_rtcp_attribute_say_where_rtcp_goes() -> None:
    mux = answer(described("m=audio 6000 RTP/AVP 0\na=rtcp-mux"), OURS)
    assert mux.media.rtcp_mux and mux.media.remote_rtcp[1] == 6000 and b"a=rtcp-mux" in mux.answer
    off = answer(described("m=audio 6000 RTP/AVP 0\na=rtcp-mux"), replace(OURS, rtcp_mux=False))
    assert not off.media.rtcp_mux and off.media.remote_rtcp[1] == 6001 and b"rtcp-mux" not in off.answer
    own = answer(described("m=audio 6000 RTP/AVP 0\na=rtcp:7777 IN IP4 203.0.113.1"), OURS)
    assert own.media.remote_rtcp == ("203.0.113.1", 7777)


def test_g722_and_opus_have_the_clock_their_rfc_gives_them() -> None:
    body = described("m=audio 6000 RTP/AVP 96 9 101 102\na=rtpmap:96 opus/48000/2\n"
                     "a=rtpmap:101 telephone-event/8000\na=rtpmap:102 telephone-event/48000")  # fmt: skip
    wide = answer(body, replace(OURS, codecs=("opus", "G722"))).media
    assert (wide.codec, wide.payload_type, wide.clock_rate, wide.dtmf_payload_type) == (
        "opus",
        96,
        48000,
        102,
    )
    g722 = answer(body, replace(OURS, codecs=("G722",))).media
    assert (g722.codec, g722.payload_type, g722.clock_rate, g722.dtmf_payload_type) == ("G722", 9, 8000, 101)


def test_our_preference_decides_between_codecs_and_the_offerers_between_the_laws_of_g711() -> None:
    body = described("m=audio 6000 RTP/AVP 96 9 8 0\na=rtpmap:96 opus/48000/2")
    for codecs, chosen in {ALL: "PCMA", ("opus", "PCMU"): "opus", ("G722", "PCMU"): "G722"}.items():
        assert answer(body, replace(OURS, codecs=codecs)).media.codec == chosen, codecs


def test_keys_are_timed_by_the_clock_of_the_events_that_were_agreed_on() -> None:
    body = described("m=audio 6000 RTP/AVP 96 101\na=rtpmap:96 opus/48000/2\n"
                     "a=rtpmap:101 telephone-event/8000")  # fmt: skip
    media = answer(body, replace(OURS, codecs=ALL)).media
    assert (media.clock_rate, media.dtmf_payload_type, media.dtmf_rate) == (48_000, 101, 8_000)
    wide = answer(body.replace(b"event/8000", b"event/48000"), replace(OURS, codecs=ALL)).media
    assert (wide.dtmf_payload_type, wide.dtmf_rate) == (101, 48_000)


def test_a_dynamic_number_may_stand_for_a_static_codec_and_a_wrong_clock_for_none() -> None:
    assert answer(described("m=audio 6 RTP/AVP 97\na=rtpmap:97 pcmu/8000/1"), OURS).media.payload_type == 97
    with pytest.raises(NoCommonCodec):
        answer(described("m=audio 6 RTP/AVP 97\na=rtpmap:97 PCMU/16000"), OURS)


@pytest.mark.parametrize(
    "body",
    [
        described("m=audio 6000 RTP/AVP 18 3"),
        described("m=audio 0 RTP/AVP 0"),
        described("m=video 6000 RTP/AVP 0"),
        described("m=audio 6000 RTP/SAVP 0"),
        described("m=audio 6000 UDP/TLS/RTP/SAVPF 0"),
        described("m=audio 6000 RTP/AVP 101\na=rtpmap:101 telephone-event/8000"),
        described(""),
    ],
)
def test_nothing_in_common_is_488(body: bytes) -> None:
    with pytest.raises(NoCommonCodec) as caught:
        answer(body, OURS)
    assert caught.value.code == 488


@pytest.mark.parametrize(
    "body",
    [
        b"", b"hello", b"v=1\r\n", b"v=0\r\ns=-\r\n", PLAIN.replace(b"o=- 5 6 IN IP4 198.51.100.2", b"o=-"),
        PLAIN.replace(b"c=IN IP4 198.51.100.2\r\n", b""), PLAIN.replace(b"audio 6000", b"audio 66000"),
        PLAIN.replace(b"audio 6000", b"audio x"), PLAIN.replace(b"c=IN IP4 198.51.100.2", b"c=IN IP4 a b"),
        PLAIN.replace(b"c=IN IP4 198.51.100.2", b"c=IN IP4 $(x)"), PLAIN + b"rubbish\r\n",
        PLAIN + b"m=audio 1 RTP/AVP 0\r\n" * 40, PLAIN + b"a=x" * 9000,
    ],
)  # fmt: skip
def test_what_is_no_sdp_is_400(body: bytes) -> None:
    with pytest.raises(MalformedSdp) as caught:
        answer(body, OURS)
    assert caught.value.code == 400


@pytest.mark.parametrize("end", range(len(PLAIN)))
def test_a_truncated_offer_is_answered_or_refused(end: int) -> None:
    try:
        outcome = answer(PLAIN[:end], OURS)
    except SdpError:
        return
    assert outcome.media.codec in ("PCMU", "PCMA") and parse_description(outcome.answer)


@given(st.binary(max_size=400))
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(SdpError):
        answer(body, OURS)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.binary(max_size=3)), max_size=5))
def test_a_damaged_offer_is_answered_or_refused(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(PLAIN)
    for at, new in edits:
        data[at : at + len(new)] = new
    try:
        outcome = answer(bytes(data), replace(OURS, codecs=ALL, srtp="accept"))
    except SdpError:
        return
    assert len(parse_description(outcome.answer).media) == len(parse_description(bytes(data)).media)


def agreed_both_ways(asking: LocalMedia, answering: LocalMedia) -> tuple[AgreedMedia, AgreedMedia]:
    """(the offerer's view, the answerer's)"""
    body = offer(asking)
    outcome = answer(body, answering)
    return accept_answer(body, outcome.answer, asking), outcome.media


@pytest.mark.parametrize("codecs", [("PCMU",), ("PCMA", "PCMU"), ("opus", "G722", "PCMU"), ALL])
@pytest.mark.parametrize("direction", ["sendrecv", "sendonly", "recvonly", "inactive"])
def test_both_sides_of_our_own_exchange_agree(codecs: tuple[str, ...], direction: str) -> None:
    asking = LocalMedia("192.0.2.1", 4000, codecs=codecs, direction=direction)  # type: ignore[arg-type]
    a, b = agreed_both_ways(asking, LocalMedia("192.0.2.2", 5000, codecs=codecs))
    assert a.codec == b.codec == codecs[0] and a.payload_type == b.payload_type
    assert (a.remote_host, a.remote_port, b.remote_host, b.remote_port) == (
        "192.0.2.2",
        5000,
        "192.0.2.1",
        4000,
    )
    mirror = {"sendonly": "recvonly", "recvonly": "sendonly"}
    assert (a.direction, b.direction) == (direction, mirror.get(direction, direction))
    assert a.rtcp_mux and b.rtcp_mux and a.dtmf_payload_type == b.dtmf_payload_type
    assert (a.payload_type, a.codec) in a.receive_types


def test_an_answer_may_number_a_codec_its_own_way() -> None:
    asking = replace(OURS, codecs=("opus",))
    body = offer(asking)
    answered = described("m=audio 6000 RTP/AVP 96\na=rtpmap:96 opus/48000/2")
    media = accept_answer(body, answered, asking)
    assert media.payload_type == 96 and media.receive_types == ((111, "opus"),)


@pytest.mark.parametrize(
    "answered",
    [
        described("m=audio 0 RTP/AVP 0"),
        described("m=audio 6000 RTP/AVP 18"),
        described("m=audio 6000 RTP/SAVP 0"),
        described("m=video 6000 RTP/AVP 0"),
        described(""),
    ],
)
def test_an_answer_that_refuses_our_line_is_no_common_codec(answered: bytes) -> None:
    with pytest.raises(NoCommonCodec):
        accept_answer(offer(OURS), answered, OURS)


def test_the_origin_is_written_as_given() -> None:
    assert lines(offer(OURS, Origin(7, 9)), "o=") == ["o=- 7 9 IN IP4 192.0.2.1"]
    assert lines(answer(PLAIN, OURS, Origin(7, 9)).answer, "o=") == ["o=- 7 9 IN IP4 192.0.2.1"]


KEY = base64.b64encode(bytes(range(30))).decode()
SAVP = "m=audio 6000 RTP/SAVP 0\na=crypto:{}"


@pytest.mark.parametrize("suite", list(sdes.KEY_BYTES))
def test_keys_are_exchanged_for_every_suite(suite: str) -> None:
    theirs = bytes(range(sdes.KEY_BYTES[suite]))
    line = f"7 {suite} inline:{base64.b64encode(theirs).decode()}|2^20"
    outcome = answer(described(SAVP.format(line)), replace(OURS, srtp="accept"))
    keys = outcome.media.srtp
    assert keys is not None and (keys.suite, keys.receive) == (suite, theirs)
    sent = re.search(rf"a=crypto:7 {suite} inline:(\S+)", outcome.answer.decode())
    assert sent is not None and base64.b64decode(sent[1]) == keys.send != theirs
    assert lines(outcome.answer, "m=") == ["m=audio 4000 RTP/SAVP 0"]
    assert theirs.hex() not in repr(keys)


def test_both_sides_of_a_keyed_exchange_hold_each_others_keys() -> None:
    a, b = agreed_both_ways(replace(OURS, srtp="require"), LocalMedia("192.0.2.2", 5000, srtp="accept"))
    assert a.srtp is not None and b.srtp is not None
    assert (a.srtp.send, a.srtp.receive, a.srtp.suite) == (b.srtp.receive, b.srtp.send, b.srtp.suite)


def test_the_first_crypto_line_that_we_take_is_taken() -> None:
    body = described(
        "m=audio 6000 RTP/SAVP 0\n"
        f"a=crypto:1 F8_128_HMAC_SHA1_80 inline:{KEY}\n"
        f"a=crypto:2 AES_CM_128_HMAC_SHA1_80 inline:{KEY}|2^20|1:4\n"
        f"a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:{KEY} UNENCRYPTED_SRTP\n"
        f"a=crypto:4 AES_CM_128_HMAC_SHA1_80 inline:short\n"
        f"a=crypto:5 AES_CM_128_HMAC_SHA1_32 inline:{KEY}"
    )
    outcome = answer(body, replace(OURS, srtp="accept"))
    assert outcome.media.srtp is not None and outcome.media.srtp.suite == "AES_CM_128_HMAC_SHA1_32"
    assert b"a=crypto:5 " in outcome.answer


def test_savp_without_a_usable_key_is_never_answered_with_plain_audio() -> None:
    for policy in ("off", "accept", "require"):
        with pytest.raises(NoCommonCodec):
            answer(described("m=audio 6000 RTP/SAVP 0"), replace(OURS, srtp=policy))  # type: ignore[arg-type]
    with pytest.raises(NoCommonCodec):
        answer(PLAIN, replace(OURS, srtp="require"))


def test_where_both_are_offered_the_keyed_line_is_taken() -> None:
    line = SAVP.format(f"1 AES_CM_128_HMAC_SHA1_80 inline:{KEY}")
    body = described("m=audio 6002 RTP/AVP 0\n" + line)
    keyed, plain = answer(body, replace(OURS, srtp="accept")), answer(body, OURS)
    assert keyed.media.srtp is not None and keyed.media.remote_port == 6000
    assert plain.media.srtp is None and plain.media.remote_port == 6002


def test_an_answer_with_a_key_that_fits_no_line_of_ours_is_refused() -> None:
    asking = replace(OURS, srtp="require")
    with pytest.raises(NoCommonCodec):
        accept_answer(
            offer(asking), described(SAVP.format(f"9 AES_CM_128_HMAC_SHA1_80 inline:{KEY}")), asking
        )


@given(st.text(max_size=80))
def test_no_text_breaks_the_crypto_parser(text: str) -> None:
    parsed = sdes.parse_crypto(text)
    assert parsed is None or sdes.parse_crypto(str(parsed)) == parsed


def test_one_seed_gives_each_suite_its_own_key_and_the_same_again() -> None:
    keys = [sdes.own_key(b"seed", suite)[:28] for suite in sdes.KEY_BYTES]
    assert len(set(keys)) == len(keys) and keys[0] == sdes.own_key(b"seed", "AES_CM_128_HMAC_SHA1_80")[:28]
    assert offer(replace(OURS, srtp="require")) != offer(replace(OURS, srtp="require"))
