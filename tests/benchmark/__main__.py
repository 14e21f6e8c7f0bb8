# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs benchmarks, prints their tables, writes build/benchmark.json and, if asked, docs/performance.md. See scripts/bench."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from . import clones, environments, images, lives, measuring, merge_bytes, merges, nfs, reading, replicas, running, tasks

BENCHMARKS = {"lives": lives, "reading": reading, "tasks": tasks, "merges": merges, "clones": clones, "images": images, "replicas": replicas}
BENCHMARKS.update({"environments": environments, "bytes": merge_bytes, "nfs": nfs, "running": running})
BY_NAME = {"nfs", "running"}  # not every machine has a lab or QEMU for machines


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures the collection, and prints tables of ratios.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which benchmarks: {', '.join(BENCHMARKS)} (default: all but nfs and running)")
    parser.add_argument("--full", action="store_true", help="larger and more often: about half an hour")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--directory", help="where to work (default: the directory for temporary files)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="remotefs-bench-", dir=arguments.directory) as directory:
        sys.path.insert(0, str(measuring.make_tree(Path(directory, "tree"))))
        for name in arguments.names or [name for name in BENCHMARKS if name not in BY_NAME]:
            run(name, Path(directory, name), arguments.full, arguments.write_docs)


def run(name: str, scratch: Path, full: bool, write_docs: bool) -> None:
    scratch.mkdir()
    benchmark, started = BENCHMARKS[name], time.monotonic()
    rows = benchmark.measure(scratch, full)
    remember(name, [{"kind": type(row).__name__, **asdict(row)} for row in rows])
    text = benchmark.tables(rows)
    print(f"\n## {name}: {benchmark.TITLE} ({time.monotonic() - started:.0f} s)\n\n{text}", flush=True)
    if write_docs:
        measuring.write_page(name, text)


def remember(name: str, rows: list[dict]) -> None:
    """Put the figures into build/benchmark.json, beside those of other benchmarks of earlier runs."""
    path = measuring.CHECKOUT / "build" / "benchmark.json"
    path.parent.mkdir(exist_ok=True)
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    path.write_text(json.dumps({**known, name: rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
