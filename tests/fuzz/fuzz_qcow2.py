# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzes the qcow2 codec.

    python tests/fuzz/fuzz_qcow2.py --inputs 1000000 --seed 1
    python tests/fuzz/fuzz_qcow2.py --inputs 1000 --qemu 1      # every image that the codec or QEMU accepts is shown to both
    python tests/fuzz/fuzz_qcow2.py --atheris -max_total_time=60 tests/fuzz/corpus   # guided by coverage, where atheris is installed

Findings are written as files; a small one belongs into tests/fuzz/corpus, with its expected outcome in test_corpus.py.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module("conftest")  # makes the checkout importable as a collection

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["ansible_collections"]):
        importlib.import_module("ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2")

from fuzz import harness  # noqa: E402
from fuzz.generator import Image, generate  # noqa: E402

CORPUS = Path(__file__).with_name("corpus")
MEASURED = 100  # of so many inputs one has its memory measured


def corpus() -> list:
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.qcow2"))]


def run(inputs: int, seed: int, findings: Path, compared: float = 0.0, most_seconds: float = float("inf")) -> dict:
    """Try ``inputs`` images made from ``seed``. Each is made from its own number, so that a finding can be made again alone."""
    seeds, started, outcomes, qemu = corpus(), time.monotonic(), Counter(), Counter()
    found: list = []
    fd = os.memfd_create("image")
    done = 0
    with harness.bounded(), tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="fuzz-") as copy:
        for number in range(inputs):
            if number % 256 == 0 and time.monotonic() - started > most_seconds:
                break
            rng = random.Random(seed << 32 | number)
            image = generate(rng, seeds)
            try:
                outcomes[harness.check(fd, image, rng, measure=number % MEASURED == 0)] += 1
                if compared and rng.random() < compared:
                    qemu[_before_and_after(copy, image, rng)] += 1
            except Exception as error:
                found.append((number, error))
                _keep(findings, f"seed-{seed}-{number}.qcow2", image)
            done += 1
    os.close(fd)
    return {"inputs": done, "seconds": time.monotonic() - started, "outcomes": outcomes, "qemu": qemu, "findings": found}


def _before_and_after(copy: Any, image: Image, rng: random.Random) -> str:
    """Whether QEMU sees what the codec sees, in the image and in what repointing and growing make of it."""
    harness.put(copy.fileno(), image)
    before = harness.compare_with_qemu(copy.name, copy.fileno())
    outcome = harness.check(copy.fileno(), image, rng)
    if before == "both" and "cut" not in outcome and harness.compare_with_qemu(copy.name, copy.fileno()) != "both":
        raise harness.Finding("QEMU took the image, but not what repointing or growing made of it")
    return before


def _keep(findings: Path, name: str, image: Image) -> None:
    if image.size <= 64 << 20:
        findings.mkdir(parents=True, exist_ok=True)
        with open(findings / name, "w+b") as stream:
            harness.put(stream.fileno(), image)


def guided(arguments: list) -> None:
    """libFuzzer chooses the bytes of the file."""
    fd = os.memfd_create("image")

    def one(data: bytes) -> None:
        harness.check(fd, Image.of(data), random.Random(data))

    with harness.bounded():
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # the guide needs room of its own
        atheris.Setup([sys.argv[0], *arguments], one)
        atheris.Fuzz()


def main() -> int:
    if "--atheris" in sys.argv:
        guided([argument for argument in sys.argv[1:] if argument != "--atheris"])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--qemu", type=float, default=0.0, help="the share of inputs that qemu-img is asked about too, 0 to 1")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    result = run(chosen.inputs, chosen.seed, chosen.findings, chosen.qemu)
    outcomes = result["outcomes"]
    accepted = sum(count for outcome, count in outcomes.items() if outcome[1] is None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{result['inputs']} inputs in {result['seconds']:.0f} s, {len(outcomes)} distinct outcomes, {accepted} headers accepted")
    print(f"peak of the process {peak} MiB, {len(result['findings'])} findings")
    for refusal, count in Counter({r: sum(c for o, c in outcomes.items() if o[1] == r) for r in {o[1] for o in outcomes}}).most_common():
        print(f"  {count:9d}  {refusal or 'accepted'}")
    for verdict, count in result["qemu"].most_common():
        print(f"  {count:9d}  accepted by {verdict}")
    for number, error in result["findings"][:20]:
        print(f"finding: input {number}: {type(error).__name__}: {error}")
    return 1 if result["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
