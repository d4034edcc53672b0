"""What is taken from a browser's offer, and what our answer says. Offers are those of Chromium 156."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.legs.webrtc_sdp import BadOffer, NoUsableCodec, OpusTerms, read_offer, write_answer

DATA = Path(__file__).parent / "data"
AUDIO = (DATA / "offer_chromium_audio.sdp").read_bytes().decode()
VIDEO_AUDIO_DATA = (DATA / "offer_chromium_video_audio_data.sdp").read_bytes().decode()

OWN_ANSWER = "\r\n".join(
    [
        "v=0",
        "o=- 1 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE {mid}",
        "a=msid-semantic:WMS *",
        "m=audio 58326 UDP/TLS/RTP/SAVPF 111",
        "c=IN IP4 10.0.0.2",
        "a=sendrecv",
        "a=mid:{mid}",
        "a=rtcp-mux",
        "a=rtpmap:111 opus/48000/2",
        "a=candidate:f957 1 udp 2130706431 10.0.0.2 58326 typ host",
        "a=candidate:d0bc 1 udp 2130706431 fd00::2 55130 typ host",
        "a=end-of-candidates",
        "a=ice-ufrag:79Tz",
        "a=ice-pwd:jJVSr0Calb12f2okS0Ei7f",
        "a=fingerprint:sha-256 7C:17",
        "a=setup:active",
        "",
    ]
)


def sections(sdp: str) -> list[str]:
    return ["m=" + part for part in sdp.split("\r\nm=")[1:]]


def without(offer: str, prefix: str) -> str:
    return "\r\n".join(line for line in offer.split("\r\n") if not line.startswith(prefix))


def test_an_audio_offer_is_taken_without_header_extensions_or_tcp_candidates() -> None:
    offered = read_offer(AUDIO)
    assert (offered.index, offered.payload_type, offered.fec, offered.bundled) == (0, 111, True, True)
    assert "a=extmap:" not in offered.sdp
    assert " tcp " not in offered.sdp
    assert offered.sdp.count("a=candidate:") == 2


def test_only_the_audio_line_of_a_video_call_is_given_to_the_connection() -> None:
    offered = read_offer(VIDEO_AUDIO_DATA)
    assert offered.index == 1
    assert [s.split()[0] for s in sections(offered.sdp)] == ["m=audio"]
    mid = next(line for line in offered.sections[1] if line.startswith("a=mid:"))[6:]
    assert f"a=group:BUNDLE {mid}\r\n" in offered.sdp


def test_every_other_media_line_is_answered_with_port_0_at_its_place() -> None:
    offered = read_offer(VIDEO_AUDIO_DATA)
    answer = sections(write_answer(OWN_ANSWER.format(mid="1"), offered, OpusTerms(), None))
    assert [s.split()[:2] for s in answer] == [["m=video", "0"], ["m=audio", "58326"], ["m=application", "0"]]
    assert "a=mid:0" in answer[0] and "a=inactive" in answer[0]
    assert "a=mid:2" in answer[2]


def test_the_answer_asks_opus_for_fec_and_mono() -> None:
    answer = write_answer(OWN_ANSWER.format(mid="0"), read_offer(AUDIO), OpusTerms(), None)
    fmtp = next(line for line in answer.split("\r\n") if line.startswith("a=fmtp:111 "))
    for term in ("minptime=10", "useinbandfec=1", "stereo=0", "maxaveragebitrate=32000"):
        assert term in fmtp.removeprefix("a=fmtp:111 ").split(";")


def test_a_public_address_stands_beside_each_local_one_of_its_family() -> None:
    offered = read_offer(AUDIO)
    v4 = write_answer(OWN_ANSWER.format(mid="0"), offered, OpusTerms(), "203.0.113.7")
    assert " 203.0.113.7 58326 typ srflx raddr 10.0.0.2 rport 58326\r\n" in v4
    assert v4.count("203.0.113.7") == 1
    v6 = write_answer(OWN_ANSWER.format(mid="0"), offered, OpusTerms(), "2001:db8::7")
    assert " 2001:db8::7 55130 typ srflx raddr fd00::2 rport 55130\r\n" in v6


def test_an_offer_without_a_bundle_gets_none() -> None:
    offered = read_offer(without(AUDIO, "a=group:"))
    assert "BUNDLE" not in write_answer(OWN_ANSWER.format(mid="0"), offered, OpusTerms(), None)


def test_names_in_local_are_not_resolved() -> None:
    offer = AUDIO.replace(" 192.0.2.2 41580 typ host", " 0b5b2a-77.local 41580 typ host")
    assert ".local" in offer
    assert ".local" not in read_offer(offer).sdp


def test_a_browser_that_names_no_address_is_waited_for() -> None:
    offer = (DATA / "offer_firefox_names_only.sdp").read_bytes().decode()
    assert ".local" in offer and "a=end-of-candidates" in offer
    offered = read_offer(offer)
    assert (offered.payload_type, offered.fec) == (109, True)
    assert "candidate" not in offered.sdp, "a connection that knows there will be none gives up"
    assert "end-of-candidates" not in read_offer(offer.replace("t=0 0", "t=0 0\r\na=end-of-candidates")).sdp


def test_a_thousand_candidates_are_cut_to_those_worth_a_check() -> None:
    line = "a=candidate:1 1 udp 2122194687 198.51.100.1 {port} typ host\r\n"
    many = "".join(line.format(port=port) for port in range(1024, 1524))
    assert read_offer(AUDIO.replace("a=ice-ufrag", many + "a=ice-ufrag")).sdp.count("a=candidate:") <= 32


@pytest.mark.parametrize(
    "offer",
    [
        AUDIO.replace("opus/48000/2", "speex/16000"),
        AUDIO.replace("m=audio 41580", "m=audio 0"),
        AUDIO.replace("m=audio", "m=video"),
        AUDIO.replace("UDP/TLS/RTP/SAVPF 111", "RTP/AVP 111"),
        AUDIO.replace("SAVPF 111 63", "SAVPF 63"),
    ],
    ids=["no opus", "closed line", "no audio", "not encrypted", "opus not in the list"],
)
def test_an_offer_without_usable_audio_says_so(offer: str) -> None:
    with pytest.raises(NoUsableCodec):
        read_offer(offer)


@pytest.mark.parametrize(
    "line", ["a=ice-ufrag", "a=ice-pwd", "a=fingerprint", "a=setup", "a=mid", "a=rtcp-mux"]
)
def test_an_offer_that_lacks_what_encryption_needs_is_refused(line: str) -> None:
    with pytest.raises(BadOffer):
        read_offer(without(AUDIO, line))


@pytest.mark.parametrize(
    "offer", ["", "hello", "v=0\r\n", "v=0\r\nm=\r\n", "v=0\r\n" + "m=audio 9 X 0\r\n" * 17]
)
def test_what_is_no_offer_is_refused(offer: str) -> None:
    with pytest.raises(BadOffer):
        read_offer(offer)


def test_an_endless_offer_is_refused() -> None:
    with pytest.raises(BadOffer, match="too long"):
        read_offer(AUDIO + "a=x\r\n" * 20_000)


def test_an_offer_cut_anywhere_is_read_or_refused() -> None:
    for end in range(len(VIDEO_AUDIO_DATA)):
        try:
            read_offer(VIDEO_AUDIO_DATA[:end])
        except BadOffer:
            continue


@given(st.text(), st.integers(0, len(AUDIO)))
def test_an_offer_with_garbage_in_it_is_read_or_refused(garbage: str, at: int) -> None:
    with suppress(BadOffer):
        read_offer(AUDIO[:at] + garbage + AUDIO[at:])
