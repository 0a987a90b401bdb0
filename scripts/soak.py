"""`make soak`: thousands of exchanges of all outcomes through one gateway; writes docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.soak import CASES, Report, run_soak  # noqa: E402 - the path comes first

PAGE = ROOT / "docs" / "reliability.md"
MARK = "<!-- written by make soak, which replaces everything below -->"


def main() -> int:
    """Runs the soak; 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        print(f"{arguments.total} exchanges, {arguments.concurrency} in parallel ...", flush=True)
        report = run_soak(arguments.total, arguments.concurrency, Path(directory))
    text = render(report, arguments.concurrency)
    print(text)
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n\n" + text)
    return 1 if report.wrong else 0


def render(report: Report, concurrency: int) -> str:
    """The report as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    lines = [
        f"{date.today()}, commit {commit.stdout.strip()}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores. "
        f"`make soak`: {report.total} exchanges, {concurrency} in parallel, in {report.seconds:.0f} s, after "
        "a warm-up of 400 exchanges of the same mix.",
        "",
        f"**Wrong: {len(report.wrong)}** (an exchange is wrong if it does not have exactly one log line and "
        "one ledger row, if its outcome is not the expected one, or if its bytes differ from upstream's).",
        "",
        "| exchange | times | outcome in the log |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {case.name} | {report.by_case[case.name]} | `{case.outcome}` |" for case in CASES]
    lines += ["", "| held by the worker | before | after |", "| --- | --- | --- |"]
    lines += [f"| {name} | {before} | {after} |" for name, before, after in list_holdings(report)]
    if report.wrong:
        lines += ["", "What was wrong:", "", *(f"- {fault}" for fault in report.wrong[:50])]
    return "\n".join(lines) + "\n"


def list_holdings(report: Report) -> list[tuple[str, Any, Any]]:
    """Counts before and after, by their names."""
    before, after = report.before, report.after
    rows = [
        ("open exchanges", before["open"], after["open"]),
        ("watched clients", before["watches"], after["watches"]),
        ("greenlets", before["greenlets"], after["greenlets"]),
        (
            "file descriptors, including kept upstream connections",
            before["descriptors"],
            after["descriptors"],
        ),
        ("Python objects", before["objects"], after["objects"]),
        ("resident memory, MiB", round(before["rss_kib"] / 1024, 1), round(after["rss_kib"] / 1024, 1)),
    ]
    rows += [(f"`{name}` objects", before["ours"][name], after["ours"][name]) for name in after["ours"]]
    return rows


if __name__ == "__main__":
    sys.exit(main())
