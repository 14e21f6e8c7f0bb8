# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seeds for cloud-init: what is in them, how they are replaced, what is refused, and that nobody else sees what they hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply import executor
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import seeds as writing
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.operations import seeds, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan import seeds as planned
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import chains
from ansible_collections.remotefs.storage.plugins.modules import remotefs_volume

from .iso_parser import parsed
from .test_importing import playbook
from .test_in_use import READER, WRITER, Killed, killed_in, opened
from .test_leases import hold, under
from .test_refusals import MIB, Store, refused

SECRET = "a-secret-password"
USER = {"password": SECRET, "ssh_pwauth": True}
CHANGES = {
    "size": None, "format": None, "preallocation": "off", "snapshot": None, "flatten": False, "moved_from": None,
}  # fmt: skip
SOURCE = {"method": "full", "volume": None, "image": None, "share": None, "snapshot": None}


def seed_of(name: str = "seed", **given: Any) -> seeds.Seed:
    return seeds.request_of({**CHANGES, "name": name, "source": {**SOURCE, "seed": given}})


def request(store: Store, name: str = "seed", desired: dict | None = None, **given: Any) -> updating.VolumeRequest:
    seed = seed_of(name, **given)
    return updating.VolumeRequest(store.candidates, DesiredVolume(name, format="raw", seed=seed.size, **(desired or {})), seed=seed)


def made(store: Store, name: str = "seed", desired: dict | None = None, options: Options | None = None, check: bool = False, **given: Any) -> Any:
    return volumes.ensure_present(request(store, name, desired, **given), options or store.options(check=check))


def files(store: Store, name: str = "seed") -> dict[str, bytes]:
    return parsed((store.path / name).read_bytes()).joliet


def left(store: Store) -> list[str]:
    """Files on the share besides volumes, their records, locks and ballast."""
    found = (path.relative_to(store.path) for path in store.path.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] == ".remotefs" and path.parts[1] not in ("locks", "ballast", "volumes", "leases"))


def everything(store: Store) -> bytes:
    """What is in all files of the share but the seeds."""
    return b"".join(path.read_bytes() for path in (store.path / ".remotefs").rglob("*") if path.is_file())


# -- what is in them -----------------------------------------------------------------------------------------------------


def test_what_cloud_init_finds(store: Store) -> None:
    done = made(store, user_data=USER, meta_data={"public-keys": ["k"]}, network_config={"version": 2, "ethernets": {"eth0": {"dhcp4": True}}})
    assert done.changed and done.after["format"] == "raw" and done.after["size"] == (store.path / "seed").stat().st_size
    image = parsed((store.path / "seed").read_bytes())
    assert image.labels == ("cidata", "cidata") and len(image.plain) == 3 and sorted(image.plain.values()) == sorted(image.joliet.values())
    assert all(re.fullmatch(r"[A-Z0-9_]{1,8}\.;1", name) for name in image.plain)
    found = image.joliet
    assert sorted(found) == ["meta-data", "network-config", "user-data"]
    assert found["user-data"].startswith(b"#cloud-config\n") and yaml.safe_load(found["user-data"]) == USER
    assert yaml.safe_load(found["meta-data"]) == {"instance-id": "seed", "public-keys": ["k"]}
    assert json.loads(found["network-config"]) == {"version": 2, "ethernets": {"eth0": {"dhcp4": True}}}
    assert stat.S_IMODE((store.path / "seed").stat().st_mode) == 0o440 and left(store) == []
    assert not made(store, user_data=USER, meta_data={"public-keys": ["k"]}, network_config={"version": 2, "ethernets": {"eth0": {"dhcp4": True}}}).changed


@pytest.mark.parametrize(
    "given, file, expected",
    [
        ({}, "user-data", b"#cloud-config\n"),
        ({"user_data": ""}, "user-data", b"#cloud-config\n"),
        ({"user_data": "#!/bin/sh\necho \u00e9\n"}, "user-data", "#!/bin/sh\necho \u00e9\n".encode()),
        ({"user_data": [{"type": "text/x-shellscript", "content": "#!/bin/sh"}]}, "user-data", b"#cloud-config-archive\n"),
        ({"vendor_data": {"a": 1}}, "vendor-data", b"#cloud-config\n"),
        ({"network_config": "version: 1\n"}, "network-config", b"version: 1\n"),
        ({"meta_data": "instance-id: mine\n"}, "meta-data", b"instance-id: mine\n"),
        ({"meta_data": {"instance-id": "mine"}}, "meta-data", b'{\n "instance-id": "mine"\n}\n'),
        ({}, "meta-data", b'{\n "instance-id": "seed",\n "local-hostname": "seed"\n}\n'),
    ],
)
def test_values_of_each_kind(store: Store, given: dict, file: str, expected: bytes) -> None:
    made(store, **given)
    found = files(store)[file]
    assert found.startswith(expected) and (isinstance(next(iter(given.values()), ""), (dict, list)) or found == expected)
    assert set(files(store)) == {"user-data", "meta-data", file}


def test_json_is_yaml_for_every_letter() -> None:
    """YAML takes some letters for ends of lines, and some for damage, which JSON has as they are."""
    value = {"text": "".join(map(chr, (*range(0xD800), *range(0xE000, 0x10000), 0x1F600, 0x10FFFF))), "\u2028": [1, -2.5, None, True, {"a": []}]}
    found = parsed(seed_of(user_data=value).content).joliet["user-data"]
    assert yaml.safe_load(found) == value and json.loads(found.partition(b"\n")[2]) == value


def test_equal_content_gives_equal_bytes() -> None:
    one, other = ({"b": 1, "a": {"d": 2, "c": 3}}, {"a": {"c": 3, "d": 2}, "b": 1})
    assert seed_of(user_data=one).content == seed_of(user_data=other).content != seed_of(user_data={"b": 1}).content
    assert seed_of("a").content != seed_of("b").content


@pytest.mark.parametrize("program", ["blkid", "isoinfo", "mount"])
def test_other_programs_read_it(store: Store, tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    text = {"user_data": "#cloud-config\n" + "x: y\n" * 3000, "vendor_data": "v", "network_config": "version: 2\n"}
    made(store, **text)
    image = str(store.path / "seed")
    if program == "blkid":
        said = subprocess.run(["blkid", "-p", "-o", "export", image], check=True, capture_output=True, text=True).stdout.splitlines()
        assert "LABEL=cidata" in said and "TYPE=iso9660" in said
        return
    if program == "isoinfo":
        listed = subprocess.run(["isoinfo", "-J", "-f", "-i", image], check=True, capture_output=True, text=True)
        assert sorted(listed.stdout.split()) == ["/meta-data", "/network-config", "/user-data", "/vendor-data"] and not listed.stderr
        shown = {name[1:]: subprocess.run(["isoinfo", "-J", "-x", name, "-i", image], check=True, capture_output=True).stdout for name in listed.stdout.split()}
        assert shown == files(store)
        return
    if shutil.which("modprobe"):  # else the kernel has it already, or has not
        subprocess.run(["modprobe", "isofs"], capture_output=True, check=False)
    if os.geteuid() or "\tiso9660\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs root, and a kernel that has iso9660")
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", "-t", "iso9660", image, str(place)], check=True)
    try:
        assert {path.name: path.read_bytes() for path in place.iterdir()} == files(store)
    finally:
        subprocess.run(["umount", str(place)], check=True)


_CLOUD_INIT = """
import json, subprocess, sys, os
from cloudinit import helpers, util
from cloudinit.sources import DataSourceNoCloud as nocloud
image, work, mounts = sys.argv[1], sys.argv[2], sys.argv[3] == "mounts"
blkid = dict(line.split("=", 1) for line in subprocess.run(["blkid", "-p", "-o", "export", image], capture_output=True, text=True).stdout.splitlines())
util.find_devs_with = lambda word="", **_more: [image] if word in [f"{key}={value}" for key, value in blkid.items()] else []
def extracted(device, callback, data=None, **_more):
    for name in subprocess.run(["isoinfo", "-J", "-f", "-i", device], capture_output=True, text=True).stdout.split():
        with open(work + name, "wb") as file:
            subprocess.run(["isoinfo", "-J", "-x", name, "-i", device], stdout=file, check=True)
    return callback(work, data)
if not mounts:
    util.mount_cb = extracted
nocloud.dmi.read_dmi_data = lambda _key: None
nocloud.load_cmdline_data = lambda *_arguments: False
paths = helpers.Paths({"cloud_dir": work + "/cloud", "run_dir": work + "/run"})
source = nocloud.DataSourceNoCloud({}, None, paths)
assert source._get_data(), "it is not found"
text = lambda data: data.decode() if isinstance(data, bytes) else data
print(json.dumps({"id": source.get_instance_id(), "meta": source.metadata, "user": text(source.userdata_raw), "vendor": text(source.vendordata_raw),
                  "network": source.network_config, "config": util.load_yaml(source.userdata_raw)}))
"""


def test_the_real_cloud_init_takes_it(store: Store, tmp_path: Path) -> None:
    """Its data source NoCloud finds it by type and label, and understands all four files. Where the kernel has no iso9660, isoinfo stands for mount."""
    python = "/usr/bin/python3"
    if subprocess.run([python, "-c", "import cloudinit"], capture_output=True, check=False).returncode or not shutil.which("isoinfo"):
        pytest.skip("needs cloud-init and isoinfo (packages cloud-init and genisoimage)")
    network = {"version": 2, "ethernets": {"eth0": {"dhcp4": True}}}
    made(store, "node-1", user_data=USER, network_config=network, vendor_data="#cloud-config\nv: 1\n")
    how = "mounts" if os.geteuid() == 0 and "\tiso9660\n" in Path("/proc/filesystems").read_text() else "extracts"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-c", _CLOUD_INIT, str(store.path / "node-1"), str(tmp_path), how]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found["id"], found["meta"]["local-hostname"], found["network"]) == ("node-1", "node-1", network)
    assert found["config"] == USER and found["user"].startswith("#cloud-config\n") and found["vendor"] == "#cloud-config\nv: 1\n"


# -- another content -----------------------------------------------------------------------------------------------------


def test_another_content_is_one_rename(store: Store) -> None:
    """The path stays, and with it mode, owner, labels and the lease; the record follows to the new file."""
    lease = hold(store, volumes=("seed",)).after
    with under(store, lease) as options:
        made(store, desired={"labels": {"a": "b"}, "mode": 0o640}, options=options, user_data=USER)
    path, first = store.path / "seed", (store.path / "seed").stat()
    os.setxattr(path, "user.mine", b"kept")
    with open(path, "rb") as machine:  # without QEMU's locks, as a program that reads it once
        with under(store, lease) as options:
            done = made(store, options=options, user_data={"password": "b"})
        assert parsed(machine.read()).joliet["user-data"] != files(store)["user-data"], "a file that is open keeps what it had"
    second = path.stat()
    assert done.changed and [step["step"] for step in done.actions] == ["write_seed", "write_record"] and done.recovered == []
    assert first.st_ino != second.st_ino and stat.S_IMODE(second.st_mode) == 0o640 and os.getxattr(path, "user.mine") == b"kept"
    told = store.info("seed")
    assert told["lease"] == lease.id and told["labels"] == {"a": "b"} and told["pending"] is None and told["path"] == str(path)
    assert done.before["labels"] == done.after["labels"] and yaml.safe_load(files(store)["user-data"]) == {"password": "b"}
    assert left(store) == [] and not made(store, user_data={"password": "b"}).changed
    made(store, desired={"mode": 0o600, "labels": {}, "description": "d"}, user_data=USER)
    told = store.info("seed")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and (told["labels"], told["description"], told["lease"]) == ({}, "d", lease.id)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who gives files away")
def test_another_content_with_another_owner(store: Store) -> None:
    """Check mode foretells owner and group, those that are asked for and those that stay."""
    made(store, user_data=USER)
    for asked, owner in (({"uid": 1234}, (1234, 0)), ({"gid": 4321}, (1234, 4321)), ({}, (1234, 4321))):
        text = json.dumps(asked)
        foretold = planned.replaced(volume_of(store), DesiredVolume("seed", **asked), 512).after
        assert foretold is not None and (foretold.active.uid, foretold.active.gid) == owner
        made(store, desired=asked, user_data=text)
        status = (store.path / "seed").stat()
        assert (status.st_uid, status.st_gid) == owner


def volume_of(store: Store) -> Volume:
    with ShareDirectory(store.share) as directory:
        found = chains.observe(directory, "seed")
    assert found is not None
    return found.volume


def test_details_alone_leave_the_file(store: Store) -> None:
    made(store, user_data=USER)
    inode = (store.path / "seed").stat().st_ino
    done = made(store, desired={"mode": 0o640, "description": "d"}, user_data=USER)
    assert done.changed and (store.path / "seed").stat().st_ino == inode and store.info("seed")["description"] == "d"
    assert stat.S_IMODE((store.path / "seed").stat().st_mode) == 0o640


def test_another_length(store: Store) -> None:
    """Shorter ones too: a seed is no disk that only grows."""
    for letters in (10, 50_000, 3, 100_000, 0):
        assert made(store, user_data="#cloud-config\n" + "x" * letters).changed
        told = store.info("seed")
        assert told["size"] == (store.path / "seed").stat().st_size and told["format"] == "raw"
        assert len(files(store)["user-data"]) == letters + 14


def test_check_mode(store: Store) -> None:
    """It foretells what is done then, step by step, and changes nothing."""
    for given in ({"user_data": USER}, {"user_data": {"password": "b"}}):
        before = store.state()
        foretold = made(store, check=True, **given)
        assert store.state() == before
        done = made(store, **given)
        assert foretold.changed and foretold.actions == done.actions and foretold.after["size"] == done.after["size"]
        again = made(store, check=True, **given)
        assert not again.changed and not again.actions


def test_a_copy_on_another_share_is_adopted(store: Store, tmp_path: Path) -> None:
    """The image is known by itself, so that a share that was restored without records goes on."""
    made(store, user_data=USER)
    (tmp_path / "other").mkdir()
    other = Store(tmp_path / "other")
    shutil.copy(store.path / "seed", other.path / "seed")
    assert [step["step"] for step in made(other, user_data=USER).actions] == ["write_record"]
    assert not made(other, user_data=USER).changed and made(other, user_data="b").changed


# -- interruptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["the same", "another"])
@pytest.mark.parametrize("renamed", [True, False])
def test_the_next_task_ends_a_killed_one(store: Store, monkeypatch: pytest.MonkeyPatch, renamed: bool, content: str) -> None:
    lease = hold(store, volumes=("seed",)).after
    with under(store, lease) as options:
        made(store, options=options, user_data=USER)
    if renamed:
        with killed_in(executor.Executor, "_write_final_record", monkeypatch):
            made(store, user_data="#cloud-config\nb: 1\n")
    else:
        rename = os.rename

        def die(source: str, target: str, **where: Any) -> None:
            if target == "seed":
                raise Killed
            rename(source, target, **where)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(os, "rename", die)
            made(store, user_data="#cloud-config\nb: 1\n")
    told = store.info("seed")
    assert told["pending"]["operation"] == "replace_seed" and told["lease"] == lease.id and SECRET.encode() not in everything(store)
    wanted = {"the same": "#cloud-config\nb: 1\n", "another": "#cloud-config\nc: 2\n"}[content]
    with under(store, lease, check=True) as options:
        foretold = made(store, options=options, user_data=wanted)
    with under(store, lease) as options:
        done = made(store, options=options, user_data=wanted)
    assert [(one["operation"], one["outcome"]) for one in done.recovered] == [("replace_seed", "finished" if renamed else "undone")]
    assert foretold.recovered == done.recovered
    assert ("write_seed" in [step["step"] for step in done.actions]) == (content == "another" or not renamed)
    told = store.info("seed")
    assert files(store)["user-data"] == wanted.encode() and told["pending"] is None and told["lease"] == lease.id and left(store) == []
    assert not made(store, user_data=wanted).changed


def test_any_task_ends_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made(store, user_data=USER)
    with killed_in(executor.Executor, "_write_final_record", monkeypatch):
        made(store, user_data="b")
    done = store.absent("seed")
    assert done.changed and [one["operation"] for one in done.recovered] == ["replace_seed"] and not (store.path / "seed").exists()


def test_a_file_of_somebody_else_is_not_taken_for_the_new_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made(store, user_data=USER)
    with killed_in(executor.Executor, "_write_final_record", monkeypatch):
        made(store, user_data="b")
    (store.path / "theirs").write_bytes(b"x" * 999)
    os.rename(store.path / "theirs", store.path / "seed")
    refused(store, errors.NeedsRecovery, lambda check: made(store, check=check, user_data="b"))


def test_a_share_that_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one stays, and nothing of the new one; nothing is left to be ended."""
    made(store, user_data=USER)
    before = (store.path / "seed").stat()

    def full(_fd: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "write_all", full)
        with pytest.raises(errors.NoSpace):
            made(store, user_data="b")
        with pytest.raises(errors.NoSpace):
            made(store, "new", user_data="b")
    assert (store.path / "seed").stat() == before and store.info("seed")["pending"] is None and left(store) == [] and not (store.path / "new").exists()
    assert not made(store, user_data=USER).changed and made(store, user_data="b").changed


@pytest.mark.root
def test_a_share_that_is_really_full(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        store = Store(place)
        made(store, user_data=USER)
        before = (store.path / "seed").read_bytes()
        with pytest.raises(errors.NoSpace):
            made(store, user_data="x" * MIB)
        with pytest.raises(errors.NoEligibleShare):
            made(store, "new", user_data="x" * MIB)
        assert (store.path / "seed").read_bytes() == before and left(store) == [] and store.info("seed")["pending"] is None
        assert made(store, user_data="b").changed
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.root
def test_a_user_who_is_not_root(tmp_path: Path) -> None:
    """Nobody may write to a seed, and its owner replaces and removes it all the same, unless a machine has it open."""
    share = tmp_path / "share"
    share.mkdir()
    for path in (share, *share.parents):
        if path == Path("/tmp"):
            break
        path.chmod(path.stat().st_mode | 0o055)
    os.chown(share, 65534, 65534)
    store = Store(share)
    (tmp_path / "other").mkdir()
    first = Store(tmp_path / "other")  # nobody may not import what lies in a directory of root's
    for content in ("a", "b"):
        made(first, user_data=content)
    first.absent("seed")
    lines: list[str] = []

    def as_nobody(action: Callable[[], object]) -> str:
        reading, writing_end = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                try:
                    action()
                    told = "done"
                except errors.StorageError as error:
                    told = error.error_code
                except Exception as error:
                    told = repr(error)
                os.write(writing_end, told.encode())
            finally:
                os._exit(0)
        os.close(writing_end)
        os.waitpid(child, 0)
        with os.fdopen(reading) as stream:
            return stream.read()

    lines.append(as_nobody(lambda: made(store, user_data=USER)))
    with opened(share / "seed", READER):
        lines.append(as_nobody(lambda: made(store, user_data="b")))
        lines.append(as_nobody(lambda: made(store, user_data=USER)))
    lines.append(as_nobody(lambda: made(store, user_data="b")))
    assert stat.S_IMODE((share / "seed").stat().st_mode) == 0o440 and files(store)["user-data"] == b"b"
    lines.append(as_nobody(lambda: store.absent("seed")))
    assert lines == ["done", "in_use", "done", "done", "done"] and not (share / "seed").exists()


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [READER, WRITER])
def test_a_machine_has_it(store: Store, places: tuple) -> None:
    """Also one that only reads it, which would not see the new one before it is shut off. The same content is no change."""
    made(store, user_data=USER)
    with opened(store.path / "seed", places):
        refused(store, errors.InUse, lambda check: made(store, check=check, user_data="b"))
        assert not made(store, user_data=USER).changed
    assert made(store, user_data="b").changed


def a_raw_disk(store: Store) -> None:
    store.present("seed", size=MIB)


def a_qcow2_disk(store: Store) -> None:
    store.present("seed", size=MIB, format="qcow2")


def with_a_snapshot(store: Store) -> None:
    made(store, user_data=USER)
    store.snapshot("s1", "seed")


def a_clone(store: Store) -> None:
    store.present("other", size=MIB)
    store.present("seed", updating.SourceRequest("other", linked=True))


def another_label(store: Store) -> None:
    made(store, user_data=USER)
    data = (store.path / "seed").read_bytes()
    os.chmod(store.path / "seed", 0o640)
    (store.path / "seed").write_bytes(data.replace(b"cidata", b"config"))


def of_another_program(store: Store) -> None:
    made(store, user_data=USER)
    data = (store.path / "seed").read_bytes()
    (store.path / "seed").write_bytes(data.replace(b"REMOTEFS.STORAGE SEED", b"GENISOIMAGE          "))


def a_disk_that_begins_like_one(store: Store) -> None:
    """What a guest can write into its disk."""
    made(store, user_data=USER)
    data = (store.path / "seed").read_bytes()
    store.absent("seed")
    store.present("seed", size=MIB)
    with open(store.path / "seed", "r+b") as disk:
        disk.write(data)


@pytest.mark.parametrize("before", [a_raw_disk, a_qcow2_disk, with_a_snapshot, a_clone, another_label, of_another_program, a_disk_that_begins_like_one])
def test_what_is_no_seed_is_never_overwritten(store: Store, before: Callable[[Store], None]) -> None:
    before(store)
    refused(store, errors.Conflict, lambda check: made(store, check=check, user_data=USER))
    refused(store, errors.Conflict, lambda check: made(store, check=check, user_data="b"))


def test_what_something_rests_on_stays(store: Store) -> None:
    made(store, user_data=USER)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "seed", "-F", "raw", str(store.path / "theirs")], check=True)
    refused(store, errors.HasDependents, lambda check: made(store, check=check, user_data="b"))
    assert not made(store, user_data=USER).changed


@pytest.mark.parametrize(
    "changed, option",
    [
        ({"size": "1M"}, "size"),
        ({"format": "qcow2"}, "format"),
        ({"preallocation": "full"}, "preallocation"),
        ({"snapshot": "s"}, "snapshot"),
        ({"flatten": True}, "flatten"),
        ({"moved_from": "/x"}, "moved_from"),
        *(({"source": {name: "x"}}, f"source.{name}") for name in ("volume", "image", "share", "snapshot")),
        ({"source": {"method": "linked"}}, "source.method"),
        ({"source": {"seed": {"user_data": "\ud800" + SECRET}}}, "source.seed.user_data"),
        ({"source": {"seed": {"user_data": {SECRET: "\ud800"}}}}, "source.seed.user_data"),
        ({"source": {"seed": {"vendor_data": {"a": float("nan")}}}}, "source.seed.vendor_data"),
        ({"source": {"seed": {"user_data": 5}}}, "source.seed.user_data"),
        ({"source": {"seed": {"user_data": True}}}, "source.seed.user_data"),
        ({"source": {"seed": {"meta_data": [SECRET]}}}, "source.seed.meta_data"),
        ({"source": {"seed": {"network_config": [1]}}}, "source.seed.network_config"),
        ({"source": {"seed": {"user_data": "x" * (9 << 20), "vendor_data": "\u00e9" * (4 << 20)}}}, "source.seed"),
    ],
)
def test_what_cannot_be_meant(changed: dict, option: str) -> None:
    source = {**SOURCE, "seed": {}, **changed.get("source", {})}
    with pytest.raises(errors.InvalidParameter) as caught:
        seeds.request_of({**CHANGES, "name": "seed", **changed, "source": source})
    error = caught.value
    assert str(error).startswith(f"option {option}:") and "; " in str(error) and SECRET not in f"{error!r} {error.__cause__!r} {error.__context__!r}"


def test_as_much_as_it_may_have(store: Store) -> None:
    given = {"user_data": "x" * ((16 << 20) - 100), "meta_data": "instance-id: a\n"}
    made(store, **given)
    assert len(files(store)["user-data"]) == (16 << 20) - 100 and not made(store, **given).changed


# -- many, and secrets ---------------------------------------------------------------------------------------------------


def test_fifty_in_one_task(store: Store) -> None:
    def item(number: int) -> runner.Item:
        name = f"seed-{number}"
        return runner.Item(name, frozenset([name]), lambda options: volumes.ensure_present(request(store, name, user_data={"number": number}), options))

    first = runner.run_all([item(number) for number in range(50)], 8, Options())
    assert all(one.changed for one in first) and not any(one.changed for one in runner.run_all([item(number) for number in range(50)], 8, Options()))
    for number in range(50):
        found = files(store, f"seed-{number}")
        assert yaml.safe_load(found["user-data"]) == {"number": number} and json.loads(found["meta-data"])["instance-id"] == f"seed-{number}"
    assert left(store) == []


def test_a_file_is_private_until_it_has_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    write = writing.write_all

    def watched(fd: int, data: bytes) -> None:
        write(fd, data)
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))

    monkeypatch.setattr(writing, "write_all", watched)
    made(store, desired={"mode": 0o644}, user_data=USER)
    made(store, user_data="b")
    assert seen == [0o600, 0o600] and stat.S_IMODE((store.path / "seed").stat().st_mode) == 0o644


def command_lines(stop: threading.Event, found: set[str]) -> None:
    """What all processes of this machine show of themselves meanwhile."""
    while not stop.is_set():
        for process in Path("/proc").glob("[0-9]*"):
            for file in ("cmdline", "environ"):
                try:
                    text = (process / file).read_bytes()
                except OSError:
                    continue
                if SECRET.encode() in text:
                    found.add(f"{process.name} {file}")


@pytest.mark.slow
def test_nobody_sees_what_it_holds(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """A playbook with everything that shows something: foretold, done, done again, replaced, in bulk, and refused."""
    log = tmp_path / "steps.log"
    seed = {"user_data": {"hostname": "node-number-1", "password": SECRET, "pin": 7, "short": "s3cr3t"}, "vendor_data": f"#cloud-config\np: {SECRET}\n"}
    network = {"version": 2, "ethernets": {"eth0": {"dhcp4": True}}}

    def task(**given: Any) -> dict:
        source = {"seed": {**seed, "network_config": network, **given.pop("seed", {})}}
        return {"remotefs.storage.remotefs_volume": {"share": str(store.path), "log_path": str(log), "source": source, **given}}

    stop, met = threading.Event(), set[str]()
    watcher = threading.Thread(target=command_lines, args=(stop, met))
    watcher.start()
    try:
        one, many = task(name="node-number-1"), task(volumes=[{"name": "node-number-1"}, {"name": "seven-7"}])
        runs = [
            playbook(tmp_path, ansible_environment, one, check=True),
            playbook(tmp_path, ansible_environment, one, many),
            playbook(tmp_path, ansible_environment, one, many),
            playbook(tmp_path, ansible_environment, task(name="node-number-1", seed={"user_data": {"password": SECRET + "2", "short": "s3cr3t"}})),
            playbook(tmp_path, ansible_environment, task(name="seven-7", size="1M")),
            playbook(tmp_path, ansible_environment, task(name="x", seed={"user_data": {"short": "s3cr3t", "x": SECRET}, "meta_data": [1]})),
        ]
    finally:
        stop.set()
        watcher.join()
    assert [run.returncode for run in runs] == [0, 0, 0, 0, 2, 2], [run.stdout for run in runs]
    assert [re.findall(r"changed=(\d+)", run.stdout) for run in runs[:4]] == [["1"], ["2"], ["0"], ["1"]]
    assert all("invalid_parameter" in run.stdout for run in runs[4:])
    for run in runs:
        assert SECRET not in run.stdout + run.stderr and "s3cr3t" not in run.stdout + run.stderr
    assert f'"path": "{store.path}/node-number-1"' in runs[1].stdout and '"name": "seven-7"' in runs[1].stdout, "names are no secrets, nor is each 7"
    assert not met and SECRET.encode() not in everything(store) + log.read_bytes() and left(store) == []
    held = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(store.path) and path.name != "book.json"]
    assert not [path for path in held if SECRET.encode() in path.read_bytes()]


def test_options_are_documented_as_secret() -> None:
    options = remotefs_volume._VOLUME["source"]["options"]["seed"]["options"]  # type: ignore[index]
    assert {name: bool(option.get("no_log")) for name, option in options.items()} == {
        "user_data": True, "meta_data": False, "network_config": False, "vendor_data": True,
    }  # fmt: skip


def test_a_share_without_lasting_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some FUSE file systems. What is interrupted is ended: the next task compares the content anyway."""
    (tmp_path / "share").mkdir()
    store = Store(tmp_path / "share", keeps_inodes=False)
    assert store.candidates == Candidates((Share(str(store.path), str(store.path), "directory", keeps_inodes=False),))
    made(store, user_data=USER)
    with killed_in(executor.Executor, "_write_final_record", monkeypatch):
        made(store, user_data="b")
    assert [one["outcome"] for one in made(store, user_data="c").recovered] == ["finished"]
    assert files(store)["user-data"] == b"c" and store.info("seed")["pending"] is None


def test_it_can_be_copied_like_any_volume(store: Store) -> None:
    made(store, user_data=USER)
    store.present("copy", updating.SourceRequest("seed"))
    assert files(store, "copy") == files(store)


def test_a_first_run_is_foretold(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """The share is not there yet: an earlier task makes it."""
    share = tmp_path / "later"
    seed = {"share": str(share), "volumes": [{"name": name, "source": {"seed": {"user_data": USER}}} for name in ("a", "b")]}
    tasks = [{"remotefs.storage.remotefs_share": {"src": str(share)}}, {"remotefs.storage.remotefs_volume": seed}]
    foretold = playbook(tmp_path, ansible_environment, *tasks, check=True)
    assert foretold.returncode == 0 and not share.exists() and '"step": "write_seed"' in foretold.stdout, foretold.stdout
    done = playbook(tmp_path, ansible_environment, *tasks)
    sizes = [re.findall(r'"size": (\d+)', run.stdout) for run in (foretold, done)]
    assert done.returncode == 0 and sizes[0] and set(sizes[0]) == set(sizes[1]) and sorted(path.name for path in share.iterdir()) == [".remotefs", "a", "b"]
