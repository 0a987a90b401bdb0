"""Events out of bytes, however the bytes are framed and wherever they are cut."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.oracle_sse import decode_stream

from grokflask.errors import UpstreamProtocolError
from grokflask.protocol.sse import MAX_EVENT_LINES, EventDecoder, NamedEvent, Run

STREAMS = Path(__file__).parents[2] / "streams"
NAMES = sorted(path.stem for path in STREAMS.glob("*.sse"))

FRAMINGS = [
    pytest.param(b"\n", id="LF"),
    pytest.param(b"\r\n", id="CRLF"),
    pytest.param(b"\r", id="CR"),
]

FRAGMENTS = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b":", b" ", b"\xef\xbb\xbf", b"\xef", b"\xbb\xbf"),
    *(
        b"data",
        b"data:",
        b"data: ",
        b"data: {}",
        b'data: {"a":1}\n\n',
        b"data: {}\n\ndata: {}\n\n",
        b"data: [DONE]",
        b"data:[DONE]",
        b"[DONE]",
        b"[DON",
    ),
    *(b"event", b"event:", b"event: error", b"event: message", b"id: 1", b"retry: 5", b": keep-alive"),
    *(b"x", b"\xc3\xa4", b"\xf0\x9f\x98\x80", b"\x00", b"\t", b"\x85", b"\x0b", b"\x0c"),
]


def decode(*pieces: bytes) -> list[bytes]:
    """All events of a stream that came in `pieces` and then ended."""
    decoder = EventDecoder()
    events = [event for piece in pieces for event in feed(decoder, piece)]
    return events + decoder.finish()


def feed(decoder: EventDecoder, data: bytes) -> list[bytes]:
    """What `decoder.feed` gives, every run taken apart."""
    events: list[bytes] = []
    for each in decoder.feed(data):
        if isinstance(each, Run):
            before, run = each.cut(0)
            assert (before, before.number, each.number) == (b"", 0, len(run))
            events += run
        else:
            events.append(each)
    return events


def read_stream(name: str) -> tuple[bytes, list[bytes]]:
    """A file of tests/streams and the events expected of it."""
    lines = (STREAMS / f"{name}.events").read_text(encoding="utf-8").splitlines()
    return (STREAMS / f"{name}.sse").read_bytes(), [json.loads(line).encode() for line in lines]


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    """`data` cut at `positions`."""
    edges = [0, *sorted(position % (len(data) + 1) for position in positions), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def name_of(event: bytes) -> bytes:
    return event.name if isinstance(event, NamedEvent) else b""


def test_stream_files_are_there_in_pairs() -> None:
    """Every stream has its expected events beside it, and no expectation is orphaned."""
    assert len(NAMES) > 30
    assert sorted(path.stem for path in STREAMS.glob("*.events")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_stream_file_fed_whole(name: str) -> None:
    """A stream in one piece gives the events of its `.events` file."""
    stream, expected = read_stream(name)
    assert decode(stream) == expected


@pytest.mark.parametrize("name", NAMES)
def test_stream_file_fed_byte_by_byte(name: str) -> None:
    """One byte at a time gives the same events."""
    stream, expected = read_stream(name)
    assert decode(*(stream[at : at + 1] for at in range(len(stream)))) == expected


@pytest.mark.parametrize("name", NAMES)
def test_stream_file_cut_at_every_position(name: str) -> None:
    """Two pieces, cut anywhere, give the same events."""
    stream, expected = read_stream(name)
    wrong = [at for at in range(len(stream) + 1) if decode(stream[:at], stream[at:]) != expected]
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_oracle_agrees_with_the_files(name: str) -> None:
    """The slow decoder that the property test relies on reads the files as they were meant."""
    stream, expected = read_stream(name)
    assert [data for data, _ in decode_stream(stream)] == expected


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40), st.lists(st.integers(0, 400), max_size=8))
@example([b"data: ", b"\n\n"], [])
@example([b"\n", b"data: [DONE]"], [])
@example([b"data: x", b"\r", b"\n", b"\r", b"\n"], [8, 9, 10])
@example([b"\xef\xbb\xbf", b"data: x", b"\r\r"], [1, 2, 3])
def test_any_bytes_in_any_pieces_decode_as_the_standard_says(
    fragments: list[bytes], positions: list[int]
) -> None:
    """Whatever comes, wherever it is cut, data and names are those of the line-by-line decoder."""
    stream = b"".join(fragments)
    events = decode(*cut(stream, positions))
    assert [(bytes(event), name_of(event)) for event in events] == decode_stream(stream)


@pytest.mark.parametrize("newline", FRAMINGS)
@pytest.mark.parametrize("earlier", [b"", b"data: before"], ids=["first", "second"])
def test_event_is_given_out_with_its_last_byte(newline: bytes, earlier: bytes) -> None:
    """The feed() that brings an event's last byte returns it: no byte of the next one is waited for."""
    decoder = EventDecoder()
    if earlier:
        feed(decoder, earlier + newline + newline)
    whole = b"data: now" + newline + newline
    for at in range(len(whole) - len(newline)):
        assert feed(decoder, whole[at : at + 1]) == []
    assert feed(decoder, newline) == [b"now"]
    assert feed(decoder, b"data: next" + newline + newline) == [b"next"]
    assert decoder.finish() == []


def test_event_across_a_cut_in_the_blank_line() -> None:
    """A blank line that comes in two pieces ends the event when its second half is in."""
    decoder = EventDecoder()
    assert feed(decoder, b"data: 1\n") == []
    assert feed(decoder, b"\ndata: 2\n") == [b"1"]
    assert feed(decoder, b"\n") == [b"2"]


def test_crlf_cut_between_its_halves_is_one_line_end() -> None:
    """An LF that follows a CR a read later does not make a blank line."""
    decoder = EventDecoder()
    assert feed(decoder, b"data: 1\r") == []
    assert feed(decoder, b"\ndata: 2\r") == []
    assert feed(decoder, b"") == []
    assert feed(decoder, b"\n") == []
    assert feed(decoder, b"\r") == [b"1 2"]
    assert feed(decoder, b"\n") == []


def test_many_events_in_one_read_come_together() -> None:
    """All events that one read completes are returned at once, in order, and the rest is kept."""
    decoder = EventDecoder()
    stream = b"".join(b"data: %d\n\n" % number for number in range(1000))
    assert feed(decoder, stream + b"data: 10") == [b"%d" % number for number in range(1000)]
    assert feed(decoder, b"00\n\n") == [b"1000"]


@pytest.mark.parametrize("newline", FRAMINGS)
@pytest.mark.parametrize("piece_bytes", [65536, 4099, 2**21])
def test_event_of_a_mebibyte(newline: bytes, piece_bytes: int) -> None:
    """A long event comes out whole, byte for byte, in pieces even or odd."""
    data = b'{"b64_json":"' + bytes(range(32, 127)) * 11100 + b'"}'
    assert len(data) > 2**20
    stream = b"data: " + data + newline * 2 + b"data: [DONE]" + newline * 2
    pieces = [stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes)]
    assert decode(*pieces) == [data, b"[DONE]"]


@pytest.mark.parametrize("piece_bytes", [1, 7, 50])
def test_event_that_grows_too_long_is_an_error(piece_bytes: int) -> None:
    """What has no end in sight is given up at `max_event_bytes`, not held in memory for ever."""
    decoder = EventDecoder(max_event_bytes=100)
    endless = b"data: " + b"x" * 94
    for at in range(0, len(endless), piece_bytes):
        assert feed(decoder, endless[at : at + piece_bytes]) == []
    assert feed(decoder, b"x") == []
    with pytest.raises(UpstreamProtocolError, match="more than 100 bytes"):
        feed(decoder, b"x")


def test_event_of_too_many_lines_is_an_error() -> None:
    """Each of them would become an object, in one step that nothing else can interrupt."""
    decoder = EventDecoder()
    for _ in range(MAX_EVENT_LINES):
        assert feed(decoder, b"data: x\n") == []
    decoder.feed(b"data: x\n")
    with pytest.raises(UpstreamProtocolError, match=f"or {MAX_EVENT_LINES} lines"):
        decoder.feed(b"\n")


def test_event_in_tiny_pieces_takes_no_more_memory_than_in_large_ones() -> None:
    """The pieces are joined as they come, a few at a time."""
    decoder = EventDecoder()
    decoder.feed(b"data: ")
    for _ in range(50_000):
        decoder.feed(b"xy")
    assert sum(map(sys.getsizeof, decoder._pieces)) < 2 * 100_000
    assert decoder.feed(b"\n\n") == [b"xy" * 50_000]


def test_events_before_one_that_is_too_long_are_not_lost() -> None:
    """What came whole in the same read is given out first; the error comes with the next call."""
    decoder = EventDecoder(max_event_bytes=100)
    assert feed(decoder, b"data: 1\n\ndata: 2\n\ndata: " + b"x" * 101) == [b"1", b"2"]
    with pytest.raises(UpstreamProtocolError, match="more than 100 bytes"):
        feed(decoder, b"\n\n")


def test_limit_is_for_one_event_not_for_the_stream() -> None:
    """Any number of events may come, as long as each keeps below the limit."""
    decoder = EventDecoder(max_event_bytes=100)
    for _ in range(50):
        assert feed(decoder, b"data: " + b"x" * 40) == []
        assert feed(decoder, b"y" * 40 + b"\n\ndata: ") == [b"x" * 40 + b"y" * 40]
        assert feed(decoder, b"z\n\n") == [b"z"]


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (b"event: error\ndata: x\n\n", b"error"),
        (b"event:error\ndata: x\n\n", b"error"),
        (b"data: x\nevent: error\n\n", b"error"),
        (b"event: a\nevent: response.created\ndata: x\r\n\r\n", b"response.created"),
        (b"event: message\ndata: x\n\n", b""),
        (b"event:\ndata: x\n\n", b""),
        (b"event: a\nevent:\ndata: x\n\n", b""),
        (b"events: a\ndata: x\n\n", b""),
        (b"event: a\n\ndata: x\n\n", b""),
    ],
)
def test_name_of_an_event(block: bytes, name: bytes) -> None:
    """An event remembers its `event:` line, the last one, and only within its own lines."""
    (event,) = decode(block)
    assert event == b"x"
    assert name_of(event) == name


def test_named_event_joins_like_bytes() -> None:
    """A NamedEvent is its data: the relay joins it with others without looking."""
    assert b"|".join([b"a", NamedEvent(b"b", b"error")]) == b"a|b"


def test_plain_events_come_as_one_run_as_they_were_sent() -> None:
    """What needs no change is not taken apart: not the events of a read, nor those that end in [DONE]."""
    decoder = EventDecoder()
    frames = b'data: {"n":1}\n\ndata: {"n":2}\n\n'
    (run,) = decoder.feed(frames + b'data: {"n"')
    assert isinstance(run, Run)
    assert (run, run.number) == (frames, 2)
    (run, done) = decoder.feed(b":3}\n\ndata: [DONE]\n\n")
    assert isinstance(run, Run)
    assert (run, run.number, done) == (b'data: {"n":3}\n\n', 1, b"[DONE]")


@pytest.mark.parametrize("at", range(3 * 15))
def test_a_run_is_cut_before_an_event(at: int) -> None:
    """Wherever in an event the cut is asked for, that event and those behind it are given by themselves."""
    frames = [b'data: {"n":%d}\n\n' % number for number in range(3)]
    assert {len(frame) for frame in frames} == {15}
    before, events = Run(b"".join(frames)).cut(at)
    first = at // 15
    assert (before, before.number) == (b"".join(frames[:first]), first)
    assert events == [frame[6:-2] for frame in frames[first:]]
