"""The gateway held against its own document: schemathesis asks real gunicorn for all that this allows.

It runs as the program that people use, in a process of its own, and always makes the same requests. What is
right about answers is checked by it; what it may not know, that streams are events, is put into a copy of the
document in the words of OpenAPI 3.2, which it understands.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator
from support.processes import CLIENT_KEY, GatewayServer
from support.scripted import WAIT_S
from support.stores import ADMIN, ADMIN_TOKEN

from grokflask.web.reference.document import build_document

DOCUMENT = build_document("0")
RUN_S = 250
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance", "unsupported_method"),
)
SETTINGS = f"""
[auth.openapi.clientKey]
bearer = "{CLIENT_KEY}"
[auth.openapi.adminToken]
bearer = "{ADMIN_TOKEN}"
[auth.openapi.metricsToken]
bearer = "{ADMIN_TOKEN}"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    """The gateway on its sandbox, where keys are needed and there is an admin."""
    env = {"GROKFLASK_SANDBOX_EVENTS_PER_S": "0", "GROKFLASK_AUTH": "keys"}
    env |= {"GROKFLASK_KEYS": f"alice:{CLIENT_KEY}", "GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN}
    gateway = GatewayServer(tmp_path_factory.mktemp("reference"), env)
    yield gateway
    gateway.stop()
    assert "Traceback" not in gateway.log, gateway.log


def describe_events(value: Any) -> Any:
    """A copy in which the events of streams are told as OpenAPI 3.2 does."""
    if isinstance(value, list):
        return [describe_events(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    copy = {name: describe_events(inner) for name, inner in value.items()}
    if schema := copy.pop("x-event-schema", None):
        del copy["schema"]
        told = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
        data = {"anyOf": [{"const": "[DONE]"}, told]}
        copy["itemSchema"] = {"type": "object", "required": ["data"], "properties": {"data": data}}
    return copy


def run_schemathesis(server: GatewayServer, folder: Path, *words: str) -> None:
    """Fails with its report unless all is well."""
    document = requests.get(f"{server.url}/openapi.json", timeout=WAIT_S).json()
    (folder / "openapi.json").write_text(json.dumps(describe_events(document)))
    (folder / "schemathesis.toml").write_text(SETTINGS)
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "--config-file", "schemathesis.toml", "run", "openapi.json", "--url", server.url]
    command += ["--generation-deterministic", "--no-shrink", "--no-color", "--warnings", "off", *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert ended.returncode == 0, ended.stdout[-20000:] + ended.stderr[-2000:]
    assert "Tested: 0" not in ended.stdout


def test_answers_are_as_the_document_has_them(server: GatewayServer, tmp_path: Path) -> None:
    """Right and wrong requests to the API: no failure of the server's, nothing undocumented."""
    words = ("--exclude-tag=Admin", "--exclude-path=/diagnose/stream")  # which takes its time
    words += ("--phases=examples,coverage,fuzzing", "--max-examples=3", f"--checks={','.join(CHECKS)}")
    run_schemathesis(server, tmp_path, *words)


def test_the_admin_api_answers_as_documented_and_takes_nothing_wrong(
    server: GatewayServer, tmp_path: Path
) -> None:
    """The same of the admin API, one call after the other too; what its schemas forbid is refused."""
    checks = ",".join((*CHECKS, "negative_data_rejection"))
    run_schemathesis(server, tmp_path, "--include-tag=Admin", "--max-examples=3", f"--checks={checks}")


def test_nobody_gets_in_without_a_key(server: GatewayServer, tmp_path: Path) -> None:
    """Without a key, or with a wrong one, no operation of the API answers."""
    # The admin's token may be wrong a few times only; that it is asked for is tested below.
    words = (
        "--exclude-tag=Admin",
        "--exclude-path-regex=/(metrics|diagnose/.*)",
        "--phases=fuzzing",
        "--max-examples=1",
    )
    run_schemathesis(server, tmp_path, *words, "--checks=ignored_auth")


def test_nobody_gets_at_the_admin_api_without_a_token(server: GatewayServer) -> None:
    """Each of its operations, and /metrics, is a 401 without the token."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if operation["security"] and not path.startswith("/api/"):
                place = server.url + path.format(name="x", request_id="x")
                assert requests.request(method, place, timeout=WAIT_S).status_code == 401, (method, path)


def test_the_diagnosis_streams_as_documented(server: GatewayServer) -> None:
    """Each event of /diagnose/stream is what the document says."""
    auth = {"Authorization": f"Bearer {CLIENT_KEY}"}
    answer = requests.get(f"{server.url}/diagnose/stream", headers=auth, timeout=WAIT_S)
    content = DOCUMENT["paths"]["/diagnose/stream"]["get"]["responses"]["200"]["content"]
    schema = content[answer.headers["Content-Type"].partition(";")[0]]["x-event-schema"]
    *events, done = answer.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    for event in events:
        told = json.loads(event.removeprefix("data: "))
        Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(told)


EXAMPLES = [
    (path, name)
    for path, methods in DOCUMENT["paths"].items()
    for name in methods.get("post", {})
    .get("requestBody", {"content": {}})["content"]
    .get("application/json", {})
    .get("examples", {})
]


@pytest.mark.parametrize(("path", "name"), EXAMPLES)
def test_examples_work_on_the_sandbox(server: GatewayServer, path: str, name: str) -> None:
    """Each example of a body is what its schema asks for, and is answered: as a stream if it says so."""
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    body = content["examples"][name]["value"]
    Draft202012Validator({**content["schema"], "components": DOCUMENT["components"]}).validate(body)
    headers = ADMIN if path.startswith("/admin") else {"Authorization": f"Bearer {CLIENT_KEY}"}
    if path.startswith("/admin"):
        requests.delete(f"{server.url}{path}/{body['name']}", headers=headers, timeout=WAIT_S)
    answer = requests.post(server.url + path, json=body, headers=headers, timeout=60)
    assert answer.status_code in (200, 201) or (path.startswith("/admin") and answer.status_code == 409)
    if path.startswith("/api"):
        assert answer.headers["Content-Type"].startswith("text/event-stream") == (name == "stream")
