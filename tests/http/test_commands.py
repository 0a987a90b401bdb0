"""The commands keys, usage and db: what they store, what they print, and how they fail."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from support.processes import CLIENT_KEY, ROOT, UPSTREAM_KEY

from grokflask.cli.keys import spread_models
from grokflask.cli.tables import print_table
from grokflask.ledger.reports import Drift
from grokflask.ledger.row import FIELDS, MORE_FIELDS, LedgerRow, make_id
from grokflask.ledger.spreadsheet import guard_cell

Run = Callable[..., Result]


@pytest.fixture
def app(client: FlaskClient) -> Flask:
    return client.application


@pytest.fixture
def run(app: Flask) -> Run:
    """Runs a command in the app; a traceback fails the test at once."""

    def invoke(*words: str, code: int = 0) -> Result:
        result: Result = app.test_cli_runner().invoke(args=list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


def read(result: Result) -> Any:
    assert result.stderr == ""
    return json.loads(result.stdout)


def fail(result: Result) -> str:
    """The one line that says what is wrong."""
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


TWO = ["grok-4*", "grok-3"]
LIMITS: list[tuple[list[str], dict[str, Any], dict[str, Any]]] = [
    ([], {}, {}),
    (["--requests", "5/minute"], {"requests": "5/minute"}, {"requests": "5/minute"}),
    (["--tokens-per-minute", "1000"], {"tokens_per_minute": 1000}, {"tokens_per_minute": 1000}),
    (["--streams", "0"], {"streams": 0}, {"streams": 0}),
    (["--budget-day", "2.50"], {"budget_day": 2.5}, {"budget_day": 2.5}),
    (["--budget-month", "0.0000000001"], {"budget_month": 1e-10}, {"budget_month": 1e-10}),
    (["--tools", "none"], {"tools": "none"}, {"tools": "none"}),
    (["--tools", "client"], {"tools": "client"}, {"tools": "client"}),
    (["--tools", "all"], {"tools": None}, {"tools": "all"}),
    (["--models", "grok-4*"], {"models": ["grok-4*"]}, {"models": ["grok-4*"]}),
    (["--models", "grok-4*", "--models", "grok-3"], {"models": TWO}, {"models": TWO}),
    (["--models", "grok-4*,grok-3"], {"models": TWO}, {"models": TWO}),
    (["--models", "grok-4*", "grok-3"], {"models": TWO}, {"models": TWO}),
    (["--models=grok-4*"], {"models": ["grok-4*"]}, {"models": ["grok-4*"]}),
    (["--expires", "2099-01-31"], {"expires_at": "2099-01-31"}, {"expires_at": "2099-01-31T00:00:00.000Z"}),
    (
        ["--models", "a", "b", "--streams", "3", "--budget-day", "1"],
        {"streams": 3, "budget_day": "1", "models": ["a", "b"]},
        {"streams": 3, "budget_day": 1.0, "models": ["a", "b"]},
    ),
]  # fmt: skip
BARE: dict[str, Any] = {
    **dict.fromkeys(("requests", "tokens_per_minute", "streams", "budget_day", "budget_month", "expires_at")),
    "models": [],
    "tools": "all",
}


@pytest.mark.parametrize(("options", "fields", "stored"), LIMITS)
def test_every_way_to_set_a_limit_stores_the_same(
    make_client: Callable[..., FlaskClient],
    options: list[str],
    fields: dict[str, Any],
    stored: dict[str, Any],
) -> None:
    """`create` and `set`, with the name in front or behind, POST and PATCH: all store the same."""
    client = make_client(GROKFLASK_ADMIN_TOKEN="admin-token-0123456789")
    admin = {"Authorization": "Bearer admin-token-0123456789"}
    runner = client.application.test_cli_runner()
    commands = [["create", "a", *options], ["create", *options, "b"], ["create", "c"], ["create", "f"]]
    for command in commands:
        assert runner.invoke(args=["keys", *command]).exit_code == 0
    if options:
        assert runner.invoke(args=["keys", "set", *options, "c"]).exit_code == 0
        assert client.patch("/admin/api/keys/f", json=fields, headers=admin).status_code == 200
    assert client.post("/admin/api/keys", json={"name": "d", **fields}, headers=admin).status_code == 201
    for name in "abcdf":
        shown = json.loads(runner.invoke(args=["keys", "show", name, "--json"]).stdout)
        assert {field: shown[field] for field in BARE} == {**BARE, **stored}
        assert shown == client.get(f"/admin/api/keys/{name}", headers=admin).json


@pytest.mark.parametrize(
    ("words", "spread"),
    [
        ("bob --models A B", "bob --models A --models B"),
        ("--models A B bob", "--models A --models B bob"),
        ("--models A bob", "--models A bob"),
        ("--models A bob --json", "--models A bob --json"),
        ("--models A B --streams 3 bob", "--models A --models B --streams 3 bob"),
        ("--streams 3 --models A bob", "--streams 3 --models A bob"),
        ("bob --models A --models B C --json", "bob --models A --models B --models C --json"),
        ("bob --models=A --json", "bob --models=A --json"),
        ("bob --models", "bob --models"),
        ("bob --models --json", "bob --models --json"),
        ("--models A", "--models A"),
        ("--streams", "--streams"),
        ("bob", "bob"),
        ("", ""),
    ],
)
def test_models_take_words(words: str, spread: str) -> None:
    """`--models` takes what follows up to the next option; the name is given back if there is no other."""
    assert spread_models(words.split(), {"--models", "--streams"}) == spread.split()


def test_create_prints_the_secret_once(run: Run) -> None:
    """Once, with --json as a field; no other command shows it, and it is good."""
    made = read(run("keys", "create", "bob", "--json"))
    assert list(made)[:2] == ["name", "secret"]
    text = run("keys", "create", "carl").stdout
    [secret] = [line.strip() for line in text.splitlines() if line.strip().startswith("gf-")]
    for command in (
        ["list"],
        ["list", "--json"],
        ["list", "--csv"],
        ["show", "bob"],
        ["show", "carl", "--json"],
    ):
        shown = run("keys", *command).stdout
        assert made["secret"] not in shown
        assert secret not in shown
    assert made["secret"].startswith("gf-")


def test_a_made_key_opens_the_door(client: FlaskClient, run: Run) -> None:
    """From the command line to a chat."""
    secret = read(run("keys", "create", "bob", "--models", "grok-4*", "--json"))["secret"]
    body = {"model": "grok-4.3", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    refused = client.post("/v1/chat/completions", json={**body, "model": "grok-3"}, headers=headers)
    assert refused.status_code == 403


def test_a_key_that_nobody_asks_for(make_client: Callable[..., FlaskClient]) -> None:
    """Where clients need no key of the gateway, whoever makes one is told."""
    runner = make_client(GROKFLASK_AUTH="open", GROKFLASK_KEYS="").application.test_cli_runner()
    made = runner.invoke(args=["keys", "create", "bob"])
    assert (made.exit_code, "GROKFLASK_AUTH is open" in made.stderr) == (0, True)


def test_set_and_none(run: Run) -> None:
    """The word none takes a limit away, and what is not named stays."""
    run("keys", "create", "bob", "--streams", "3", "--models", "a", "--budget-day", "2.5", "--expires", "30d")
    options = ["--streams", "none", "--models", "none", "--expires", "none", "--requests", "9/day"]
    shown = read(run("keys", "set", "bob", *options, "--json"))
    assert {field: shown[field] for field in BARE} == {**BARE, "budget_day": 2.5, "requests": "9/day"}
    assert read(run("keys", "show", "bob", "--json")) == shown


def test_rotate_and_revoke(run: Run) -> None:
    """A rotation prints the new secret, and the overlap is the old one's; a revoked key stays to be seen."""
    run("keys", "create", "bob")
    rotated = read(run("keys", "rotate", "bob", "--overlap", "0s", "--json"))
    assert rotated["secret"].startswith("gf-")
    assert [each["expires_at"] is None for each in rotated["secrets"]] == [True, False]
    assert "the old one expires in 1h" in run("keys", "rotate", "bob").stdout
    assert read(run("keys", "revoke", "bob", "--json"))["status"] == "revoked"
    assert "revoked" in run("keys", "list").stdout
    assert "is revoked" in fail(run("keys", "rotate", "bob", code=1))
    assert "is revoked" in fail(run("keys", "set", "bob", "--streams", "1", code=1))


def test_lists(run: Run) -> None:
    """As a table for people, as JSON, and as CSV with the same columns."""
    empty = run("keys", "list")
    assert (empty.stdout, "no keys yet" in empty.stderr) == ("", True)
    assert read(run("keys", "list", "--json")) == []
    run("keys", "create", "bob", "--budget-day", "2.5", "--models", "a", "b")
    run("keys", "create", "al")
    lines = run("keys", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "al", "bob"]
    assert "2.50" in lines[2]
    rows = list(csv.DictReader(io.StringIO(run("keys", "list", "--csv").stdout)))
    assert [(row["name"], row["budget_day"], row["models"]) for row in rows] == [
        ("al", "", ""),
        ("bob", "2.5", "a b"),
    ]
    assert [each["name"] for each in read(run("keys", "list", "--json"))] == ["al", "bob"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("keys show nobody", 1, "no key named 'nobody'"),
        ("keys revoke nobody", 1, "no key named 'nobody'"),
        ("keys rotate nobody", 1, "no key named 'nobody'"),
        ("keys set nobody --streams 1", 1, "no key named 'nobody'"),
        ("keys create alice", 1, "GROKFLASK_KEYS"),
        ("keys create a/b", 2, "NAME expects"),
        ("keys create bob --streams x", 2, "--streams expects a whole number"),
        ("keys create bob --streams -1", 2, "--streams expects a whole number"),
        ("keys create bob --streams 1000001", 2, "--streams expects a whole number"),
        ("keys create bob --tokens-per-minute 1e3", 2, "--tokens-per-minute expects"),
        ("keys create bob --requests often", 2, "--requests expects"),
        ("keys create bob --budget-day 1e400", 2, "--budget-day expects"),
        ("keys create bob --budget-month nan", 2, "--budget-month expects"),
        ("keys create bob --expires 2001-01-01", 2, "--expires expects a time in the future"),
        ("keys create bob --models grok-4,none", 2, "--models expects either patterns or the word none"),
        ("keys create bob --models a,,b", 2, "--models expects"),
        ("keys set nobody", 2, "Nothing to change"),
        ("keys rotate nobody --overlap soon", 2, "--overlap expects"),
        ("keys rotate nobody --overlap 9999w", 2, "--overlap expects"),
        ("keys list --json --csv", 2, "cannot be combined"),
        ("usage rows --json --csv", 2, "cannot be combined"),
        ("usage rows --since yesterday", 2, "--since expects"),
        ("usage rows --outcome done", 2, "--outcome expects one of"),
        ("usage rows --request-id a\x00b", 2, "--request-id expects"),
        ("usage summary --by week", 2, "--by expects one of: key, model, day, outcome"),
    ],
)
def test_what_goes_wrong_is_one_line(run: Run, words: str, code: int, message: str) -> None:
    """An expected error is a line on standard error with the option's name: 2 for bad usage, else 1."""
    assert message in fail(run(*words.split(" "), code=code))
    assert read(run("keys", "list", "--json")) == []


@pytest.mark.parametrize(
    "words",
    ["keys create", "keys create bob --budget 5", "keys create a b", "keys fly", "usage rows --limit 0"],
)
def test_bad_usage(run: Run, words: str) -> None:
    """What click itself refuses ends with 2 as well."""
    assert "Error: " in run(*words.split(), code=2).stderr


def test_the_database_cannot_be_used(make_client: Callable[..., FlaskClient], tmp_path: Path) -> None:
    """The line says what is wrong with it."""
    (tmp_path / "file").write_text("not a folder")
    runner = make_client(DATABASE_URL=f"sqlite:///{tmp_path}/file/x.db").application.test_cli_runner()
    for words in (["keys", "list"], ["keys", "create", "bob"], ["usage", "rows"], ["db", "upgrade"]):
        result = runner.invoke(args=words)
        assert result.exit_code == 1
        if words == ["keys", "list"]:
            assert fail(result).startswith("The database cannot be used (DATABASE_URL): ")
            assert str(tmp_path) in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", ["keys list", "usage rows", "db upgrade"])
def test_commands_have_time(client: FlaskClient, words: str) -> None:
    """They wait longer for the database than a request may."""
    runner = client.application.test_cli_runner()
    assert runner.invoke(args=words.split()).exit_code == 0
    assert client.application.extensions["database"].limits.read_s == 30


def test_db_upgrade(run: Run) -> None:
    """It prints the tables' version, the same one each time."""
    assert run("db", "upgrade").stdout == run("db", "upgrade").stdout
    assert run("db", "upgrade").stdout.startswith("The database has version ")


NASTY = "=HYPERLINK(1)\x1b[2J"


@pytest.fixture
def ledger(app: Flask) -> Iterator[list[LedgerRow]]:
    """Three rows in the ledger, the newest last: an open one, and two by bob."""
    now = time.time()
    rows = [
        LedgerRow(id=make_id(now - age_s), request_id=f"r{age_s}", key="bob", route="chat", model="grok-4.3",
                  started_at=now - age_s, outcome="complete", status=200, duration_ms=12, prompt_tokens=5,
                  completion_tokens=7, total_tokens=12, cost_ticks=cost, bytes_out=3, worker="w", ttft_ms=4,
                  cached_tokens=0, reasoning_tokens=0, estimated=cost == 10**10)
        for age_s, cost in ((7200, 10**10), (60, 12_345_678))
    ]  # fmt: skip
    rows.append(
        LedgerRow(
            id=make_id(now),
            request_id="r0",
            key="+carl",
            route="chat",
            model=NASTY,
            started_at=now,
            worker="w",
        )
    )
    writer = app.extensions["ledger_writer"]
    for row in rows:
        writer.open(row)
        if row.outcome:
            writer.settle(row)
    assert writer.flush(20)
    yield rows
    writer.close(20)


def test_rows(run: Run, ledger: list[LedgerRow]) -> None:
    """Newest first: a table with money in USD, JSON with every field of a row, CSV with the same."""
    expected = [row.to_fields() for row in reversed(ledger)]
    assert read(run("usage", "rows", "--json")) == expected
    rows = list(csv.DictReader(io.StringIO(run("usage", "rows", "--csv").stdout)))
    assert [row["request_id"] for row in rows] == ["r0", "r60", "r7200"]
    assert tuple(rows[0]) == (*FIELDS, *MORE_FIELDS)
    assert (rows[0]["outcome"], rows[1]["cost_ticks"], rows[2]["estimated"]) == ("", "12345678", "true")
    header, first, second, third = run("usage", "rows").stdout.splitlines()
    assert header.split()[:4] == ["STARTED", "REQUEST", "ID", "KEY"]
    assert " open" in first
    assert second.endswith(" 0.001235")
    assert third.endswith(" 1.00~")


def test_cells_that_would_be_formulas(run: Run, ledger: list[LedgerRow]) -> None:
    """In CSV, what a client sent cannot become a formula; in a table, nothing a terminal would obey."""
    rows = list(csv.DictReader(io.StringIO(run("usage", "rows", "--csv").stdout)))
    assert (rows[0]["model"], rows[0]["key"]) == ("'" + NASTY, "'+carl")
    table = run("usage", "rows").stdout
    assert "\x1b" not in table
    assert "=HYPERLINK(1)?[2J" in table


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        *(("=1", "'=1"), ("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), ("\t=1", "'\t=1"), ("a=1", "a=1")),
        *(("", ""), (-1, -1), (None, None), (True, "true"), (["a", "b"], "a b"), (["=a"], "'=a"), ([], "")),
    ],
)
def test_guarded_cells(value: object, cell: object) -> None:
    """Text that begins like a formula gets a quote in front; numbers stay numbers."""
    assert guard_cell(value) == cell


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("--key bob", ["r60", "r7200"]),
        ("--key +carl", ["r0"]),
        ("--key nobody", []),
        ("--since 1h", ["r0", "r60"]),
        ("--until 1h", ["r7200"]),
        ("--since 3h --until 1h", ["r7200"]),
        ("--outcome complete", ["r60", "r7200"]),
        ("--outcome lost", []),
        ("--model grok-4.3", ["r60", "r7200"]),
        ("--request-id r60", ["r60"]),
        ("--limit 2", ["r0", "r60"]),
        ("--limit 1 --key bob", ["r60"]),
        ("--since 2001-01-01", ["r0", "r60", "r7200"]),
    ],
)
def test_row_filters(run: Run, ledger: list[LedgerRow], options: str, found: list[str]) -> None:
    """Each option keeps what it asks for, in each of the three forms."""
    words = ["usage", "rows", *options.split()]
    assert [row["request_id"] for row in read(run(*words, "--json"))] == found
    rows = csv.DictReader(io.StringIO(run(*words, "--csv").stdout))
    assert [row["request_id"] for row in rows] == found
    lines = run(*words).stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == found


def test_many_rows(run: Run, app: Flask) -> None:
    """A table has 50 rows unless more are asked for; an export has all of them, over several pages."""
    database, now = app.extensions["database"], time.time()
    rows = [
        LedgerRow(make_id(now - number), f"r{number}", "bob", "chat", "m", now - number)
        for number in range(1100)
    ]
    values = [
        {"id": row.id, "request_id": row.request_id, "at": row.started_at, "day": row.day} for row in rows
    ]
    insert = text(
        "INSERT INTO exchanges "
        "(id, request_id, key, route, model, started_at, day, worker, stream, estimated) VALUES "
        "(:id, :request_id, 'bob', 'chat', 'm', :at, :day, 'w', false, false)"
    )
    database.write(lambda connection: connection.execute(insert, values))
    assert len(run("usage", "rows").stdout.splitlines()) == 51
    assert len(run("usage", "rows", "--limit", "60").stdout.splitlines()) == 61
    assert [row["request_id"] for row in read(run("usage", "rows", "--json"))] == [
        f"r{n}" for n in range(1100)
    ]
    assert len(read(run("usage", "rows", "--json", "--limit", "1050"))) == 1050
    assert len(run("usage", "rows", "--csv").stdout.splitlines()) == 1101


def test_an_empty_ledger(run: Run) -> None:
    """Nothing is printed as nothing, in each form."""
    assert read(run("usage", "rows", "--json")) == []
    assert run("usage", "rows", "--csv").stdout == ",".join((*FIELDS, *MORE_FIELDS)) + "\n"
    assert len(run("usage", "rows").stdout.splitlines()) == 1
    assert read(run("usage", "summary", "--json")) == []


def test_summary(run: Run, ledger: list[LedgerRow]) -> None:
    """Sums by key, or by what is asked for; ticks for programs, USD for people; open rows do not count."""
    total = 10**10 + 12_345_678
    for by, name in (("key", "bob"), ("model", "grok-4.3"), ("outcome", "complete")):
        [row] = read(run("usage", "summary", "--by", by, "--json"))
        assert (row[by], row["exchanges"], row["prompt_tokens"], row["cost_ticks"]) == (name, 2, 10, total)
        [line] = csv.DictReader(io.StringIO(run("usage", "summary", "--by", by, "--csv").stdout))
        assert (line[by], line["cost_ticks"], line["estimated_ticks"]) == (name, str(total), str(10**10))
    days = read(run("usage", "summary", "--by", "day", "--json"))
    assert sum(day["exchanges"] for day in days) == 2
    header, line = run("usage", "summary").stdout.splitlines()
    assert header.split()[:2] == ["KEY", "EXCHANGES"]
    assert line.split() == ["bob", "2", "10", "0", "14", "0", "1.00", "1.00", "6", "0.00"]
    assert read(run("usage", "summary", "--until", "2001-01-01", "--json")) == []


def test_summary_of_several(app: Flask, run: Run, ledger: list[LedgerRow]) -> None:
    """A table of several sums ends with that of all."""
    row = LedgerRow(make_id(), "x", "zoe", "chat", "m", time.time(), outcome="complete", cost_ticks=10**10)
    app.extensions["ledger_writer"].settle(row)
    assert app.extensions["ledger_writer"].flush(20)
    lines = [line.split() for line in run("usage", "summary").stdout.splitlines()]
    assert [line[0] for line in lines] == ["KEY", "bob", "zoe", "all"]
    assert lines[-1][1] == "3"
    assert lines[-1][6] == "2.00"


def test_check_and_repair(app: Flask, run: Run, ledger: list[LedgerRow]) -> None:
    """Drift is shown and ends with 1; --repair mends it and ends with 0, and then there is none."""
    assert "agree" in run("usage", "check").stdout
    assert read(run("usage", "check", "--json")) == {"drift": [], "repaired": False}
    spoil = text("UPDATE daily SET cost_ticks = cost_ticks + 5 WHERE key = 'bob'")
    app.extensions["database"].write(lambda connection: connection.execute(spoil))
    shown = run("usage", "check", code=1)
    assert "bob" in shown.stdout
    assert "--repair" in shown.stderr
    found = read(run("usage", "check", "--json", code=1))
    assert not found["repaired"]
    assert all(
        each["stored"] - each["actual"] == 5 and each["field"] == "cost_ticks" for each in found["drift"]
    )
    assert len(found["drift"]) >= 1
    repaired = read(run("usage", "check", "--repair", "--json"))
    assert repaired == {"drift": found["drift"], "repaired": True}
    assert "agree" in run("usage", "check").stdout


def test_check_asks_others_too(app: Flask, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else can drift has its own check in the app, and is told whether to repair."""
    told: list[bool] = []

    def find(repair: bool) -> list[Drift]:
        told.append(repair)
        return [Drift("bob", "2027-01-15", "", "", "counter", 2, 1)]

    monkeypatch.setitem(app.extensions, "checks", [find])
    assert read(run("usage", "check", "--json", code=1))["drift"][0]["field"] == "counter"
    run("usage", "check", "--repair")
    assert told == [False, True]


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are aligned, numbers to the right; long cells are cut."""
    print_table(["name", "n"], [["a", 5], ["bcd", 1234], ["x" * 99, None]])
    wide = "x" * 59 + "…"
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME".ljust(60) + "     N", "a".ljust(60) + "     5", "bcd".ljust(60) + "  1234", wide]


def test_as_people_run_it(tmp_path: Path) -> None:
    """`flask --app wsgi`: standard output is the JSON alone, standard error is empty or the one line."""
    env = {
        "PYTHONPATH": str(ROOT),
        "PATH": str(Path(sys.executable).parent),
        "XAI_API_KEY": UPSTREAM_KEY,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
        "DATABASE_URL": f"sqlite:///{tmp_path}/new/ledger.db",
    }

    def flask(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flask", "--app", "wsgi", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    made = flask("keys", "create", "bob", "--models", "grok-4*", "grok-3", "--json")
    assert (made.returncode, made.stderr) == (0, "")
    assert json.loads(made.stdout)["models"] == ["grok-4*", "grok-3"]
    again = flask("keys", "create", "bob")
    assert (again.returncode, again.stdout, len(again.stderr.splitlines())) == (1, "", 1)
    assert again.stderr.startswith("Error: A key named 'bob' exists")
