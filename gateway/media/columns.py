"""Columns of ReceiveRows.n and .f: the receiving state of a row, one number each.

Positions and delays are in samples at the leg's rate unless said otherwise; counts are of packets or samples.
"""

CODEC = 0
"""PCMU, PCMA, L16 or PACKETS."""
RATE = 1
"""Of the decoded audio, Hz."""
CLOCK = 2
"""Of the RTP timestamps, Hz."""
FRAME = 3
"""Samples a tick: rate / 50."""
LIMIT = 4
"""Most samples the buffer may hold."""
FLOOR_NEED = 5
"""Least the buffer aims to hold, in samples more than the network needs."""
PAYLOAD_TYPE = 6
"""Of the audio agreed on."""
DTMF_TYPE = 7
"""-1: none."""
NEXT = 8
"""The sample played next."""
HIGH = 9
"""End of the newest sample stored; at or below `next` the buffer is empty."""
LOW = 10
"""First sample stored since the buffer was empty."""
HELD = 11
"""Samples invented since `next` last moved: how long a gap has been waited for."""
PLAYING = 12
"""0 until the first audio packet."""
FRESH = 13
"""1 until its first sample was played."""
SEEN = 14
"""1 after the first packet."""
SSRC = 15
"""Of the stream followed."""
TOP = 16
"""Highest sequence number, extended."""
BASE = 17
"""First sequence number of the stream."""
WINDOW = 18
"""Bit n: sequence number top - n has come; 62 bits."""
REFERENCE = 19
"""Timestamp of the newest packet, extended, in RTP units."""
OTHER_SSRC = 20
"""A stream that may replace this one: its last packet (-1: none)."""
OTHER_SEQ = 21
OTHER_TS = 22
LAST_TS = 23
"""Of the last packet, for the jitter."""
NEED = 24
"""Largest delay among this tick's arrivals, or NOTHING."""
NEED_COUNT = 25
"""Arrivals remembered in `needs` so far."""
UP = 26
"""Below this delay the buffer must grow."""
DOWN = 27
"""Above this delay it may shrink."""
REST = 28
"""Ticks until time may be scaled again."""
TRIED = 29
"""Searches for a period to cut since the delay was last right: the longer, the less it must be alike."""
CYCLE_LENGTH = 30
"""Samples of the pitch period repeated."""
BEND = 31
"""Step at the seam between what was played and its repetition, to be bent away."""
AGE = 32
"""Samples invented since real audio stopped; 0: none."""
QUIET = 33
"""Mean magnitude of the caller's background."""
SEED = 34
"""Of the background noise."""
SPARE_LENGTH = 35
"""Samples of the codec's own concealment in `spare`."""
SPARE_AT = 36
"""Samples of it used."""
STREAM_RECEIVED = 37
"""Packets of the present stream."""
LOST_BEFORE = 38
"""Lost in streams that ended."""
RECEIVED = 39
"""Packets of all streams."""
OCTETS = 40
"""Of their payloads."""
LATE = 41
"""Came after their place was played."""
DUPLICATED = 42
REORDERED = 43
UNKNOWN = 44
"""Packets of payload types not agreed on."""
MALFORMED = 45
"""Datagrams that are no RTP packet."""
REJECTED = 46
"""Packets of other streams or sources."""
RESYNCED = 47
"""Fresh starts."""
CONCEALED = 48
"""Samples invented."""
RECOVERED = 49
"""Samples of lost packets decoded from FEC."""
SQUEEZED = 50
"""Samples cut out by scaling."""
STRETCHED = 51
"""Samples put in by scaling."""
COLUMNS = 52

JITTER = 0
"""Interarrival jitter in RTP units (RFC 3550 §6.4.1)."""
LAST_ARRIVAL = 1
"""Seconds, of the last packet."""
FLOAT_COLUMNS = 2
