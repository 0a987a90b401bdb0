"""Recordings: many readers at their own pace, bounds in bytes and age, and who is let go when."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.processes import wait_for
from support.scripted import WAIT_S

from grokflask.delivery.terms import HEARTBEAT
from grokflask.errors import (
    ClientGoneError,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    RecordingLostError,
    ShuttingDownError,
    StreamGoneError,
    UpstreamError,
)
from grokflask.protocol.dialects import CHAT
from grokflask.replay.reader import Reader
from grokflask.replay.recording import READ_BYTES, WINDOW_BYTES, Ending, Head, Recording, fail
from grokflask.replay.recordings import OVERHEAD_BYTES, Recordings

EVENTS = [b"data: %d\n\n" % number for number in range(5)]
KEEP_S, GRACE_S = 100.0, 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A register by a clock that stands, and the upstream calls that were ended for want of a reader."""

    def __init__(self, max_bytes: int = 10**6, total_bytes: int = 10**7, keep_s: float = KEEP_S) -> None:
        self.clock = Clock()
        self.left: list[str] = []
        self.count = 0
        self.register = Recordings(
            max_bytes=max_bytes, total_bytes=total_bytes, keep_s=keep_s, clock=self.clock
        )

    def claim(
        self, name: str = "a", fingerprint: str = "f", *, only_old: bool = False, **options: Any
    ) -> tuple[Reader, bool]:
        self.count += 1
        recording = Recording(f"id{self.count}", name, fingerprint, "r1", GRACE_S)
        recording.bind(lambda: self.left.append(recording.id))
        defaults: dict[str, Any] = {
            "dialect": CHAT,
            "wants_json": False,
            "with_ids": False,
            "heartbeat_s": 60.0,
        }
        reader = Reader(recording, **{**defaults, **options})
        return reader, self.register.claim(reader, begin=not only_old)

    def record(self, *events: bytes, name: str = "a") -> Reader:
        """The first reader of a stream that has begun so."""
        reader, first = self.claim(name)
        assert first
        reader.recording.put_head(Head(200, {}, stream=True))
        for event in events:
            self.register.keep(reader.recording, event)
        return reader

    def finish(self, reader: Reader) -> None:
        self.register.end(reader.recording, Ending(complete=True))


def take_all(reader: Reader) -> bytes:
    return b"".join(reader)


def test_every_reader_gets_everything() -> None:
    """Whoever comes early, in the middle or after the end reads the same bytes."""
    bench = Bench()
    first = bench.record(EVENTS[0])
    second, found = bench.claim()
    assert not found
    assert second.wait_for_head() == Head(200, {}, stream=True)
    for event in EVENTS[1:]:
        bench.register.keep(first.recording, event)
    bench.finish(first)
    third, found = bench.claim()
    assert not found
    assert [take_all(each) for each in (first, second, third)] == [b"".join(EVENTS)] * 3
    assert third.outcome == "complete"


def test_events_that_are_there_go_out_together_in_bounded_pieces() -> None:
    """A late reader takes whole events, of READ_BYTES at the most or one that is larger."""
    bench = Bench()
    small = b"data: " + b"x" * 1000 + b"\n\n"
    large = b"data: " + b"y" * READ_BYTES + b"\n\n"
    first = bench.record(*[small] * 100, large, small)
    bench.finish(first)
    late, _ = bench.claim()
    pieces = list(late)
    assert b"".join(pieces) == small * 100 + large + small
    assert all(piece.endswith(b"\n\n") for piece in pieces)
    assert all(len(piece) <= READ_BYTES or piece == large for piece in pieces)
    assert len(pieces) <= 5


def test_ids_and_going_on_behind_them() -> None:
    """Each event has an id; behind each of them the stream goes on as if it had not been cut."""
    bench = Bench()
    first = bench.record(*EVENTS)
    bench.finish(first)
    uncut = take_all(bench.claim(with_ids=True)[0])
    assert uncut.replace(b"data: ", b"").count(b"\n\n") == len(EVENTS)
    events = [event + b"\n\n" for event in uncut.split(b"\n\n")[:-1]]
    for number, event in enumerate(events):
        last = event.partition(b"id: ")[2].partition(b"\n")[0].decode()
        reader, _ = bench.claim(with_ids=True)
        reader.seek(last)
        assert take_all(reader) == b"".join(events[number + 1 :])
        plain, _ = bench.claim()
        plain.seek(last)
        assert take_all(plain) == b"".join(EVENTS[number + 1 :])


@pytest.mark.parametrize(
    "wrong", ["", "5", "-5", "id1", "id1-", "id1-x", "id1-4", "id1-99", "id2-9", "id1--9"]
)
def test_ids_that_are_none(wrong: str) -> None:
    """An id that this stream has not given is refused, however near it is."""
    bench = Bench()
    bench.finish(bench.record(*EVENTS))
    reader, _ = bench.claim()
    with pytest.raises(StreamGoneError):
        reader.seek(wrong)


def test_an_id_that_is_still_on_its_way() -> None:
    """Where the bytes before it are still coming they are waited for."""
    bench = Bench()
    first = bench.record(EVENTS[0])
    reader, _ = bench.claim()
    found = threading.Event()
    threading.Thread(target=lambda: (reader.seek("id1-18"), found.set()), daemon=True).start()
    assert not found.wait(0.05)
    bench.register.keep(first.recording, EVENTS[1])
    assert found.wait(WAIT_S)
    assert reader.position == 18


def test_other_requests_are_turned_away() -> None:
    """Another fingerprint is another request; where only an old one will do, none is begun."""
    bench = Bench()
    bench.record(EVENTS[0])
    with pytest.raises(IdempotencyKeyReusedError):
        bench.claim(fingerprint="g")
    with pytest.raises(StreamGoneError):
        bench.claim("b", only_old=True)


def test_a_new_reader_takes_the_place_of_the_oldest() -> None:
    """The oldest ends with an error that is not worth a retry; one that reads alone never does."""
    bench = Bench()
    first = bench.record(EVENTS[0])
    recording = first.recording
    bench.register.replace_oldest(recording)
    second, _ = bench.claim()
    third, _ = bench.claim()
    bench.register.replace_oldest(recording)
    assert recording.readers == (second, third)
    assert b"A newer connection" in take_all(first)
    assert first.outcome == "too_many_streams"
    assert first.cancelled is not None
    assert first.cancelled.headers == {"x-should-retry": "false"}
    bench.register.keep(recording, EVENTS[1])
    bench.finish(first)
    assert take_all(second) == take_all(third) == EVENTS[0] + EVENTS[1]


def test_holds_are_freed_one_by_one() -> None:
    """A recording has at most one hold for each reader but one, whichever of them leave."""
    bench = Bench()
    first = bench.record(EVENTS[0])
    readers = [first, *(bench.claim()[0] for _ in range(3))]
    freed: list[int] = []
    for number in range(2):  # the third has replaced nobody yet
        first.recording.holds.append(lambda number=number: freed.append(number))
    counts = []
    for reader in readers:
        bench.register.leave(reader)
        bench.register.leave(reader)
        counts.append(len(freed))
    assert counts == [0, 1, 2, 2]


def test_a_failure_is_told_to_all_and_forgotten() -> None:
    """All who wait get it as an error of their own; the name is free at once."""
    bench = Bench()
    first, _ = bench.claim()
    second, _ = bench.claim()
    error = UpstreamError("broken", headers={"x": "y"})
    error.in_stream = True
    bench.register.end(first.recording, fail(error))
    with pytest.raises(UpstreamError) as raised:
        second.wait_for_head()
    assert raised.value is not error
    found = (raised.value.message, raised.value.status, raised.value.code, raised.value.in_stream)
    assert found == ("broken", 502, "upstream_error", True)
    assert raised.value.headers == {"x": "y"}
    assert bench.claim()[1]
    assert bench.register.size == 0


@pytest.mark.parametrize("wants_json", [False, True])
def test_a_stream_that_fails_elsewhere(wants_json: bool) -> None:
    """A failure that the bytes do not tell becomes an event, in the shape that the reader reads."""
    bench = Bench()
    first = bench.record(EVENTS[0])
    reader, _ = bench.claim(wants_json=wants_json)
    bench.register.end(first.recording, fail(RecordingLostError()))
    got = take_all(reader)
    assert got.startswith(EVENTS[0] + b"data: ")
    error = json.loads(got.removeprefix(EVENTS[0] + b"data: "))["error"]
    assert error["code"] == "recording_lost" if wants_json else error.startswith("API error: ")
    assert reader.outcome == "recording_lost"


def test_one_reader_is_ended() -> None:
    """A reader that is told to end wakes up, tells its client if it is there, and the others go on."""
    bench = Bench()
    first = bench.record()
    told, _ = bench.claim(wants_json=True)
    gone, _ = bench.claim()
    got: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=lambda name=name, reader=reader: got.update({name: take_all(reader)}))  # type: ignore[misc]
        for name, reader in {"told": told, "gone": gone, "first": first}.items()
    ]
    for thread in threads:
        thread.start()
    told.cancel(ShuttingDownError())
    gone.cancel(ClientGoneError())
    for thread in threads[:2]:
        thread.join(WAIT_S)
    bench.register.keep(first.recording, EVENTS[0])
    bench.finish(first)
    threads[2].join(WAIT_S)
    assert got["gone"] == b""
    assert b"shutting_down" in got["told"]
    assert got["first"] == EVENTS[0]


def test_heartbeats() -> None:
    """A silent reader gets comments, at event boundaries; at once where upstream had not answered."""
    bench = Bench()
    first, _ = bench.claim(heartbeat_s=0.01)
    first.recording.put_head(Head(200, {}, stream=True, answered=False))
    pieces = iter(first)
    assert next(pieces) == next(pieces) == HEARTBEAT
    bench.register.keep(first.recording, EVENTS[0])
    assert next(pieces) == EVENTS[0]
    late, _ = bench.claim(heartbeat_s=1e6)
    late.recording.append(EVENTS[1])
    assert next(iter(late)) == EVENTS[0] + EVENTS[1]


def test_kept_for_a_time() -> None:
    """What ended well is found for KEEP_S, then its bytes are gone, whether or not anybody asks."""
    bench = Bench()
    bench.finish(bench.record(*EVENTS))
    bench.clock.now += KEEP_S - 1
    assert not bench.claim()[1]
    assert bench.register.tick() == 1
    bench.clock.now += 1
    assert bench.register.tick() is None
    assert bench.register.size == 0
    assert bench.claim()[1]


def test_not_kept_where_that_is_not_wanted() -> None:
    """With no time to be kept a recording is found only while it runs."""
    bench = Bench(keep_s=0)
    first = bench.record(*EVENTS)
    assert not bench.claim()[1]
    bench.finish(first)
    assert bench.register.size == 0
    assert bench.claim()[1]
    assert take_all(first) == b"".join(EVENTS)


def test_the_oldest_make_room() -> None:
    """Over the sum of bytes those that ended longest ago go, and never one that runs."""
    total_bytes = 3 * (9 + OVERHEAD_BYTES)
    bench = Bench(total_bytes=total_bytes)
    for name in "abc":
        bench.finish(bench.record(EVENTS[0], name=name))
    running = bench.record(EVENTS[0], name="d")
    bench.register.keep(running.recording, EVENTS[1])
    assert [bench.claim(name)[1] for name in "abcd"] == [True, True, False, False]
    assert bench.register.size <= total_bytes


def test_left_by_all() -> None:
    """Unread, a recording is let go after its grace, and not before; who comes back in time stops that."""
    bench = Bench()
    first = bench.record(EVENTS[0])
    second, _ = bench.claim()
    bench.register.leave(first)
    bench.clock.now += GRACE_S + 1
    assert bench.register.tick() is None
    bench.register.leave(second)
    bench.register.leave(second)
    bench.clock.now += GRACE_S - 1
    assert bench.register.tick() == 1
    third, found = bench.claim()
    assert not found
    bench.clock.now += GRACE_S
    bench.register.tick()
    assert bench.left == []
    bench.register.leave(third)
    bench.clock.now += GRACE_S
    bench.register.tick()
    assert bench.left == ["id1"]
    assert bench.claim()[1], "its name is free at once, though the call has not ended yet"
    bench.register.end(first.recording, Ending(complete=False))
    assert not bench.claim()[1], "the end of the old one does not touch the new one"


def test_left_before_there_was_a_call() -> None:
    """A call that is made after the last client has left is ended at once."""
    recording = Recording("id", "a", "f", "r", 0)
    recording.leave()
    left: list[int] = []
    recording.bind(lambda: left.append(1))
    assert left == [1]


def in_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_given_up() -> None:
    """Over its bound it is an ordinary stream: nobody joins, its writer keeps step with the foremost reader.

    Who is not far behind that one goes on, and who is gets an error event.
    """
    event = b"data: " + b"x" * (WINDOW_BYTES // 2) + b"\n\n"
    bench = Bench(max_bytes=2 * len(event))
    first = bench.record(event, event)
    near, slow = bench.claim()[0], bench.claim()[0]
    recording = first.recording
    bench.register.keep(recording, event)
    assert recording.given_up
    with pytest.raises(IdempotencyKeyInUseError):
        bench.claim()
    writer = in_thread(lambda: bench.register.keep(recording, event))
    wait_for(lambda: recording.end == 4 * len(event), "the fourth event")
    assert writer.is_alive(), "the writer waits"
    pieces, others = iter(first), iter(near)
    for _ in range(3):
        assert next(pieces) == event
        assert next(others) == event
    writer.join(WAIT_S)
    for _ in range(20):
        assert next(pieces) == event
        assert next(others) == event
        bench.register.keep(recording, event)
        assert recording.size <= WINDOW_BYTES + 2 * len(event)
    assert b"no longer has" in take_all(slow)
    bench.finish(first)
    assert take_all(first) == take_all(near) == event
    assert bench.register.size == 0
    assert bench.claim()[1]


def test_given_up_while_nobody_reads() -> None:
    """Nobody who came back would find anything, so it is let go at once and not after its grace."""
    bench = Bench(max_bytes=9)
    first = bench.record(EVENTS[0])
    bench.register.leave(first)
    bench.register.keep(first.recording, EVENTS[1])
    bench.register.tick()
    assert bench.left == ["id1"]


def test_a_writer_does_not_wait_for_one_that_leaves() -> None:
    """The foremost reader's leaving lets the writer go."""
    event = b"data: " + b"x" * WINDOW_BYTES + b"\n\n"
    bench = Bench(max_bytes=9)
    first = bench.record(event)
    writer = in_thread(lambda: bench.register.keep(first.recording, event))
    wait_for(lambda: first.recording.end == 2 * len(event), "the second event")
    bench.register.leave(first)
    writer.join(WAIT_S)
    assert not writer.is_alive()
    assert first.recording.size == 0
