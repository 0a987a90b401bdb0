"""Recordings over both stores, memory and a real Redis, read by two workers; and what only Redis' do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from support.ports import refuse_port
from support.processes import RedisServer, wait_for
from support.scripted import WAIT_S

from grokflask.errors import (
    GrokflaskError,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    StoreUnavailableError,
    StreamGoneError,
    UpstreamError,
)
from grokflask.protocol.dialects import CHAT
from grokflask.replay.idempotency import LINGER_S
from grokflask.replay.reader import Reader
from grokflask.replay.recording import DATA, HEAD, LAST, Ending, Entry, Head, Recording, fail
from grokflask.replay.recordings import OVERHEAD_BYTES, Recordings
from grokflask.replay.redis import PREFIX, RedisRecordings
from grokflask.storage.redis import open_pool

EVENTS = [b"data: %d\n\n" % number for number in range(50)]
MAX_BYTES = 10**6


class Worker:
    """One worker's recordings, and what it was told to end."""

    def __init__(self, recordings: Recordings, name: str = "w") -> None:
        self.recordings = recordings
        self.name = name
        self.left = threading.Event()
        self.count = 0

    def claim(
        self, name: str = "a", fingerprint: str = "f", *, only_old: bool = False, grace_s: float = 0.0
    ) -> tuple[Reader, bool]:
        self.count += 1
        recording = Recording(f"{self.name}{self.count}", name, fingerprint, "r1", grace_s)
        recording.bind(self.left.set)
        reader = Reader(recording, dialect=CHAT, wants_json=True, with_ids=True, heartbeat_s=60)
        return reader, self.recordings.claim(reader, begin=not only_old)

    def begin(self, *events: bytes, name: str = "a", grace_s: float = 0.0) -> Reader:
        reader, first = self.claim(name, grace_s=grace_s)
        assert first
        reader.recording.put_head(Head(200, {"x": "y"}, stream=True))
        self.keep(reader, *events)
        return reader

    def keep(self, reader: Reader, *events: bytes) -> None:
        for event in events:
            self.recordings.keep(reader.recording, event)

    def end(self, reader: Reader, *, complete: bool = True, error: GrokflaskError | None = None) -> None:
        self.recordings.end(reader.recording, fail(error) if error else Ending(complete))

    def leave(self, reader: Reader) -> None:
        self.recordings.leave(reader)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real Redis for this module."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Redis]:
    """A client of it; Redis is empty."""
    client = Redis(port=redis_server.port, socket_timeout=WAIT_S)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def make_worker(client: Redis) -> Iterator[Callable[..., Worker]]:
    """Workers over one Redis, each with its threads."""
    started: list[Worker] = []

    def make(keep_s: float = 100.0, total_bytes: int = 10**7, to: Redis = client) -> Worker:
        name = f"w{len(started)}x"
        store = RedisRecordings(to, lambda: name)
        shared = Recordings(max_bytes=MAX_BYTES, total_bytes=total_bytes, keep_s=keep_s, store=store)
        shared.start()
        started.append(Worker(shared, name))
        return started[-1]

    yield make
    for worker in started:
        worker.recordings.close(20)


@pytest.fixture(params=["memory", "redis"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Worker, Worker]]:
    """Two workers that find each other's recordings; in memory that is one worker, twice."""
    if request.param == "redis":
        make: Callable[..., Worker] = request.getfixturevalue("make_worker")
        yield make(), make()
        return
    recordings = Recordings(max_bytes=MAX_BYTES, total_bytes=10**7, keep_s=100)
    recordings.start()
    worker = Worker(recordings)
    yield worker, worker
    recordings.close(20)


def take(pieces: Iterator[bytes], count: int) -> bytes:
    """So many events."""
    got = b""
    while got.count(b"\n\n") < count:
        piece = next(pieces)
        assert piece, got
        got += piece
    return got


def test_read_along(pair: tuple[Worker, Worker]) -> None:
    """Another worker's stream is read from its start, then live, to its end, with the same ids."""
    carrier, other = pair
    first = carrier.begin(*EVENTS[:3])
    reader, begins = other.claim()
    assert not begins
    assert reader.wait_for_head() == Head(200, {"x": "y"}, stream=True)
    pieces = iter(reader)
    got = take(pieces, 3)
    for number, event in enumerate(EVENTS[3:], 4):
        carrier.keep(first, event)
        got += take(pieces, 1)
        assert got.count(b"\n\n") == number
    carrier.end(first)
    assert next(pieces, b"") == b""
    late, begins = other.claim()
    assert not begins
    assert got == b"".join(first) == b"".join(late)
    assert (reader.outcome, late.outcome) == ("complete", "complete")
    assert reader.recording.request_id == "r1"


def test_go_on_behind_every_event(pair: tuple[Worker, Worker]) -> None:
    """The other worker goes on behind any id that the first gave, also before it has all of that itself."""
    carrier, other = pair
    first = carrier.begin(*EVENTS)
    pieces = iter(first)
    uncut = take(pieces, len(EVENTS))
    for number in range(len(EVENTS)):
        events = [event + b"\n\n" for event in uncut.split(b"\n\n")[:-1]]
        reader, _ = other.claim(only_old=True)
        reader.seek(events[number].partition(b"id: ")[2].partition(b"\n")[0].decode())
        rest = len(EVENTS) - number - 1
        assert take(iter(reader), rest) == b"".join(events[number + 1 :])
        other.leave(reader)


def test_a_large_whole_answer(pair: tuple[Worker, Worker]) -> None:
    """A body that is no stream, and does not fit into one entry, arrives as it was."""
    carrier, other = pair
    first, _ = carrier.claim()
    waiting, _ = other.claim()
    body = bytes(range(256)) * 3000
    first.recording.put_head(Head(201, {}, stream=False))
    carrier.keep(first, body)
    carrier.end(first)
    late, _ = other.claim()
    for reader in (waiting, late):
        assert reader.wait_for_head().status == 201
        assert reader.read_body() == body


def test_turned_away(pair: tuple[Worker, Worker]) -> None:
    """Another request under the name, and one that only goes on where nothing is."""
    carrier, other = pair
    carrier.begin(EVENTS[0])
    with pytest.raises(IdempotencyKeyReusedError):
        other.claim(fingerprint="g")
    with pytest.raises(StreamGoneError):
        other.claim("b", only_old=True)
    assert other.claim("b")[1]


def test_given_up(pair: tuple[Worker, Worker]) -> None:
    """One that has grown too large is nobody else's any more; its own client gets all of it."""
    carrier, other = pair
    first = carrier.begin(EVENTS[0])
    pieces = iter(first)
    assert take(pieces, 1)
    large = b"data: " + b"x" * MAX_BYTES + b"\n\n"
    carrier.keep(first, large)

    def turned_away() -> bool:
        try:
            other.leave(other.claim()[0])
        except IdempotencyKeyInUseError:
            return True
        return False

    wait_for(turned_away, "the other worker to know")
    assert take(pieces, 1).endswith(large)
    carrier.end(first)
    wait_for(lambda: not turned_away(), "the name to be free")


def test_a_failure(pair: tuple[Worker, Worker]) -> None:
    """Who waits gets the first's error; the name is free, for both."""
    carrier, other = pair
    first, _ = carrier.claim()
    waiting, _ = other.claim()
    carrier.end(first, complete=False, error=UpstreamError("broken"))
    with pytest.raises(UpstreamError, match="broken"):
        waiting.wait_for_head()
    assert other.claim()[1]


def test_an_error_inside_the_stream(pair: tuple[Worker, Worker]) -> None:
    """A stream that ended with an error event of its own has that one and no second."""
    carrier, other = pair
    first = carrier.begin(EVENTS[0])
    reader, _ = other.claim()
    carrier.keep(first, b'data: {"error":"x"}\n\n')
    carrier.end(first, complete=False)
    got = b"".join(reader)
    assert got.count(b"data: ") == 2
    assert got.endswith(b'data: {"error":"x"}\n\n')


def test_kept_alive_by_the_other(pair: tuple[Worker, Worker]) -> None:
    """As long as the other worker reads, the exchange goes on; when it leaves as well, it is ended."""
    carrier, other = pair
    first = carrier.begin(EVENTS[0], grace_s=LINGER_S)
    reader, _ = other.claim()
    pieces = iter(reader)
    assert take(pieces, 1)
    carrier.leave(first)
    assert not carrier.left.wait(4 * LINGER_S)
    carrier.keep(first, EVENTS[1])
    assert take(pieces, 1).endswith(EVENTS[1])
    other.leave(reader)
    assert carrier.left.wait(WAIT_S)
    carrier.end(first, complete=False)
    assert other.claim()[1]


def test_only_for_its_time(client: Redis, make_worker: Callable[..., Worker]) -> None:
    """In Redis everything has an end: while it runs a short one, after it what was asked for."""
    worker = make_worker(keep_s=100.0)
    first = worker.begin(EVENTS[0])
    wait_for(lambda: client.exists(f"{PREFIX}stream:{first.recording.id}") == 1, "the stream")
    assert all(0 < client.pttl(key) <= 6000 for key in client.keys(f"{PREFIX}*"))
    worker.end(first)
    keys = [f"{PREFIX}name:a", f"{PREFIX}stream:{first.recording.id}"]
    wait_for(lambda: client.hget(keys[0], "state") == b"ended", "its end")
    assert all(90_000 < client.pttl(key) <= 100_000 for key in keys)


def test_the_oldest_make_room(client: Redis, make_worker: Callable[..., Worker]) -> None:
    """A worker has no more in Redis than it may; what ended longest ago goes first."""
    worker = make_worker(total_bytes=3 * (9 + OVERHEAD_BYTES) - 2)
    for name in "abc":
        first = worker.begin(EVENTS[0], name=name)
        worker.end(first)
        wait_for(lambda name=name: client.hget(f"{PREFIX}name:{name}", "state") == b"ended", "its end")  # type: ignore[misc]
    wait_for(lambda: not client.exists(f"{PREFIX}name:a"), "the first to go")
    assert client.exists(f"{PREFIX}name:b", f"{PREFIX}name:c") == 2
    assert len(client.keys(f"{PREFIX}stream:*")) == 2


def test_publishing_twice(client: Redis) -> None:
    """What Redis has already is not there twice, whatever became of the answer to the first time."""
    store = RedisRecordings(client, lambda: "w")
    recording = Recording("x1", "a", "f", "r1", 0.0)
    assert store.claim(recording, begin=True) == (recording, True)
    assert store.claim(recording, begin=True) == (recording, False)
    entries: list[Entry] = [(0, HEAD, b"{}"), (9, DATA, b"data: 0\n\n")]
    assert store.publish(recording, "running", 5, entries)
    more: list[Entry] = [*entries, (18, DATA, b"data: 1\n\n")]
    assert store.publish(recording, "running", 5, more)
    assert store.read({"x1": (0, 0)}, wait=False)["x1"] == more


def test_publishing_more_than_before(client: Redis, make_worker: Callable[..., Worker]) -> None:
    """A batch that Redis took though its confirmation was lost comes again with more behind it: read once."""
    store = RedisRecordings(client, lambda: "w")
    recording = Recording("x1", "a", "f", "r1", 0.0)
    store.claim(recording, begin=True)
    head: Entry = (0, HEAD, b'{"status":200,"headers":{},"stream":true}')
    store.publish(recording, "running", 5, [head, (9, DATA, EVENTS[0])])
    reader, _ = make_worker().claim()
    assert take(iter(reader), 1)
    again: list[Entry] = [head, (27, DATA, b"".join(EVENTS[:3])), (27, LAST, b'{"complete":true}')]
    store.publish(recording, "ended", 5, again)
    late, _ = make_worker().claim()
    b"".join(reader)
    assert late.wait_for_head()
    assert b"".join(late).count(b"data: ") == 3
    assert (reader.recording.end, late.recording.end) == (27, 27)


def test_a_lost_name(client: Redis, make_worker: Callable[..., Worker]) -> None:
    """A worker that has lost its lease publishes no more under that name, and its own client goes on."""
    worker, other = make_worker(), make_worker()
    first = worker.begin(EVENTS[0])
    wait_for(lambda: client.exists(f"{PREFIX}stream:{first.recording.id}") == 1, "the stream")
    client.delete(f"{PREFIX}name:a")
    second = other.begin(EVENTS[1])
    worker.keep(first, EVENTS[2])
    worker.end(first)
    assert b"".join(first).count(b"data: ") == 2
    assert second.recording.id == client.hget(f"{PREFIX}name:a", "id").decode()  # type: ignore[union-attr]
    other.end(second)
    third, begins = worker.claim()
    assert not begins
    assert b"".join(third) == b"".join(second)


def test_a_name_lost_after_the_end(client: Redis, make_worker: Callable[..., Worker]) -> None:
    """An answer that Redis has lost is not paid again where it is still kept, and is shared again."""
    worker, other = make_worker(), make_worker()
    first = worker.begin(EVENTS[0])
    worker.end(first)
    wait_for(lambda: client.hget(f"{PREFIX}name:a", "state") == b"ended", "its end")
    client.flushall()
    second, begins = worker.claim()
    assert not begins
    with pytest.raises(IdempotencyKeyReusedError):
        worker.claim(fingerprint="g")
    third, begins = other.claim()
    assert not begins
    assert b"".join(first) == b"".join(second) == b"".join(third) != b""


def test_the_grace_of_another_workers_attempt(pair: tuple[Worker, Worker]) -> None:
    """After the last reader has left, wherever it was, the exchange continues for its grace."""
    carrier, other = pair
    first = carrier.begin(EVENTS[0], grace_s=1.5)
    reader, _ = other.claim()
    assert take(iter(reader), 1)
    carrier.leave(first)
    assert not carrier.left.wait(1.6)
    left_at = time.monotonic()
    other.leave(reader)
    assert carrier.left.wait(WAIT_S)
    assert time.monotonic() - left_at > 1.4


def test_a_copy_whose_carrier_has_gone(client: Redis, make_worker: Callable[..., Worker]) -> None:
    """Who reads along is told, not left waiting, and the name is free."""
    store = RedisRecordings(client, lambda: "dead")
    recording = Recording("x1", "a", "f", "r1", 0.0)
    store.claim(recording, begin=True)
    head = b'{"status":200,"headers":{},"stream":true}'
    store.publish(recording, "running", 1, [(0, HEAD, head), (9, DATA, b"data: 0\n\n")])
    worker = make_worker()
    reader, begins = worker.claim()
    assert not begins
    got = b"".join(reader)
    assert got.count(b"data: 0\n\n") == 1
    assert b"recording_lost" in got
    assert worker.claim()[1]


def test_while_redis_is_away(make_worker: Callable[..., Worker]) -> None:
    """Each worker has its own recordings; it cannot say whether another one has what it lacks."""
    worker = make_worker(to=Redis(connection_pool=open_pool(f"redis://127.0.0.1:{refuse_port()}")))
    first = worker.begin(EVENTS[0])
    second, begins = worker.claim()
    assert not begins
    worker.end(first)
    third, begins = worker.claim(only_old=True)
    assert not begins
    assert b"".join(first) == b"".join(second) == b"".join(third) != b""
    with pytest.raises(StoreUnavailableError):
        worker.claim("b", only_old=True)
