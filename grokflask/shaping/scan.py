"""One look through a JSON body, in slices: it is small enough to be decoded, and what it names. No IO.

A decoder holds the interpreter until it is done, makes an object of every value, and keeps only one of two
fields with the same name. This scan makes no objects, lets other requests run, stops at the first limit that
is exceeded, and refuses duplicate names. It does not check the grammar: what it says holds for valid JSON, so
a decoder must follow.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import msgspec

from grokflask.config import Settings
from grokflask.errors import BodyTooLargeError, InvalidRequestError
from grokflask.protocol.raw_json import RawFields, read_text
from grokflask.runtime import step_aside

MAX_DEPTH = 200
"""Containers inside each other."""

LARGE_BYTES = 2**20
"""A larger body is always scanned."""

SLICE_BYTES = 8 * 1024
STRING_BYTES = 256 * 1024
"""Bytes that are read at a time, of JSON and within a long string."""

TURN_BYTES = 512 * 1024
TOKEN_BYTES = 128
"""Other requests run after so many bytes. A token takes about as long as TOKEN_BYTES of text."""

TURN_NAMES = 1000
"""Other requests run after so many names of one object."""

AT_ONCE = 4
WAITING_BYTES = 64 * 1024
"""How many bodies are scanned at once, of those that are larger. Each takes a turn in every round of the
event loop, so many of them would make each round long."""

ID_BYTES = 2048
"""A longer string is no id, however it is escaped."""

# A structural character, a string, or both. Whatever else there is (numbers, blanks, literals) is skipped.
# A string that the slice cuts ends with nothing, or with half an escape, instead of a quote.
_TOKEN = re.compile(
    rb'[^\[\]{},:"]*+(?:([\[\]{},:])[ \t\r\n]*+)?(?:("[^"\\]*+(?:\\.[^"\\]*+)*+)("|\\?))?', re.DOTALL
)
_NAME = re.compile(rb'[\s{,]*("[^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*', re.DOTALL)
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

# A name can be hidden only by escapes of its letters, which no encoder writes.
_ESCAPED_LETTER = re.compile(rb"\\u00(?:5f|6[1-9a-f]|7[0-9a])", re.IGNORECASE)
_PICTURE_TYPES = (b'"image_url', b'"input_image', b'"image')

_PROMPTS = (b'"messages', b'"input')
_FILE_SUFFIXES = (b"_file_id", b"_file_ids")


@dataclass(slots=True)
class Findings:
    """What a body names, at any depth."""

    files: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    """Values of `previous_response_id`."""
    collections: bool = False
    """A tool searches collections (vector stores) of the operator's team at xAI."""
    pictures: int = 0
    """Parts of messages that are pictures."""
    picture_bytes: int = 0
    """Bytes of pictures as base64."""


NOTHING = Findings()

_rooms = threading.BoundedSemaphore(AT_ONCE)


def scan(body: bytes, settings: Settings, *, always: bool = False, limited: bool = False) -> Findings:
    """What `body` names. A small body that can name nothing is skipped, unless `always`.

    Collections are looked for in a small body only if `limited`.

    Raises InvalidRequestError for a name that an object has twice, too many values and too deep nesting, and
    BodyTooLargeError for too many bytes beside base64.
    """
    most = settings.max_json_elements
    if (
        always
        or len(body) > min(LARGE_BYTES, settings.max_json_bytes)
        or (len(body) > most and sum(map(body.count, (b",", b"[", b"{"))) > most)
        or b"file_id" in body
        or (limited and (b"vector_store_id" in body or b"collection_id" in body))
        or (b"image" in body and any(kind + b'"' in body for kind in _PICTURE_TYPES))
        or (b"\\u00" in body and _ESCAPED_LETTER.search(body))
    ):
        with _rooms if len(body) > WAITING_BYTES else nullcontext():
            return _Scan(body, settings).run()
    return NOTHING


def check_names(body: bytes, fields: RawFields) -> None:
    """Raises InvalidRequestError if a name stands twice at the top level of `body`, an object.

    `fields` is its top level, with the last value of each name.
    """
    values = sum(memoryview(value).nbytes for value in fields.values())
    if sum(map(len, fields)) + values + 4 * len(fields) + 1 == len(body):
        return  # nothing is missing, not even a blank
    seen: set[str] = set()
    name, at = "", 0
    while match := _NAME.match(body, at):
        name = _decode(match[1])
        value = bytes(fields[name])
        at = match.end() + len(value)
        if name in seen or body[match.end() : at] != value:
            raise _make_duplicate_error(name)
        seen.add(name)
        if len(seen) % TURN_NAMES == 0:
            step_aside()
    if seen and body[at:].strip() != b"}":  # the last value is the beginning of another, such as 1 of 12
        raise _make_duplicate_error(name)


def _make_duplicate_error(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name[:64]!r} stands twice in the same object.", param=name[:64])


class _Scan:
    """The state of one scan. Strings are bytes that begin with their quote, and have none at their end."""

    def __init__(self, body: bytes, settings: Settings) -> None:
        self._body = body
        self._settings = settings
        self._found = Findings()
        self._stack: list[tuple[set[bytes] | None, _Taker | None, bytes]] = []
        self._names: set[bytes] | None = None  # of the current object; None in an array
        self._at_name = False  # a string that comes now is a name
        self._name = b""  # the last one, or the one that the current array stands under
        self._take: _Taker | None = None  # what to do with the strings under that name
        self._field = b""  # the last name at the top level
        self._media_type = b""
        self._elements = 0
        self._tokens = 0
        self._data_bytes = 0

    def run(self) -> Findings:
        at, turn, size = 0, 0, len(self._body)
        while at < size:
            end = min(at + SLICE_BYTES, size)
            tokens = _TOKEN.findall(self._body, at, end)
            self._tokens += max(0, len(tokens) - 3)  # a cut makes up to three more
            unread = self._read(tokens)
            at = end if not unread else self._read_long(end - unread)
            self._check(at)
            if (work := at + self._tokens * TOKEN_BYTES) > turn + TURN_BYTES:
                turn = work
                step_aside()
        return self._found

    def _read(self, tokens: Iterable[tuple[bytes, bytes, bytes]]) -> int:
        """Takes the tokens of a slice. Returns the number of bytes of a string that its end cuts."""
        for mark, string, end in tokens:
            if mark == b",":
                self._elements += 1
                self._at_name = self._names is not None
            elif mark == b":":
                self._at_name = False
            elif mark in (b"{", b"["):
                self._open(mark)
            elif mark:
                self._close()
            if string:
                if end != b'"':
                    return len(string) + len(end)
                if self._at_name:
                    self._take_name(string)
                elif self._take is not None:
                    self._take(self, string, len(string))
        return 0

    def _read_long(self, start: int) -> int:
        """Takes the string that begins at `start`. Returns where it ends."""
        body, at, size = self._body, start + 1, len(self._body)
        while at < size and body[at : at + 1] != b'"':
            end = min(at + STRING_BYTES, size)
            quote = body.find(b'"', at, end)
            if body.find(b"\\", at, end if quote < 0 else quote) >= 0:
                after = _STRING.match(body, at, end).end()  # type: ignore[union-attr]
                at = after if after > at else size  # no progress: half an escape ends the body
            else:
                at = end if quote < 0 else quote
            if at - start > TURN_BYTES:
                step_aside()
        if self._at_name:
            self._check(at)
            self._take_name(body[start:at])
        elif self._take is not None:
            self._take(self, body[start : min(at, start + ID_BYTES)], at - start)
        return min(at + 1, size)

    def _open(self, mark: bytes) -> None:
        self._elements += 1
        self._stack.append((self._names, self._take, self._name))
        if len(self._stack) > MAX_DEPTH:
            raise InvalidRequestError(f"The body has more than {MAX_DEPTH} levels.", param=self._param)
        self._at_name = mark == b"{"
        self._names = None
        if self._at_name:
            self._names, self._take, self._media_type = set(), None, b""

    def _close(self) -> None:
        if not self._stack:
            raise InvalidRequestError("The body is not valid JSON: it has too many brackets.")
        self._names, self._take, self._name = self._stack.pop()
        self._at_name, self._media_type = False, b""

    def _check(self, at: int) -> None:
        """Raises ClientError when what was read until `at` exceeds a limit."""
        most, most_bytes = self._settings.max_json_elements, self._settings.max_json_bytes
        if self._elements > most or self._tokens > 4 * most:  # JSON has three tokens for an element
            raise InvalidRequestError(f"The body has more than {most} values.", param=self._param)
        if at - self._data_bytes > most_bytes:
            text = f"The request's body has more than {most_bytes} bytes that are not base64."
            raise BodyTooLargeError(text, param=self._param)

    @property
    def _param(self) -> str | None:
        """The field of the body that is being read."""
        return _decode(self._field)[:64] if self._field else None

    def _take_name(self, name: bytes) -> None:
        assert self._names is not None
        name = _unescape(name)
        if name in self._names:
            raise _make_duplicate_error(name[1:].decode(errors="replace"))
        self._names.add(name)
        self._name = name
        self._take = _TAKERS.get(name)
        if self._take is None and name.endswith(_FILE_SUFFIXES):
            self._take = _Scan._take_file
        if len(self._stack) == 1:
            self._field = name

    def _take_type(self, type: bytes, length: int) -> None:
        # A part stands in messages[].content[], or one level deeper in a tool's result.
        if (
            len(self._stack) in (5, 7)
            and length < ID_BYTES
            and self._field in _PROMPTS
            and self._stack[-1][2] in (b'"content', b'"output')
            and _unescape(type) in _PICTURE_TYPES
        ):
            self._found.pictures += 1

    def _take_file(self, id: bytes, length: int) -> None:
        self._found.files.append(_decode(id) if length < ID_BYTES else "")

    def _take_response(self, id: bytes, length: int) -> None:
        self._found.responses.append(_decode(id) if length < ID_BYTES else "")

    def _take_collection(self, _id: bytes, _length: int) -> None:
        if self._field not in _PROMPTS:  # where it is data, not a tool
            self._found.collections = True

    def _take_media_type(self, media_type: bytes, _length: int) -> None:
        self._media_type = media_type

    def _take_url(self, url: bytes, length: int) -> None:
        if url[:6].lower() == b'"data:':
            self._data_bytes += length
            if url[6:11].lower() == b"image":
                self._found.picture_bytes += length

    def _take_data(self, _data: bytes, length: int) -> None:
        self._data_bytes += length
        if self._media_type.startswith(b'"image') or self._name == b'"b64_json':
            self._found.picture_bytes += length


_Taker = Callable[[_Scan, bytes, int], None]

_TAKERS: dict[bytes, _Taker] = {
    b'"' + name: taker
    for names, taker in (
        (b"type", _Scan._take_type),
        (b"file_id file_ids", _Scan._take_file),
        (b"previous_response_id", _Scan._take_response),
        (b"vector_store_id vector_store_ids collection_id collection_ids", _Scan._take_collection),
        (b"media_type", _Scan._take_media_type),
        (b"url image_url", _Scan._take_url),
        (b"data b64_json file_data", _Scan._take_data),
    )
    for name in names.split()
}
"""The names that are looked for."""


def _unescape(string: bytes) -> bytes:
    return string if b"\\" not in string else b'"' + _decode(string).encode()


def _decode(string: bytes) -> str:
    """The text of a string. Raises InvalidRequestError, such as for half a surrogate pair."""
    text = read_text(msgspec.Raw(string + b'"'))
    if text is None:
        raise InvalidRequestError("The body cannot be read: it has a string that is not valid Unicode.")
    return text
