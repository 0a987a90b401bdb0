"""The cost of a cold start: CPU time from the start of the process until it answers."""

from __future__ import annotations

from typing import Any

import gateways
from running import Hall

NAMES = ("grokflask", "nginx", "portkey", "litellm")
MOST_TIMES = {"litellm": 2}
"""One that takes many seconds is not started so often."""


def measure(hall: Hall, times: int) -> dict[str, Any]:
    """Starts each gateway `times` times, in turn."""
    chosen = [gateways.BY_NAME[name] for name in NAMES if gateways.BY_NAME[name].find_fault() is None]
    figures: dict[str, Any] = {
        gateway.name: {"title": gateway.title, "cpu_s": [], "seconds": []} for gateway in chosen
    }
    for number in range(times):
        for gateway in chosen:
            if number >= MOST_TIMES.get(gateway.name, times):
                continue
            site = hall.make_site(gateway)
            with hall.run(gateway.launch(site), site) as started:
                figures[gateway.name]["cpu_s"].append(started.start_cpu_s)
                figures[gateway.name]["seconds"].append(started.start_s)
            print(f"start {number + 1}: {gateway.title} {started.start_cpu_s:.3f} s of CPU", flush=True)
    return {"gateways": figures}
