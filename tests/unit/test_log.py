"""Log lines: one for each record, readable by machines, without secrets."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from grokflask.log import LineFormatter, RedactingFormatter, configure_logging

SECRET = "xai-hunter2-secret"
PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "]+)(?: |$)')


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Handlers, their formatters and levels are put back."""
    loggers = [logging.getLogger(name) for name in ("", "grokflask", "gunicorn.error", "gunicorn.access")]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    formatters = [(handler, handler.formatter) for logger in loggers for handler in logger.handlers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        for added in set(logger.handlers) - set(handlers):
            logger.removeHandler(added)
        logger.propagate = propagate
    for handler, formatter in formatters:
        handler.setFormatter(formatter)


def make_record(message: str = "hello", *args: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("grokflask.test", logging.INFO, __file__, 1, message, args, None)
    record.__dict__.update(extra)
    return record


def parse(line: str) -> dict[str, str]:
    """The pairs of a line; fails when anything else stands in it."""
    assert PAIR.sub("", line) == "", line
    return {name: json.loads(value) if value[0] == '"' else value for name, value in PAIR.findall(line)}


def test_line_begins_with_time_level_logger_and_message() -> None:
    """A record is one line of pairs, its time in UTC to the millisecond."""
    record = make_record("hello %s", "you")
    record.created, record.msecs = 1700000000.0479, 47.9
    line = LineFormatter().format(record)
    assert line == 'ts=2023-11-14T22:13:20.047Z level=info logger=grokflask.test msg="hello you"'


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("a.b_c:d/e@f+g%h,i-j", "a.b_c:d/e@f+g%h,i-j"),
        (5, "5"),
        (-1.5, "-1.5"),
        (0, "0"),
        (True, "true"),
        (False, "false"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "x"', r'"say \"x\""'),
        ("back\\slash", r'"back\\slash"'),
        ("a=b", '"a=b"'),
        ("ünï", '"ünï"'),
        ("世界", '"世界"'),
        ("a\nb\r\tc", r'"a\nb\r\tc"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        (["a", 1], "\"['a', 1]\""),
    ],
)
def test_quoting(value: object, written: str) -> None:
    """Plain text stands bare; anything unusual is a JSON string."""
    assert LineFormatter().format(make_record(fields={"x": value})).endswith(f" x={written}")


def test_none_is_left_out() -> None:
    """What is not known has no pair."""
    assert parse(LineFormatter().format(make_record(fields={"a": None, "b": 0}))).keys() == {
        "ts",
        "level",
        "logger",
        "msg",
        "b",
    }


@pytest.mark.parametrize(
    "text",
    [
        "x\nts=2023 level=error msg=forged",
        "x\r\nforged",
        'x" level=error y="',
        "x\u2028forged",
        "x\u2029forged",
        "x\x85forged",
        "x\x0bforged\x0cforged\x1cforged",
        "x\x9b31mforged",
    ],
)
def test_no_value_starts_a_line_or_a_pair(text: str) -> None:
    """Whatever a client puts into a model's name, it stays inside its quotes, on its line."""
    line = LineFormatter().format(make_record(text, fields={"model": text}))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    pairs = parse(line)
    assert list(pairs) == ["ts", "level", "logger", "msg", "model"]
    assert pairs["model"] == pairs["msg"] == text


def test_traceback_is_one_pair() -> None:
    """A traceback does not spread over lines."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = make_record()
        record.exc_info = sys.exc_info()
    line = LineFormatter().format(record)
    assert "\n" not in line
    assert parse(line)["trace"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize("inner", [LineFormatter(), logging.Formatter("%(levelname)s %(message)s")])
def test_secrets_are_cut_out_wherever_they_stand(inner: logging.Formatter) -> None:
    """In the message, its arguments, a field or a traceback, whatever formatter writes the line."""
    try:
        raise ValueError(f"sent {SECRET}")
    except ValueError:
        record = make_record("got %s and second-secret", SECRET, fields={"a": f"x{SECRET}x"})
        record.exc_info = sys.exc_info()
    line = RedactingFormatter(inner, (SECRET, "second-secret")).format(record)
    assert SECRET not in line
    assert "second-secret" not in line
    assert "got [redacted] and [redacted]" in line
    assert "ValueError: sent [redacted]" in line


@pytest.mark.parametrize("secret", ['pass"word-1', "pass\\word-1", 'a"b\\c"d-12345'])
def test_secret_that_quoting_changes_is_cut_out(secret: str) -> None:
    """Keys may hold quotes and backslashes, which a quoted value spells differently."""
    line = RedactingFormatter(LineFormatter(), (secret,)).format(make_record(f"got {secret} here"))
    assert secret not in line
    assert parse(line)["msg"] == "got [redacted] here"


def capture(logger_name: str, level: int = logging.INFO, fmt: str = "%(message)s") -> io.StringIO:
    """A handler of `logger_name`'s own, as gunicorn has, and what it writes."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logging.Formatter(fmt))
    logger = logging.getLogger(logger_name)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return lines


@pytest.mark.parametrize("name", ["gunicorn.error", "gunicorn.access"])
def test_gunicorns_own_handlers_are_redacted(name: str) -> None:
    """gunicorn's loggers do not reach the root; their lines keep their form and lose the secrets."""
    lines = capture(name, fmt="[%(levelname)s] %(message)s")
    configure_logging("info", (SECRET,))
    logging.getLogger(name).info("GET /?key=%s", SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger(name).exception("failed")
    written = lines.getvalue()
    assert written.startswith("[INFO] GET /?key=[redacted]\n[ERROR] failed\n")
    assert "ValueError: [redacted]" in written
    assert SECRET not in written


def test_all_loggers_write_redacted_lines_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Our own records and a library's go to standard error, one line each, without secrets."""
    configure_logging("info", (SECRET,))
    logging.getLogger("grokflask.exchange").info("exchange", extra={"fields": {"key": SECRET}})
    logging.getLogger("urllib3").warning("retrying %s", SECRET)
    first, second = capsys.readouterr().err.splitlines()
    assert parse(first)["key"] == "[redacted]"
    assert parse(second)["msg"] == "retrying [redacted]"
    assert parse(second)["logger"] == "urllib3"


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", ["debug", "info", "warning"]), ("info", ["info", "warning"]), ("error", [])],
)
def test_level(capsys: pytest.CaptureFixture[str], level: str, seen: list[str]) -> None:
    """The level is for our own loggers; libraries do not get to debug."""
    configure_logging(level, ())
    logger = logging.getLogger("grokflask.x")
    logger.debug("debug")
    logger.info("info")
    logger.warning("warning")
    logging.getLogger("urllib3").debug("noise")
    assert [parse(line)["msg"] for line in capsys.readouterr().err.splitlines()] == seen


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A second app replaces the first one's handler, and its secrets are cut out of gunicorn's lines too."""
    lines = capture("gunicorn.error")
    configure_logging("info", ("first-secret",))
    configure_logging("info", (SECRET,))
    for name in ("grokflask", "gunicorn.error"):
        logging.getLogger(name).info("has %s", SECRET)
    (line,) = capsys.readouterr().err.splitlines()
    assert parse(line)["msg"] == "has [redacted]"
    assert lines.getvalue() == "has [redacted]\n"
    (handler,) = [each for each in logging.getLogger("gunicorn.error").handlers if each.formatter]
    assert isinstance(handler.formatter, RedactingFormatter)
    assert not isinstance(handler.formatter._inner, RedactingFormatter)
