# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images in and out, beside what does the same by hand.

A volume from an image of a server (a process of its own) with a checksum, beside ``curl -o``, ``sha256sum -c``, ``qemu-img convert`` and the sync
of the result. An image of a snapshot of a dense volume with its two checksums, beside ``qemu-img convert``, ``sha256sum`` of the file,
``sha256sum`` of a raw file with the same content, which whoever does it by hand would have to make first, and the sync. Both sides are durable.
Only the work is compared, as in merges.py; the memory is that of a whole task.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

from . import measuring
from .measuring import MIB

TITLE = "images in and out"
GOALS = {"import": 1.1, "export": 1.1}


@dataclass(frozen=True)
class Row:
    """Seconds of ours and by hand, and the bytes of memory that a task takes at most."""

    what: str
    ours: float
    by_hand: float
    memory: int


def dense(path: Path, megabytes: int) -> Path:
    """A raw file without holes, that nothing can compress."""
    chance = random.Random(megabytes)
    with path.open("wb") as stream:
        for _number in range(megabytes):
            stream.write(chance.randbytes(MIB))
    return path


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """The URL of a directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(directory), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _run(*words: str, **more: object) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **more)  # type: ignore[call-overload]


def measure_import(scratch: Path, source: Path, image_format: str, target: str, repeats: int) -> Row:
    from ansible_collections.remotefs.storage.plugins.module_utils.operations import importing, updating, volumes
    from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
    from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

    served, share = scratch / "served", scratch / "share"
    for directory in (served, share):
        directory.mkdir()
    image = served / f"disk.{image_format}"
    _run("qemu-img", "convert", "-O", image_format, "-f", "raw", str(source), str(image))
    sums = f"{hashlib.sha256(image.read_bytes()).hexdigest()}  fetched\n"
    where = measuring_candidates(share)

    def ours(url: str) -> float:
        options = Options(task=Task())
        request = updating.VolumeRequest(
            where, DesiredVolume("vol", format=target), image=importing.ImageRequest(f"{url}/{image.name}", f"sha256:{sums.split()[0]}")
        )

        def work() -> None:
            volumes.ensure_present(request, options)
            importing.forget_all(options)

        found = measuring.timed(work)
        volumes.ensure_absent(where, "vol", False, Options())
        os.sync()
        return found

    def by_hand(url: str) -> float:
        (scratch / "sums").write_text(sums)

        def work() -> None:
            _run("curl", "-sS", "-o", str(scratch / "fetched"), f"{url}/{image.name}")
            _run("sha256sum", "-c", "sums", cwd=scratch)
            _run("qemu-img", "convert", "-f", image_format, "-O", target, str(scratch / "fetched"), str(share / "byhand"))
            _run("sync", str(share / "byhand"))

        found = measuring.timed(work)
        (share / "byhand").unlink()
        (scratch / "fetched").unlink()
        os.sync()
        return found

    with server(served) as url:
        found = measuring.in_turns(repeats, {"ours": lambda: ours(url), "hand": lambda: by_hand(url)})
        source_given = {"image": f"{url}/{image.name}", "checksum": f"sha256:{sums.split()[0]}"}
        memory = measuring.peak_memory("remotefs_volume", {"share": [str(share)], "name": "vol", "format": target, "source": source_given})
    for directory in (served, share):
        shutil.rmtree(directory)
    return Row(f"{image_format} image to {target} volume", found["ours"], found["hand"], memory)


def measuring_candidates(share: Path):
    """A share that is a directory."""
    from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
    from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates

    return Candidates((Share(str(share), str(share), "directory"),))


def measure_export(scratch: Path, source: Path, image_format: str, repeats: int) -> Row:
    from ansible_collections.remotefs.storage.plugins.module_utils.operations import exporting, snapshots, updating, volumes
    from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
    from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

    share, dest = scratch / "share", scratch / "written"
    share.mkdir()
    where = measuring_candidates(share)
    volumes.ensure_present(updating.VolumeRequest(where, DesiredVolume("vol", size=source.stat().st_size, format="qcow2")), Options())
    _run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", str(source), str(share / "vol"))
    snapshots.take(snapshots.SnapshotRequest(where, "vol", DesiredSnapshot("s1")), Options())
    os.sync()

    def ours() -> float:
        request = exporting.ExportRequest(where, "vol", "s1", exporting.ToFile(str(dest)), image_format)
        found = measuring.timed(lambda: exporting.export(request, Options()))
        dest.unlink()
        os.sync()
        return found

    def by_hand() -> float:
        def work() -> None:
            _run("qemu-img", "convert", "-f", "qcow2", "-O", image_format, str(share / "vol"), str(dest))
            _run("sha256sum", str(dest))
            _run("sha256sum", str(source))
            _run("sync", str(dest))

        found = measuring.timed(work)
        dest.unlink()
        os.sync()
        return found

    found = measuring.in_turns(repeats, {"ours": ours, "hand": by_hand})
    given = {"share": [str(share)], "volume": "vol", "snapshot": "s1", "dest": str(dest), "format": image_format}
    memory = measuring.peak_memory("remotefs_image", given)
    shutil.rmtree(share)
    dest.unlink()
    return Row(f"snapshot to {image_format} image", found["ours"], found["hand"], memory)


def measure(scratch: Path, full: bool) -> list[Row]:
    source, repeats = dense(scratch / "disk", 2048 if full else 512), 5 if full else 3
    rows = []
    if shutil.which("curl") is not None:
        rows += [measure_import(scratch, source, *pair, repeats) for pair in (("qcow2", "raw"), ("qcow2", "qcow2"), ("raw", "raw"), ("vmdk", "raw"))]
    rows += [measure_export(scratch, source, image_format, repeats) for image_format in ("raw", "qcow2", "vmdk")]
    source.unlink()
    return rows


def tables(rows: Sequence[Row]) -> str:
    heads = ["what", "task", "by hand", "task / by hand", "memory"]
    cells = [
        [row.what, measuring.seconds(row.ours), measuring.seconds(row.by_hand), measuring.ratio(row.ours, row.by_hand), f"{row.memory / MIB:.0f} MiB"]
        for row in rows
    ]
    return measuring.table(heads, cells)
