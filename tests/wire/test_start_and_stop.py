"""Starting, refusing to start, stopping; secrets in all that is printed; other servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
import trustme
from support.ports import reserve_port
from support.processes import CLIENT_KEY, ROOT, UPSTREAM_KEY, GatewayServer, start_gateway
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk

AUTH = {"Authorization": f"Bearer {CLIENT_KEY}"}
BODY = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/api/v1/chat/completions"


def run_gunicorn(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": str(reserve_port())}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), *arguments, "wsgi:app"]
    return subprocess.run(
        command, env={**base, **env}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )


def test_wrong_settings_stop_the_start(tmp_path: Path) -> None:
    """All problems are listed at once, no secret among them, and the process ends with an error."""
    done = run_gunicorn(
        tmp_path,
        PORT="http",
        XAI_API_KEY="has space",
        GROKFLASK_KEYS="alice:short",
        GROKFLASK_RATE_LIMIT="many",
        WEB_CONCURRENCY="3",
    )
    assert done.returncode != 0
    for word in ("PORT", "XAI_API_KEY", "secret of entry 1", "GROKFLASK_RATE_LIMIT", "WEB_CONCURRENCY is 3"):
        assert word in done.stderr
    assert "has space" not in done.stderr
    assert "short" not in done.stderr.replace("shorter", "")


@pytest.mark.parametrize(("name", "text"), [("PORT", "99999"), ("WEB_CONCURRENCY", "0")])
def test_what_gunicorn_could_not_use_is_told_like_the_rest(tmp_path: Path, name: str, text: str) -> None:
    """Settings that gunicorn reads first do not end it, or pass unseen, before the list of problems."""
    done = run_gunicorn(tmp_path, **{name: text, "GROKFLASK_AUTH": "nobody"})
    assert done.returncode != 0
    assert f"  - {name} expects a whole number" in done.stderr
    assert "  - GROKFLASK_AUTH expects one of" in done.stderr


def test_dotenv_that_is_no_text_stops_the_start(tmp_path: Path) -> None:
    """It is told as a problem with the settings, whoever of gunicorn and the app reads the file first."""
    (tmp_path / ".env").write_bytes("# für später\nPORT=8000\n".encode("latin-1"))
    done = run_gunicorn(tmp_path)
    assert done.returncode != 0
    assert "grokflask cannot start:\n  - .env cannot be read as UTF-8 text" in done.stderr


def test_workers_by_flag_need_redis_too(tmp_path: Path) -> None:
    """`gunicorn -w 2` is noticed like WEB_CONCURRENCY=2."""
    done = run_gunicorn(tmp_path, "-w", "2")
    assert done.returncode != 0
    assert "set REDIS_URL, or WEB_CONCURRENCY=1" in done.stderr


def test_dotenv_is_honoured(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Settings in `.env` count, for gunicorn and for the app; the environment overrides them."""
    port = reserve_port()
    lines = [
        f"PORT={port}",
        f"XAI_API_KEY={UPSTREAM_KEY}",
        f"XAI_API_BASE={upstream.base_url}",
        f"GROKFLASK_KEYS=alice:{CLIENT_KEY}",
        "GROKFLASK_RATE_LIMIT=7/hour",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    server = GatewayServer(tmp_path, {"GROKFLASK_RATE_LIMIT": "9/hour"})
    try:
        reply = requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S)
        assert reply.headers["X-RateLimit-Limit"] == "9"
    finally:
        server.leave()


def test_it_says_how_to_make_the_first_key(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """With an xAI key and no keys it starts, answers 401 and tells its operator what to do."""
    server = start_gateway(tmp_path, upstream, GROKFLASK_KEYS="")
    try:
        assert (
            requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S).status_code == 401
        )
        assert server.find_lines("no keys yet", "keys create NAME", "GROKFLASK_KEYS=NAME:SECRET")
    finally:
        server.leave()


def test_a_low_limit_of_open_files_is_kept(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Where descriptors are few a worker has fewer places, says so, and is full before they run out."""
    go_on = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        assert go_on.wait(WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    env = {
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
    }
    gunicorn = f"exec {sys.executable} -m gunicorn -c {ROOT}/gunicorn.conf.py wsgi:app"
    server = GatewayServer(tmp_path, env, ["sh", "-c", f"ulimit -n 160; {gunicorn}"])
    held = []
    try:
        assert server.find_lines("30 connections a worker, not 4000")
        for _ in range(27):
            held.append(
                requests.post(
                    f"{server.url}{CHAT}",
                    json={**BODY, "stream": True},
                    headers=AUTH,
                    timeout=WAIT_S,
                    stream=True,
                )
            )
        assert [reply.status_code for reply in held] == [200] * 27
        refused = requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_full")
        go_on.set()
        assert all(reply.content.endswith(b"[DONE]\n\n") for reply in held)
    finally:
        go_on.set()
        for reply in held:
            reply.close()
        server.stop()
    assert "Too many open files" not in server.log


def test_sigterm_ends_it(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """SIGTERM lets a running stream finish and then ends the process with 0."""
    go_on = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        assert go_on.wait(WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    server = start_gateway(tmp_path, upstream, GROKFLASK_GRACE_S="20")
    try:
        with requests.post(
            f"{server.url}{CHAT}", json={**BODY, "stream": True}, headers=AUTH, timeout=WAIT_S, stream=True
        ) as reply:
            stream = reply.iter_content(None)
            assert b"Once" in next(stream)
            server.process.terminate()
            go_on.set()
            assert b"".join(stream).endswith(b"data: [DONE]\n\n")
        assert server.stop() == 0
    finally:
        server.kill()


def test_secrets_never_show(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Keys, prompts and answers are in no log line, no response and no error, whatever happens."""
    prompt, answer_text = "prompt-canary-7731", "answer-canary-9942"
    secrets = [UPSTREAM_KEY, CLIENT_KEY, prompt, answer_text, "wrong-key-canary", "redis-canary"]

    def answer(exchange: Exchange) -> None:
        bearer = exchange.headers["authorization"]
        kind = exchange.document["model"]
        if kind == "leak":
            exchange.reply({"code": bearer, "error": f"you sent {bearer}"}, 400)
        elif kind == "leak-in-stream":
            exchange.start()
            exchange.event({"error": {"message": f"you sent {bearer}", "code": bearer}})
            exchange.end()
        elif kind == "garbage":
            exchange.send(b"garbage " + bearer.encode() + b"\r\n\r\n")
            exchange.close()
        elif kind == "cut":
            exchange.start()
            exchange.event(chat_chunk(answer_text))
            exchange.reset()
        else:
            answer_chat(exchange)

    upstream.handler = answer
    server = start_gateway(
        tmp_path, upstream, GROKFLASK_LOG_LEVEL="debug", REDIS_URL="redis://:redis-canary@127.0.0.1:1/0"
    )
    shown = []
    try:
        for model in ("plain", "leak", "leak-in-stream", "garbage", "cut"):
            for stream in (False, True):
                for accept in ("application/json", "*/*"):
                    body = {
                        "model": model,
                        "messages": [{"role": "user", "content": prompt}],
                        "stream": stream,
                    }
                    if model == "cut" and not stream:
                        continue
                    reply = requests.post(
                        f"{server.url}{CHAT}", json=body, headers={**AUTH, "Accept": accept}, timeout=WAIT_S
                    )
                    shown.append((model, str(reply.headers) + reply.text.replace(answer_text, "")))
        for headers in ({"Authorization": "Bearer wrong-key-canary"}, {"X-Request-ID": CLIENT_KEY}):
            reply = requests.post(f"{server.url}{CHAT}", json=BODY, headers=headers, timeout=WAIT_S)
            shown.append(("key", reply.text))
        with socket.create_connection(("127.0.0.1", server.port)) as sock:  # a request that is no HTTP
            sock.sendall(f"POST / NOT-HTTP\r\nAuthorization: Bearer {CLIENT_KEY}\r\n\r\n".encode())
            sock.recv(65536)
    finally:
        server.stop()
    for secret in secrets:
        assert secret not in server.log, server.find_lines(secret)
        assert not [name for name, text in shown if secret in text], secret
    assert len(server.find_lines("msg=exchange")) == 18
    assert "redacted" in server.log or "alice" in server.log


def test_tls_upstream(tmp_path: Path) -> None:
    """Streams and replies over TLS, on kept connections; an unknown authority is refused."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    upstream = ScriptedUpstream(answer_chat, tls=context)
    trusting = start_gateway(tmp_path, upstream, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    wary = start_gateway(tmp_path, upstream)
    elsewhere = start_gateway(
        tmp_path,
        upstream,
        SSL_CERT_FILE=str(tmp_path / "ca.pem"),
        XAI_API_BASE=f"https://127.0.0.1:{upstream.port}/v1",
    )
    try:
        for stream in (True, False, True):
            reply = requests.post(
                f"{trusting.url}{CHAT}", json={**BODY, "stream": stream}, headers=AUTH, timeout=WAIT_S
            )
            assert reply.status_code == 200, reply.text
            assert reply.text.endswith("[DONE]\n\n") is stream
        assert upstream.connections == 1
        for server in (wary, elsewhere):  # an authority nobody knows; a certificate for another name
            reply = requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S)
            assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_unreachable")
            server.wait_for_line("code=upstream_unreachable", "CERTIFICATE_VERIFY_FAILED")
    finally:
        trusting.leave()
        wary.leave()
        elsewhere.leave()
        upstream.close()


SERVERS = {
    "gthread": [
        *(
            sys.executable,
            "-m",
            "gunicorn",
            "--worker-class",
            "gthread",
            "--threads",
            "8",
            "--graceful-timeout",
            "1",
        ),
        *("--bind", "127.0.0.1:{port}", "wsgi:app"),
    ],
    "waitress": [
        *(sys.executable, "-c", "import sys; from waitress.runner import run; run(sys.argv)"),
        *("--listen=127.0.0.1:{port}", "wsgi:app"),
    ],
    "flask": [sys.executable, "-m", "flask", "--app", "wsgi", "run", "--port", "{port}"],
}


@pytest.mark.parametrize("name", SERVERS)
def test_other_servers_stream_too(tmp_path: Path, upstream: ScriptedUpstream, name: str) -> None:
    """Under other WSGI servers an event still reaches the client before upstream sends the next."""
    seen = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        exchange.start()
        for number in range(5):
            exchange.event(chat_chunk(f"token-{number}"))
            assert seen.acquire(timeout=WAIT_S)
        exchange.event("[DONE]")
        exchange.end()

    upstream.handler = answer
    env = {
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
    }
    server = GatewayServer(tmp_path, env, SERVERS[name])
    try:
        with requests.post(
            f"{server.url}{CHAT}", json={**BODY, "stream": True}, headers=AUTH, timeout=WAIT_S, stream=True
        ) as reply:
            got = b""
            stream = reply.iter_content(None)
            for number in range(5):
                while f"token-{number}".encode() not in got:
                    got += next(stream)
                seen.release()
            got += b"".join(stream)
        assert got.endswith(b"data: [DONE]\n\n")
        upstream.handler = answer_chat
        assert (
            requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S).status_code == 200
        )
        server.wait_for_line("msg=exchange", "outcome=complete")
    finally:
        server.leave()


@pytest.mark.parametrize("name", ["gthread", "waitress"])
def test_a_client_that_leaves_is_noticed_under_other_servers(
    tmp_path: Path, upstream: ScriptedUpstream, name: str
) -> None:
    """gthread hands its socket over, so the watcher sees it; under waitress the heartbeat's write does."""
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        if exchange.wait_until_left():
            left.set()

    upstream.handler = answer
    env = {
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
    }
    env["GROKFLASK_HEARTBEAT_S"] = "60" if name == "gthread" else "0.2"
    server = GatewayServer(tmp_path, env, SERVERS[name])
    try:
        with requests.post(
            f"{server.url}{CHAT}", json={**BODY, "stream": True}, headers=AUTH, timeout=WAIT_S, stream=True
        ) as reply:
            assert b"Once" in next(reply.iter_content(None))
        assert left.wait(WAIT_S)
        server.wait_for_line("msg=exchange", "outcome=client_abort")
    finally:
        server.leave()


def test_sandbox_runs_under_other_servers(tmp_path: Path) -> None:
    """The built-in sandbox is reached in whatever process serves, threads or greenlets."""
    server = GatewayServer(tmp_path, {"GROKFLASK_SANDBOX_EVENTS_PER_S": "0"}, SERVERS["gthread"])
    try:
        reply = requests.post(f"{server.url}{CHAT}", json={**BODY, "stream": True}, timeout=WAIT_S)
        assert reply.text.endswith("data: [DONE]\n\n")
    finally:
        server.leave()


def test_procfile(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """The Procfile's web process serves on $PORT, started the way Heroku's local tools do."""
    env = {
        "XAI_API_KEY": UPSTREAM_KEY,
        "XAI_API_BASE": upstream.base_url,
        "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}",
    }
    env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for name in ("Procfile", "gunicorn.conf.py", "wsgi.py"):  # a folder without a developer's .env
        shutil.copy(ROOT / name, tmp_path)
    honcho = [sys.executable, "-m", "honcho", "-e", os.devnull]
    server = GatewayServer(tmp_path, env, [*honcho, "start", "-p", "{port}", "web"])
    try:
        reply = requests.post(f"{server.url}{CHAT}", json=BODY, headers=AUTH, timeout=WAIT_S)
        assert reply.status_code == 200
    finally:
        server.leave()


def test_app_json_and_env_example_name_real_settings() -> None:
    """Every variable of app.json and .env.example is a setting."""
    from grokflask.config import render_docs

    known = render_docs()
    names = list(json.loads((ROOT / "app.json").read_text())["env"])
    for line in (ROOT / ".env.example").read_text().splitlines():
        if "=" in line:
            names.append(line.lstrip("# ").partition("=")[0])
    assert names
    assert [name for name in names if f"`{name}`" not in known] == []
