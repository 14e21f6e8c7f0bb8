# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes into volumes and says what each of their points in time must hold, for the integration playbooks.

The model is a directory of plain files, one for the present and one for each snapshot, that only this program changes. A
volume, as a module returned it, comes as JSON on standard input; its images are read with qemu-img, as anybody would.

    python3 content.py MODEL create SIZE             an empty disk
    python3 content.py MODEL write OFFSET LENGTH N   into the volume and into the model: bytes of value N (0-255)
    python3 content.py MODEL snapshot NAME           remembers the present
    python3 content.py MODEL forget NAME             drops a snapshot
    python3 content.py MODEL revert NAME             makes a snapshot the present; the size stays
    python3 content.py MODEL grow SIZE               zeros at the end
    python3 content.py MODEL clone NAME OTHER        a new model from a snapshot, or from the present ("now")
    python3 content.py MODEL compare                 every snapshot and the present, by SHA-256; fails on any difference
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NOW = "now"


def main(model: Path, verb: str, *words: str) -> int:
    present = model / NOW
    if verb == "create":
        model.mkdir(parents=True)
        present.touch()
        os.truncate(present, int(words[0]))
    elif verb == "write":
        write(present, *(int(word) for word in words))
    elif verb == "snapshot":
        shutil.copyfile(present, model / words[0])
    elif verb == "forget":
        (model / words[0]).unlink()
    elif verb == "revert":
        size = present.stat().st_size
        shutil.copyfile(model / words[0], present)
        os.truncate(present, size)
    elif verb == "grow":
        os.truncate(present, int(words[0]))
    elif verb == "clone":
        Path(words[1]).mkdir(parents=True)
        shutil.copyfile(model / words[0], Path(words[1], NOW))
    elif verb == "compare":
        return compare(model, json.load(sys.stdin))
    else:
        raise SystemExit(f"content.py: there is no verb {verb!r}")
    return 0


def write(present: Path, offset: int, length: int, value: int) -> None:
    volume = json.load(sys.stdin)
    with open(present, "r+b") as stream:
        stream.seek(offset)
        stream.write(bytes([value]) * length)
    subprocess.run(
        ["qemu-io", "-f", volume["format"], "-c", f"write -q -P {value} {offset} {length}", "-c", "flush", volume["path"]],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def points(volume: dict) -> dict[str, tuple[str, str]]:
    """File and format behind every snapshot's name, and behind the present."""
    images = {image["file"]: image for image in volume["chain"]}
    found = {NOW: (os.path.basename(volume["path"]), volume["format"])}
    for snapshot in volume["snapshots"]:
        backing = images[snapshot["file"]]["backing_file"]
        found[snapshot["name"]] = (backing, images[backing]["format"])
    return found


def compare(model: Path, volume: dict) -> int:
    expected = {file.name: digest(file) for file in model.iterdir()}
    found = {name: read(Path(volume["mountpoint"], file), form) for name, (file, form) in points(volume).items()}
    differences = 0
    for name in sorted(set(expected) | set(found)):
        same = expected.get(name) == found.get(name)
        differences += not same
        print(f"{'same' if same else 'DIFFERENT':10}{volume['name']} {name}: {found.get(name, 'missing')}")
        if not same:
            print(f"{'':10}expected: {expected.get(name, 'no such snapshot')}")
    return 1 if differences else 0


def read(file: Path, form: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory, "raw")
        subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", str(file), str(raw)], check=True)
        return digest(raw)


def digest(file: Path) -> str:
    state = hashlib.sha256()
    with open(file, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            state.update(block)
    return f"{state.hexdigest()} ({file.stat().st_size} bytes)"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
