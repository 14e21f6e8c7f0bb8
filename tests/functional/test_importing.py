# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes that are made from images: of every format, by content; and what is refused leaves no volume and no image."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.session import OfflineSession
from ansible_collections.remotefs.storage.plugins.module_utils.errors import (
    ImageChecksum,
    ImageInvalid,
    InvalidParameter,
    LockTimeout,
    NoSpace,
    ToolFailed,
    UnsafeImage,
    WouldShrink,
)
from ansible_collections.remotefs.storage.plugins.module_utils.images import fetching
from ansible_collections.remotefs.storage.plugins.module_utils.operations import importing, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Policy
from ansible_collections.remotefs.storage.plugins.module_utils.operations.importing import ImageRequest
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.pace import OutOfTime
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

from .test_documents import blocks
from .test_examples import images, replaced
from .test_fetching import drip, ranged, reply, serving
from .test_inspection import KINDS, made
from .test_refusals import MIB, Store


def imported(store: Store, image: ImageRequest, name: str = "v", task: Task | None = None, **desired: object) -> object:
    options = Options(lock_timeout=5, task=task or Task())
    request = updating.VolumeRequest(store.candidates, DesiredVolume(name, **desired), image=image)  # type: ignore[arg-type]
    try:
        return volumes.ensure_present(request, options)
    finally:
        if task is None:
            importing.forget_all(options)


def content(path: str, image_format: str) -> bytes:
    raw = f"{path}.shown"
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, raw], check=True)
    try:
        return Path(raw).read_bytes()
    finally:
        os.unlink(raw)


def left(store: Store) -> list[str]:
    folder = store.path / ".remotefs" / "images"
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_has_what_the_image_shows(store: Store, model: Path, tmp_path: Path, kind: str, target: str) -> None:
    image = made(model, tmp_path / "image", kind)
    checksum = f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}"
    done = imported(store, ImageRequest(str(image), checksum), format=target)
    assert done.changed and [step["step"] for step in done.actions][-1] == "copy"  # type: ignore[attr-defined]
    told, expected = store.info("v"), model.read_bytes()
    shown = content(told["path"], target)
    assert told["format"] == target and shown[: len(expected)] == expected and not any(shown[len(expected) :]) and len(shown) - len(expected) < MIB
    assert left(store) == [] and not imported(store, ImageRequest(str(image), checksum), format=target).changed  # type: ignore[attr-defined]
    assert (store.path / "v").stat().st_blocks * 512 < 2 * MIB, "holes are kept"


def test_a_larger_size_grows_it_and_a_smaller_one_is_refused(store: Store, model: Path, tmp_path: Path) -> None:
    image = ImageRequest(str(made(model, tmp_path / "image", "qcow2")))
    imported(store, image, size=9 * MIB)
    assert store.info("v")["size"] == 9 * MIB
    with pytest.raises(WouldShrink):
        imported(store, image, "w", size=4 * MIB)
    assert left(store) == [] and not (store.path / "w").exists()


def test_what_was_cut_stays_for_the_next_task(store: Store, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checksum. The next task asks the server for the rest, and what it leaves is nothing."""
    monkeypatch.setattr(fetching, "_PAUSE", 0.001)
    data, works = model.read_bytes(), []

    def answer(handler: Any, number: int) -> None:
        if works or not number:
            ranged(handler, data, 1 << 40 if works else 2 * MIB)
        else:
            reply(handler, b"", 503)

    with serving(answer) as server:
        request = ImageRequest(server.url, f"sha256:{hashlib.sha256(data).hexdigest()}")
        with pytest.raises(ToolFailed, match=f"answers 503 .{2 * MIB} bytes had come"):
            imported(store, request)
        assert len(left(store)) == 2
        server.asked.clear()
        works.append(True)
        imported(store, request)
        assert [one.get("Range") for one in server.asked] == [f"bytes={2 * MIB}-"]
    assert left(store) == [] and content(store.info("v")["path"], "raw")[: len(data)] == data


@pytest.mark.parametrize("kind", [None, "gzip"])
def test_check_mode_foretells_it(store: Store, model: Path, tmp_path: Path, kind: str | None) -> None:
    """Of a file of this host the size as well, unless it is compressed; what would be refused is refused."""
    image = made(model, tmp_path / "image", "qcow2")
    if kind:
        image.write_bytes(gzip.compress(image.read_bytes()))
    request = updating.VolumeRequest(store.candidates, DesiredVolume("v"), image=ImageRequest(str(image)))
    warned: list = []
    told = volumes.ensure_present(request, Options(check=True, task=Task(warn=warned.append)))
    assert told.changed and bool(warned) == bool(kind) and told.after["size"] == (None if kind else model.stat().st_size)
    assert not (store.path / ".remotefs" / "images").exists()
    if not kind:
        assert [one["step"] for one in told.actions] == [one["step"] for one in imported(store, request.image).actions]  # type: ignore[attr-defined,arg-type]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "x", "-F", "raw", str(image), "1M"], check=False)
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "x", "-F", "raw", str(image)], check=True)
        with pytest.raises(UnsafeImage):
            volumes.ensure_present(request._replace(desired=DesiredVolume("w")), Options(check=True))


def test_what_a_killed_task_left_goes_with_the_next(store: Store, model: Path, tmp_path: Path) -> None:
    """It had made the volume, and had not removed the image."""
    request = ImageRequest(str(made(model, tmp_path / "image", "qcow2")))
    imported(store, request, task=Task())
    assert left(store)
    assert not imported(store, request).changed and left(store) == []  # type: ignore[attr-defined]


def test_an_image_that_another_task_took_over(store: Store, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is lost while the volume is filled: what was read then does not count, and nothing is published."""
    image = made(model, tmp_path / "image", "qcow2")
    copy = OfflineSession._copy_content

    def slow(session: OfflineSession, *given: Any) -> None:
        copy(session, *given)
        (lock,) = [path for path in (store.path / ".remotefs" / "locks").iterdir() if path.name != "v.lock"]
        lock.unlink()

    with monkeypatch.context() as patched, pytest.raises(LockTimeout):
        patched.setattr(OfflineSession, "_copy_content", slow)
        imported(store, ImageRequest(str(image)))
    assert not (store.path / "v").exists()
    imported(store, ImageRequest(str(image)))
    assert left(store) == [] and os.listdir(store.path / ".remotefs" / "locks") == ["v.lock"]


def test_what_is_refused_leaves_nothing(store: Store, model: Path, tmp_path: Path) -> None:
    image = made(model, tmp_path / "image", "qcow2")
    wrong = f"sha256:{'0' * 64}"
    (tmp_path / "cut").write_bytes(gzip.compress(model.read_bytes())[:-20])
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "qcow2", str(tmp_path / "overlay")], check=True)
    for request, error in (
        (ImageRequest(str(image), wrong), ImageChecksum),
        (ImageRequest(str(tmp_path / "cut")), ImageInvalid),
        (ImageRequest(str(tmp_path / "overlay")), UnsafeImage),
        (ImageRequest(str(image), image_format="raw"), ImageInvalid),
        (ImageRequest(str(tmp_path / "nowhere")), ToolFailed),
        (ImageRequest(str(tmp_path)), ToolFailed),
    ):
        with pytest.raises(error):
            imported(store, request)
        assert left(store) == [] and not [name for name in os.listdir(store.path) if not name.startswith(".")]


def test_several_volumes_of_a_task_read_it_once(store: Store, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = made(model, tmp_path / "image", "vmdk")
    task, read = Task(), []
    pieces = importing.LocalFile.pieces

    def counted(self: importing.LocalFile) -> object:
        read.append(1)
        return pieces(self)

    monkeypatch.setattr(importing.LocalFile, "pieces", counted)
    request = ImageRequest(str(image), f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}")
    for name in ("a", "b", "c"):
        imported(store, request, name, task)
    importing.forget_all(Options(task=task))
    assert len(read) == 1 and left(store) == []
    assert len({content(store.info(name)["path"], "raw") for name in ("a", "b", "c")}) == 1


def test_a_first_run_is_foretold(tmp_path: Path, ansible_environment: dict) -> None:
    """Neither the share nor the image is there yet: earlier tasks make them."""
    share, image = tmp_path / "later", tmp_path / "image.qcow2"
    tasks = [
        {"remotefs.storage.remotefs_share": {"src": str(share)}},
        {"ansible.builtin.command": {"cmd": f"qemu-img create -q -f qcow2 {image} 4M", "creates": str(image)}},
        {
            "remotefs.storage.remotefs_volume": {
                "share": str(share),
                "volumes": [{"name": "v", "source": {"image": str(image)}}, {"name": "c", "source": {"volume": "v"}}],
            }
        },
        {"remotefs.storage.remotefs_snapshot": {"share": str(share), "volume": "v", "name": "s"}},
    ]
    foretold = playbook(tmp_path, ansible_environment, *tasks, check=True)
    said = " ".join((foretold.stdout + foretold.stderr).split())  # older releases of Ansible break the lines of warnings
    assert foretold.returncode == 0 and "check mode assumes that an earlier task makes it" in said, foretold.stdout
    assert '"size": null' in foretold.stdout and not share.exists() and not image.exists()
    done = playbook(tmp_path, ansible_environment, *tasks)
    changed = [re.search(r"changed=(\d+)", run.stdout) for run in (foretold, done)]
    assert done.returncode == 0 and changed[0] and changed[1] and changed[0][1] == changed[1][1], done.stdout


def playbook(tmp_path: Path, environment: dict, *tasks: dict, check: bool = False) -> subprocess.CompletedProcess:
    (tmp_path / "book.json").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": list(tasks)}]))
    words = ["ansible-playbook", "-vvv", "--diff", *(["--check"] if check else []), str(tmp_path / "book.json")]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("value, shown", [("1", True), ("secret7", True), ("secret-8", False)])
def test_short_values_of_headers_are_no_secrets(store: Store, tmp_path: Path, ansible_environment: dict, value: str, shown: bool) -> None:
    """Where they are, results would have asterisks in names and numbers."""
    store.present("v1-secret-8-secret7", size=MIB)
    source = {"image": "http://127.0.0.1:9/x", "headers": {"X-Version": value}}
    for given in ({"name": "v1-secret-8-secret7", "source": source}, {"volumes": [{"name": "v1-secret-8-secret7", "source": source}]}):
        done = playbook(tmp_path, ansible_environment, {"remotefs.storage.remotefs_volume": {"share": str(store.path), **given}})
        assert done.returncode == 0 and ('"name": "v1-secret-8-secret7"' in done.stdout) == shown, done.stdout


def peak_of(action: Any) -> int:
    """Bytes by which this process grows while it does something, at most."""

    def status(key: str) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
        return int(line.split()[1]) << 10

    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
    before = status("VmRSS:")
    action()
    return status("VmHWM:") - before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "gzip", "qcow2"])
def test_a_large_disk_takes_little_memory(store: Store, tmp_path: Path, kind: str) -> None:
    """2 GiB and more, nearly all of it holes; data at the beginning, and at the end."""
    size, ends = (2 << 30) + MIB, (b"begin" * 1000, b"end" * 1000)
    with open(tmp_path / "disk", "wb") as disk:
        disk.write(ends[0])
        disk.truncate(size)
        disk.seek(size - len(ends[1]))
        disk.write(ends[1])
    image = tmp_path / "image"
    if kind == "qcow2":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(tmp_path / "disk"), str(image)], check=True)
    elif kind == "raw":
        (tmp_path / "disk").rename(image)
    else:
        with open(image, "wb") as packed:
            subprocess.run([kind, "-1", "-c", str(tmp_path / "disk")], stdout=packed, check=True)
    assert peak_of(lambda: imported(store, ImageRequest(str(image)))) < 64 * MIB
    with open(store.path / "v", "rb") as volume:
        assert volume.read(len(ends[0])) == ends[0] and os.fstat(volume.fileno()).st_size == size
        assert os.pread(volume.fileno(), len(ends[1]), size - len(ends[1])) == ends[1]
        assert os.fstat(volume.fileno()).st_blocks * 512 < MIB


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize("length", [1, 511, 513, MIB + 1])
def test_a_raw_disk_with_a_part_of_a_sector(store: Store, tmp_path: Path, length: int, target: str) -> None:
    (tmp_path / "image").write_bytes(b"d" * length)
    request, size = ImageRequest(str(tmp_path / "image")), -(-length // 512) * 512
    asked = updating.VolumeRequest(store.candidates, DesiredVolume("v", format=target), image=request)
    assert volumes.ensure_present(asked, Options(check=True)).after["size"] == size  # type: ignore[index]
    imported(store, request, format=target)
    told = store.info("v")
    assert told["size"] == size and content(told["path"], target) == (b"d" * length).ljust(size, b"\0")


def test_a_server_that_drips_is_given_its_time(store: Store) -> None:
    """Also that of a list of checksums."""

    def answer(handler: Any, _number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        drip(handler, lambda one: one.wfile.write(b"x"))

    with serving(answer) as server:
        for checksum in (None, f"sha256:{server.url}"):
            started = time.monotonic()
            request = updating.VolumeRequest(store.candidates, DesiredVolume("v"), image=ImageRequest(server.url, checksum))
            with pytest.raises(OutOfTime):
                volumes.ensure_present(request, Options(timeout=1, lock_timeout=5))
            assert time.monotonic() - started < 4


def test_an_image_that_the_share_has_no_room_for_is_not_fetched(store: Store, tmp_path: Path) -> None:
    total = os.statvfs(store.path).f_blocks * os.statvfs(store.path).f_frsize  # what is free changes while other tests run
    with serving(lambda handler, _number: reply(handler, b"x" * MIB, length=total + MIB)) as server:
        with pytest.raises(NoSpace):
            imported(store, ImageRequest(server.url))
        assert len(server.asked) == 1 and left(store) == []
    with open(tmp_path / "large", "wb") as disk:
        disk.truncate(os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize * 3 // 512 * 512)
    asked = updating.VolumeRequest(store.candidates, DesiredVolume("v"), policy=Policy(0, 2.0), image=ImageRequest(str(tmp_path / "large")))
    for check in (True, False):
        with pytest.raises(NoSpace):
            volumes.ensure_present(asked, Options(check=check))


GIVEN = {
    "image": "http://h/x", "checksum": None, "compression": "auto", "image_format": None, "headers": None, "validate_certs": True,
    "url_username": None, "url_password": None, "client_cert": None, "client_key": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "given, words",
    [
        *(({"image": place}, "option source.image") for place in ("", "5", "relative/disk.img", "http:", "http://", "http://h:99999/x", "http://h:abc/x")),
        *(({"image": place}, "option source.image") for place in ("http://h/a b", "http://h/a\r\nb", "/x\0y", "/" + "x" * 9000, "http://[1/")),
        ({"image": "file:///etc/passwd"}, "neither http nor https"),
        ({"image": "ftp://h/x"}, "neither http nor https"),
        ({"image": "/x", "headers": {"A": "b"}}, "option source.headers"),
        ({"image": "/x", "url_username": "a"}, "option source.url_username"),
        ({"url_password": "secret"}, "without url_username"),
        ({"client_key": "/etc/passwd"}, "without client_cert"),
        ({"client_cert": "/nowhere"}, "there is no file /nowhere"),
        *(({"headers": {"A": value}}, "its value is no text") for value in ({"b": 1}, ["b"], None, True)),
        *(({"headers": {name: "1"}}, "this module decides") for name in ("Range", "content-length", "Transfer-Encoding")),
        ({"headers": {"A": "b\r\nC: d"}}, "no text of one line"),
    ],
)
def test_options_that_cannot_be_meant(given: dict, words: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(words)) as caught:
        importing.request_of({**GIVEN, **given})
    assert len(str(caught.value)) < 500 and "secret" not in str(caught.value)


def test_options_for_the_server_of_a_list() -> None:
    """The image is a path, and its list of checksums is on a server."""
    request = importing.request_of({**GIVEN, "image": "/x", "checksum": "sha256:https://h/SHA256SUMS", "headers": {"A": 1}})
    assert request.access.headers == (("A", "1"),)


def test_a_list_on_another_server_gets_no_secrets(store: Store, model: Path) -> None:
    data = model.read_bytes()
    sums = f"{hashlib.sha256(data).hexdigest()}  disk.img\n".encode()
    with serving(lambda handler, _number: reply(handler, data)) as server, serving(lambda handler, _number: reply(handler, sums)) as other:
        access = fetching.Access((("X-Auth-Token", "a-secret-token"),), username="user", password="a-secret-password")
        imported(store, ImageRequest(server.url, f"sha256:{other.url}", access=access))
        assert all("X-Auth-Token" in one and "Authorization" in one for one in server.asked)
        assert other.asked and not any("X-Auth-Token" in one or "Authorization" in one for one in other.asked)


@pytest.mark.slow
def test_the_playbooks_of_the_guide(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """As they stand in docs/images.md: foretold, done, and then no change."""
    books = blocks((Path(__file__).resolve().parents[2] / "docs" / "images.md").read_text())
    assert len(books) == 5
    books = books[:4]  # tests/glance plays the last one, with a Glance
    with images(tmp_path) as places:
        text = replaced(json.dumps(sum(books, [])), {**places, "/srv/volumes": str(store.path), "10G": "8M", "hypervisor": "localhost"})
        (tmp_path / "guide.json").write_text(text)
        told = []
        for options in (["--check"], [], []):
            words = ["ansible-playbook", *options, str(tmp_path / "guide.json")]
            done = subprocess.run(words, env=ansible_environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            told.append(re.search(r"changed=(\d+)", done.stdout)[1])  # type: ignore[index]
    assert told == ["7", "7", "0"] and left(store) == []
    assert [store.info(name)["size"] for name in ("web01", "appliance-1", "appliance-2")] == [8 * MIB, 4 * MIB, 4 * MIB]


def test_a_playbook_with_a_token(store: Store, model: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Two volumes from one image of a server that wants a token: foretold, done, done again; it is fetched once, and nobody sees the token."""
    image = made(model, tmp_path / "image", "qcow2").read_bytes()
    sums = f"{hashlib.sha256(image).hexdigest()}  disk.img\n".encode()

    def answer(handler: Any, _number: int) -> None:
        if handler.headers.get("X-Auth-Token") != "a-secret-token":
            return reply(handler, b"", 401)
        return reply(handler, sums if handler.path.endswith("SUMS") else image)

    with serving(answer) as server:
        source = {"image": server.url, "checksum": f"sha256:{server.url.replace('disk.img', 'SHA256SUMS')}", "headers": {"X-Auth-Token": "a-secret-token"}}
        task = {"remotefs.storage.remotefs_volume": {"share": str(store.path), "source": source, "volumes": [{"name": "a"}, {"name": "b", "format": "qcow2"}]}}
        foretold = playbook(tmp_path, ansible_environment, task, check=True)
        assert foretold.returncode == 0 and "changed=1" in foretold.stdout and not server.asked, foretold.stdout
        done = playbook(tmp_path, ansible_environment, task)
        assert done.returncode == 0 and "changed=1" in done.stdout, done.stdout + done.stderr
        assert len(server.asked) <= 4
        again = playbook(tmp_path, ansible_environment, task)
        assert "changed=0" in again.stdout
        refused = playbook(
            tmp_path, ansible_environment, {"remotefs.storage.remotefs_volume": {"share": str(store.path), "name": "c", "source": {"image": server.url}}}
        )
        assert refused.returncode and "answers 401" in refused.stdout and "tool_failed" in refused.stdout
    for run in (foretold, done, again, refused):
        assert "a-secret-token" not in run.stdout + run.stderr
    expected = model.read_bytes()
    assert content(store.info("a")["path"], "raw")[: len(expected)] == content(store.info("b")["path"], "qcow2")[: len(expected)] == expected
    assert left(store) == []
