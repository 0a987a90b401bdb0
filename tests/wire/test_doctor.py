"""`flask --app wsgi doctor` through a real gateway's address, with proxies between; with broken settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support.ports import refuse_port
from support.processes import CLIENT_KEY, GUNICORN, GatewayServer, wait_for
from support.proxies import Faults, Proxy
from support.scripted import WAIT_S
from support.stores import ADMIN_TOKEN, run_command

from grokflask.web import diagnose


@pytest.fixture
def proxy(gateway: GatewayServer) -> Iterator[Proxy]:
    """A proxy without faults in front of the gateway."""
    server = Proxy(gateway.port)
    yield server
    server.close()


def look(cwd: Path, url: str, code: int, *words: str, **env: str) -> dict[str, dict[str, Any]]:
    """The doctor's findings, from a machine on which the gateway itself would run on the sandbox."""
    done = run_command(cwd, {"GROKFLASK_KEY": CLIENT_KEY, **env}, "doctor", "--json", "--url", url, *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert CLIENT_KEY not in done.stdout + done.stderr
    return {each["check"]: each for each in json.loads(done.stdout)["findings"]}


def test_nothing_in_between(gateway: GatewayServer, tmp_path: Path) -> None:
    """Every check of a gateway's own address is fine."""
    seen = look(tmp_path, gateway.url, 0)
    checks = ["/health", "/ready", "stream", "compression", "request id", "addresses"]
    checks += ["script name", "/admin", "/metrics", "file modes", "secrets"]
    assert {name: seen[name]["state"] for name in checks} == dict.fromkeys(checks, "ok")


def test_a_proxy_that_passes_on(proxy: Proxy, tmp_path: Path) -> None:
    """It costs nothing; that its callers' addresses are not believed is told."""
    proxy.faults = Faults(adds={"X-Forwarded-For": "192.0.2.1"})
    seen = look(tmp_path, proxy.url, 0)
    assert seen["stream"]["state"] == "ok"
    assert "GROKFLASK_TRUSTED_PROXIES=1" in seen["addresses"]["remedy"]


def test_a_proxy_that_holds_back(proxy: Proxy, tmp_path: Path) -> None:
    """Events that arrive in one burst: FAIL, and the setting of the proxy that is named."""
    proxy.faults = Faults(holds=True, server="nginx/1.24", drops=("x-request-id",), hides=("/ready",))
    seen = look(tmp_path, proxy.url, 1)
    assert seen["stream"]["text"].startswith("a proxy buffers streams: 5 events")
    assert "proxy_buffering off" in seen["stream"]["remedy"]
    assert "Cloudflare" not in seen["stream"]["remedy"]
    assert seen["request id"]["state"] == "warn"
    assert seen["/ready"]["state"] == "FAIL"
    assert seen["/health"]["state"] == "ok"


def test_a_server_that_lets_clients_change_the_path(tmp_path: Path) -> None:
    """gunicorn with other settings than the gateway's own believes a client's SCRIPT_NAME: a failure."""
    options = ["--forwarder-headers", "SCRIPT_NAME", "--forwarded-allow-ips", "127.0.0.1"]
    env = {"GROKFLASK_KEYS": f"alice:{CLIENT_KEY}"}
    server = GatewayServer(tmp_path, env, [*GUNICORN, *options, "-b", "127.0.0.1:{port}", "wsgi:app"])
    try:
        found = look(tmp_path, server.url, 1)["script name"]
        assert (found["state"], "access lists" in found["text"]) == ("FAIL", True)
    finally:
        server.leave()


def test_what_strangers_reach(make_gateway: Callable[..., GatewayServer], tmp_path: Path) -> None:
    """The doctor looks without its key, and counts as no guesser; a path that a proxy hides is told."""
    server = make_gateway(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    seen = look(tmp_path, server.url, 0)
    for name in ("/admin", "/metrics"):
        assert (seen[name]["state"], seen[name]["text"]) == ("ok", "reachable from this machine")
    assert server.find_lines("msg=refused", "logger=grokflask.metrics")
    proxy = Proxy(server.port)
    try:
        proxy.faults = Faults(hides=("/admin/login", "/metrics"))
        seen = look(tmp_path, proxy.url, 0)
        for name in ("/admin", "/metrics"):
            assert (seen[name]["state"], "not reachable" in seen[name]["text"]) == ("ok", True)
    finally:
        proxy.close()


def test_a_proxy_that_names_nobody(proxy: Proxy, tmp_path: Path) -> None:
    """Without X-Forwarded-For all its callers are one; the remedy says what to do at the proxy and here."""
    proxy.faults = Faults(server="nginx/1.24")
    found = look(tmp_path, proxy.url, 0)["addresses"]
    assert (found["state"], "all callers count as one" in found["text"]) == ("warn", True)


def test_local_files_and_secrets(gateway: GatewayServer, tmp_path: Path) -> None:
    """A file of an older version is closed to others by the look at it; what is weak is named."""
    (tmp_path / "old.db").touch(0o666)
    (tmp_path / ".env").write_text("GROKFLASK_KEYS=bob:bobs-key1\n")
    (tmp_path / ".env").chmod(0o644)
    seen = look(tmp_path, gateway.url, 0, DATABASE_URL=f"sqlite:///{tmp_path}/old.db")
    assert (tmp_path / "old.db").stat().st_mode & 0o777 == 0o600
    assert (seen["file modes"]["state"], seen["file modes"]["remedy"]) == ("warn", "chmod 600 .env")
    assert (seen["secrets"]["state"], "'bob'" in seen["secrets"]["text"]) == ("warn", True)
    assert "bobs-key1" not in str(seen)


def test_a_proxy_that_compresses(proxy: Proxy, tmp_path: Path) -> None:
    """It is read all the same, and told."""
    proxy.faults = Faults(compresses=True)
    seen = look(tmp_path, proxy.url, 1)
    assert (seen["compression"]["state"], seen["stream"]["state"]) == ("warn", "FAIL")


def test_a_proxy_that_cuts(proxy: Proxy, tmp_path: Path) -> None:
    """A stream that ends early is told as such."""
    proxy.faults = Faults(cuts_after_bytes=250)
    assert "cut off after" in look(tmp_path, proxy.url, 1)["stream"]["text"]


def test_silence(gateway: GatewayServer, proxy: Proxy, tmp_path: Path) -> None:
    """A stream that is silent for a while goes on, unless something in front hangs up on it."""
    assert look(tmp_path, gateway.url, 0, "--long", "1")["silence"]["state"] == "ok"
    proxy.faults = Faults(idle_s=5, server="nginx/1.24")
    found = look(tmp_path, proxy.url, 1, "--long", "60")["silence"]
    assert "was cut after" in found["text"]
    assert "proxy_read_timeout" in found["remedy"]


def test_who_leaves_in_silence_gives_the_place_back(gateway: GatewayServer) -> None:
    """Though nothing is written that would show it."""
    url, key = f"{gateway.url}{diagnose.PATH}?silence_s=100", {"Authorization": f"Bearer {CLIENT_KEY}"}
    for _ in range(diagnose.MAX_OPEN):
        with requests.get(url, headers=key, stream=True, timeout=WAIT_S) as reply:
            assert reply.status_code == 200
            next(reply.iter_content(1))

    def is_free() -> bool:
        with requests.get(url, headers=key, stream=True, timeout=WAIT_S) as reply:
            return reply.status_code == 200

    wait_for(is_free, "a free place")


def test_nobody_lets_it_in(gateway: GatewayServer, tmp_path: Path) -> None:
    """A wrong key, and no gateway at all, are said in words."""
    found = look(tmp_path, gateway.url, 1, GROKFLASK_KEY="wrong-key-1234567")["url"]
    assert "(401) Give a key with --key" in found["text"]
    found = look(tmp_path, f"http://127.0.0.1:{refuse_port()}", 1)["url"]
    assert "is the gateway running?" in found["text"]


def test_broken_settings(gateway: GatewayServer, tmp_path: Path) -> None:
    """They are its findings, and the rest goes on as far as it can; other commands still end with them."""
    broken = {"PORT": "x", "WEB_CONCURRENCY": "3", "GROKFLASK_ADMIN_TOKEN": "short"}
    done = run_command(tmp_path, {**broken, "GROKFLASK_KEYZ": "y", "GROKFLASK_KEY": CLIENT_KEY},
                       "doctor", "--json", "--url", gateway.url)  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    findings = json.loads(done.stdout)["findings"]
    failed = [each["text"].split(" ", 1)[0] for each in findings if each["state"] == "FAIL"]
    assert failed == ["PORT", "GROKFLASK_ADMIN_TOKEN", "WEB_CONCURRENCY"]
    assert next(each["text"] for each in findings if each["state"] == "warn").startswith(
        "GROKFLASK_KEYZ is not"
    )
    assert {"check": "stream", "state": "ok"}.items() <= findings[-4].items()
    for words in (
        ["chat", "doctor"],
        ["keys", "list"],
        ["keys", "create", "doctor"],
        ["run", "--host", "doctor"],
    ):
        done = run_command(tmp_path, broken, *words)
        assert done.returncode == 1
        assert "PORT expects a whole number" in done.stderr
        assert "Traceback" not in done.stderr
