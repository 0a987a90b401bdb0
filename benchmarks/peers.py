"""`make bench-peers`: installs the gateways that ours is measured beside, into `.bench/`.

Portkey comes from npm and LiteLLM from PyPI, each at the version below; what they depend on is as new as
their own requirements allow. nginx comes from the system. What cannot be installed is told, and is then left
out of the measurement.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / ".bench"

PORTKEY_VERSION = "1.15.2"
PORTKEY_FOLDER = BENCH / "portkey"
PORTKEY_SERVER = PORTKEY_FOLDER / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
# The published build changes the headers of fetch's own response, which Node refuses: every stream ends in
# `TypeError: immutable`. A copy of the response has headers that can be changed.
PORTKEY_FAULT = "this.updateHeaders(i,n.cacheStatus,o),{response:i"
PORTKEY_PATCH = "i=new Response(i.body,i),this.updateHeaders(i,n.cacheStatus,o),{response:i"

LITELLM_VERSION = "1.108.7"
LITELLM_FOLDER = BENCH / "litellm"
LITELLM_SERVER = LITELLM_FOLDER / "bin" / "litellm"

NGINX_HINT = "nginx is missing; on Debian and Ubuntu: apt install nginx-light"


def main() -> int:
    """Installs all three; 0 when all are there."""
    BENCH.mkdir(exist_ok=True)
    installers: tuple[Callable[[], None], ...] = (install_nginx, install_portkey, install_litellm)
    failures = 0
    for install in installers:
        try:
            install()
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            failures += 1
            print(f"  not installed: {error}", flush=True)
    return 1 if failures else 0


def install_nginx() -> None:
    """From the system's packages when we may; otherwise says how."""
    if find_nginx():
        print(f"nginx is there: {find_nginx()}", flush=True)
        return
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError(NGINX_HINT)
    print("Installing nginx-light with apt-get ...", flush=True)
    run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "nginx-light"])


def install_portkey() -> None:
    """Portkey, with its build mended."""
    if not shutil.which("npm"):
        raise RuntimeError("Portkey needs npm and Node 20 or newer")
    print(f"Installing Portkey {PORTKEY_VERSION} into {PORTKEY_FOLDER.relative_to(ROOT)} ...", flush=True)
    PORTKEY_FOLDER.mkdir(exist_ok=True)
    run(["npm", "install", "--prefix", str(PORTKEY_FOLDER), f"@portkey-ai/gateway@{PORTKEY_VERSION}"])
    text = PORTKEY_SERVER.read_text()
    if PORTKEY_PATCH in text:
        return
    if text.count(PORTKEY_FAULT) != 1:
        raise RuntimeError("Portkey's build is not the one that the patch is for")
    PORTKEY_SERVER.write_text(text.replace(PORTKEY_FAULT, PORTKEY_PATCH))
    print("  patched one line of its build, without which every stream fails (TypeError: immutable)")


def install_litellm() -> None:
    """LiteLLM's proxy, in a virtual environment of its own."""
    print(f"Installing LiteLLM {LITELLM_VERSION} into {LITELLM_FOLDER.relative_to(ROOT)} ...", flush=True)
    run([sys.executable, "-m", "venv", str(LITELLM_FOLDER)])
    pip = [str(LITELLM_FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    run([*pip, "--disable-pip-version-check", f"litellm[proxy]=={LITELLM_VERSION}"])


def find_nginx() -> str | None:
    """Where nginx is; Debian keeps it off a user's PATH."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")


def has_portkey() -> bool:
    """Portkey is installed and mended, and there is a Node to run it."""
    return (
        bool(shutil.which("node")) and PORTKEY_SERVER.exists() and PORTKEY_PATCH in PORTKEY_SERVER.read_text()
    )


def run(command: Sequence[str]) -> None:
    """Runs an installer; its own words only when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
