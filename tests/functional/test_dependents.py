# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever rests on a volume keeps what it shows: before anything is merged, removed or reverted, every file of the share is asked."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
from hostile import images, resting

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import folders, names
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import dependents, resolving

from .test_clones import content
from .test_refusals import MIB, Store, refused


@pytest.fixture
def golden(layered: Store) -> Store:
    return layered


def overlay(store: Store, file: str | bytes, name: str, image_format: str = "qcow2") -> None:
    """An overlay made by hand, whether QEMU finds what it names or not."""
    path = os.path.join(os.fsencode(store.path), os.fsencode(file))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", image_format, path, str(MIB)], check=True)


def shown(store: Store, path: str | bytes) -> bytes:
    """What QEMU shows of an image in the first 64 KiB, opened by its path."""
    target = store.path.parent / "shown.raw"
    where = os.path.join(os.fsencode(store.path), os.fsencode(path))
    subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", where, target], check=True, cwd=store.path)
    return target.read_bytes()[:65536]


def everything_is_refused(store: Store, told: str = "") -> None:
    """Nothing that destroys what ``vol.s1`` shows is done, alone or in bulk, in check mode or in earnest."""
    for action in (
        lambda check: store.delete("s2", check=check),
        lambda check: store.delete("s1", "s2", check=check),
        lambda check: store.absent(cascade=True, check=check),
        lambda check: store.revert("s1", True, check=check),
        lambda check: _one_of(_in_bulk(store, check)),
    ):
        found = refused(store, errors.HasDependents, action)
        assert told in str(found) and "not_dependent" in str(found)
    assert content(store, "vol")[:65536] == bytes([3]) * 65536


def _in_bulk(store: Store, check: bool) -> list:
    def item(name: str) -> runner.Item:
        return runner.Item(
            name,
            frozenset([name]),
            lambda options: volumes.ensure_absent(store.candidates, name, True, options),
            runner.Deletion(store.candidates, name),
        )

    return runner.run_all([item("vol"), item("not-there")], 1 if check else 2, store.options(check=check))


def _one_of(results: list) -> None:
    assert not isinstance(results[1], Exception)
    raise results[0]


NAMES = ["a b.qcow2", "wéb", "web1+a", "web1(1).qcow2", "_web", ".web", b"\xff\xfe"]
NAMES += ["a\nb", "vol.info.info", "x.info", "-U", "a:b", "vol~0123456789ab", "x" * 255]


@pytest.mark.parametrize("file", NAMES, ids=repr)
def test_whatever_it_is_called(golden: Store, file: str | bytes) -> None:
    overlay(golden, file, "vol.s1")
    before = shown(golden, file)
    assert before == bytes([2]) * 65536
    told = names.shown(os.fsdecode(file))
    assert told.isprintable()
    everything_is_refused(golden, told)
    assert shown(golden, file) == before
    assert {"volume": told, "snapshot": "s2"} in golden.info()["dependents"]
    json.dumps(golden.info()).encode("ascii")


SPELLINGS = [
    "vol.s1",
    "./vol.s1",
    ".//vol.s1",
    "../share/vol.s1",
    "..//share/./vol.s1",
    "{share}/vol.s1",
    "{share}//vol.s1",
    "{share}/../share/vol.s1",
    "{link}/vol.s1",
    "file:{share}/vol.s1",
    "file:///{share}/vol.s1",
    'json:{{"driver": "qcow2", "file": {{"driver": "file", "filename": "{share}/vol.s1"}}}}',
    'json:{{"file": {{"filename": "{share}/v\\u006fl.s1", "driver": "file"}}, "driver": "qcow2"}}',
    "json:{{'driver':'qcow2','file.filename':'{share}/vol.s1'}}",
    'json:{{"backing": {{"driver": "null-co"}}, "driver": "qcow2", "file": {{"driver": "file", "filename": "{link}/vol.s1"}}}}',
    'json:{{"driver": "nfs", "path": "/export/vol.s1", "server": {{"type": "inet", "host": "nas1"}}}}',
    'json:{{"driver": "https", "url": "https://nas1/vols/vol.s1"}}',
    "nfs://nas1/vols/vol.s1?uid=0",
    "gluster+tcp://gl1/vols/vol.s1?debug=1",
    "ssh://root@nas1/vols/vol.s1?host_key_check=no",
    "smb://nas1/vols/vol.s1",
    "blkdebug::{share}/vol.s1",
    "blkverify:{share}/x:vol.s1",
    "nbd:unix:/run/nbd.sock:exportname=vol.s1",
    "/mnt/where/another/host/has/it/vol.s1",
    "alias",
    "hard",
    "{outside}/symbolic",
    "{outside}/hard",
    "folder/vol.s1",
]


@pytest.mark.parametrize("spelt", SPELLINGS)
def test_however_it_is_spelt(golden: Store, spelt: str) -> None:
    outside = golden.path.parent / "outside"
    outside.mkdir()
    (golden.path.parent / "link").symlink_to(golden.path)
    where = {"share": golden.path, "link": golden.path.parent / "link", "outside": outside}
    if spelt == "alias":
        (golden.path / "alias").symlink_to("vol.s1")
    if spelt == "folder/vol.s1":
        (golden.path / "folder").symlink_to(".")
    (outside / "symbolic").symlink_to(golden.path / "vol.s1")
    if spelt.endswith("hard"):
        os.link(golden.path / "vol.s1", outside / "hard" if "outside" in spelt else golden.path / "hard")
    overlay(golden, "other", spelt.format(**where))
    everything_is_refused(golden, "other")
    assert {"volume": "other", "snapshot": "s2"} in golden.info()["dependents"]


FORMATS: dict[str, Callable[[], bytes]] = {
    "qcow": lambda: images.qcow1("vol.s1"),
    "QED": lambda: images.qed("vol.s1"),
    "VMDK descriptor": lambda: b"# Disk DescriptorFile\nversion=1\nparentFileNameHint=\"vol.s1\"\n",
    "VMDK descriptor that starts otherwise": lambda: b"version=3\ncreateType=\"x\"\r\nparentfilenamehint = \"vol.s1\"\r\n",
    "VMDK extent": lambda: images.vmdk_descriptor("monolithicFlat", 'RW 8192 FLAT "vol.s1" 0'),
    "VMDK sparse": lambda: images.vmdk_sparse(b'version=1\nparentFileNameHint="/else/where/vol.s1"\n'),
    "COWD": lambda: b"COWD" + bytes(28) + b"vol.s1".ljust(1024, b"\0"),
    "VHD": lambda: resting.vhd("vol.s1"),
    "VHDX": lambda: resting.vhdx("..\\vols\\vol.s1", "C:\\vols\\vol.s1"),
    "user-mode Linux": lambda: struct.pack(">4sI", b"OOOM", 2) + b"/vols/vol.s1".ljust(1024, b"\0"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_its_format(golden: Store, kind: str) -> None:
    (golden.path / "other").write_bytes(FORMATS[kind]())
    everything_is_refused(golden, "other")


@pytest.mark.parametrize("incompatible", [0, 4])
@pytest.mark.parametrize("version", [2, 3])
def test_its_data_file(golden: Store, incompatible: int, version: int) -> None:
    extensions = ((images.DATA_FILE, b"vol.s1"),)
    if version == 2:
        (golden.path / "sketch").write_bytes(b"")
        images.qcow2(golden.path / "other", None, version=2)
        data = bytearray((golden.path / "other").read_bytes())
        data[72:86] = struct.pack(">II", images.DATA_FILE, 6) + b"vol.s1"
        (golden.path / "other").write_bytes(data)
    else:
        images.qcow2(golden.path / "other", ("elsewhere", "raw"), extensions=extensions, incompatible=incompatible)
    everything_is_refused(golden, "other")


def test_in_folders(golden: Store) -> None:
    overlay(golden, "sub/deep/other", "../../vol.s1")
    overlay(golden, "sub/by-path", f"{golden.path}/vol.s1")
    everything_is_refused(golden, "sub/deep/other")
    assert golden.info()["dependents"] == [], "info looks at the share's directory"
    assert shown(golden, "sub/deep/other") == bytes([2]) * 65536


def test_names_in_folders_count_from_there(golden: Store) -> None:
    overlay(golden, "sub/vol.s1", "elsewhere")
    overlay(golden, "sub/other", "vol.s1")
    overlay(golden, "backup/vol.s2", "vol.s1")
    overlay(golden, ".snapshot/hourly.0/vol.s2", "../../vol.s1")
    for folder in sorted(folders.SNAPSHOT_FOLDERS):
        overlay(golden, f"deep/{folder}/other", f"{golden.path}/vol.s1")
    warned: list = []
    done = volumes.ensure_absent(golden.candidates, "vol", True, golden.options(warn=warned.append))
    assert done.changed and not warned


@pytest.mark.root
def test_other_file_systems_are_passed_over(golden: Store) -> None:
    (golden.path / "mount").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", golden.path / "mount"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        overlay(golden, "mount/other", f"{golden.path}/vol.s1")
        assert golden.delete("s2").changed
    finally:
        subprocess.run(["umount", golden.path / "mount"], check=True)


@pytest.mark.parametrize(("limit", "value"), [("MOST_ENTRIES", 1), ("MOST_SECONDS", -1.0)])
def test_what_is_not_reached_is_a_warning(golden: Store, monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    overlay(golden, "first/nothing", "elsewhere")
    overlay(golden, "second/nothing", "elsewhere")
    monkeypatch.setattr(folders, limit, value)
    warned: list = []
    assert snapshots.delete(golden.candidates, "vol", ["s2"], golden.options(warn=warned.append)).changed
    assert len(warned) == 1 and "second" in warned[0]


def test_behind_symbolic_links(golden: Store) -> None:
    """An overlay that lies elsewhere and is opened through the share finds what it names on the share."""
    elsewhere = golden.path.parent / "elsewhere"
    elsewhere.mkdir()
    overlay(golden, "../elsewhere/overlay", "vol.s1")
    (golden.path / "other").symlink_to("../elsewhere/overlay")
    assert shown(golden, "other") == bytes([2]) * 65536
    everything_is_refused(golden, "other")
    assert shown(golden, "other") == bytes([2]) * 65536


@pytest.mark.parametrize("deep", ["", "deeper/still/"])
@pytest.mark.parametrize("spelt", ["{share}/vol.s1", "../share/vol.s1"])
def test_behind_links_to_folders(golden: Store, spelt: str, deep: str) -> None:
    """A folder elsewhere that the share shows: overlays in it find what they name from where they are."""
    elsewhere = golden.path.parent / "elsewhere"
    (elsewhere / deep).mkdir(parents=True)
    up = "../" * deep.count("/") if spelt.startswith("..") else ""
    overlay(golden, f"../elsewhere/{deep}overlay", up + spelt.format(share=golden.path))
    (elsewhere / "notes.txt").write_text("vol.s1 is the base of nothing here")
    (golden.path / "vms").symlink_to("../elsewhere")
    everything_is_refused(golden, "vms")
    shutil.rmtree(elsewhere)
    assert golden.delete("s2").changed


def test_links_to_folders_that_have_the_share_in_them(golden: Store) -> None:
    """The share itself is no stranger, however it is reached, and neither is a server's past."""
    past = golden.path.parent / ".snapshot" / "daily"
    shutil.copytree(golden.path, past)
    for name, target in (("up", ".."), ("self", "."), ("again", str(golden.path)), ("past", "../.snapshot/daily")):
        (golden.path / name).symlink_to(target)
    assert golden.delete("s2").changed and golden.absent(cascade=True).changed


def test_a_folder_behind_a_link_that_has_too_much_in_it(golden: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = golden.path.parent / "elsewhere"
    elsewhere.mkdir()
    for number in range(20):
        (elsewhere / f"f{number}").write_bytes(b"x")
    (golden.path / "vms").symlink_to(elsewhere)
    monkeypatch.setattr(resolving, "_MOST_BEHIND", 10)
    told: list[str] = []
    volumes.ensure_absent(golden.candidates, "vol", True, golden.options(warn=told.append))
    assert "the link vms leads to a folder with more files than are looked at" in " ".join(told)


@pytest.mark.parametrize(
    "spelt", ["fat:{share}", "fat:rw:{share}", 'json:{{"driver":"vvfat","dir":"{share}"}}', 'json:{{"file.driver":"vvfat","file.dir":"{share}"}}']
)
def test_a_folder_shown_as_a_disk(golden: Store, spelt: str) -> None:
    """QEMU's driver vvfat shows every file of a folder."""
    overlay(golden, "other", spelt.format(share=golden.path), "raw")
    everything_is_refused(golden, "other")


@pytest.mark.parametrize("target", ["vol.s1", "./vol.s1", "../share/vol.s1", "{share}/vol.s1", "first"])
def test_a_link_to_the_image_itself(golden: Store, target: str) -> None:
    """Somebody's overlay elsewhere may go through it."""
    (golden.path / "first").symlink_to("vol.s1")
    (golden.path / "other").symlink_to(target.format(share=golden.path))
    everything_is_refused(golden, "other")


def test_links_that_lead_nowhere_or_to_something_else(golden: Store) -> None:
    for name, target in (("loop", "loop"), ("gone", "not-there"), ("passwd", "/etc/passwd"), ("proc", "/proc/self/mem"), ("null", "/dev/null"), ("up", "..")):
        (golden.path / name).symlink_to(target)
    os.mkfifo(golden.path / "fifo")
    (golden.path / "to-fifo").symlink_to("fifo")
    assert golden.delete("s2").changed and golden.absent(cascade=True).changed


def test_letter_case(golden: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay(golden, "other", "VOL.S1")
    with monkeypatch.context() as patched:
        patched.setattr(resolving.Resolver, "_ignores_case", lambda _self: True)
        everything_is_refused(golden, "other")
        overlay(golden, "other", "smb://nas1/vols/Vol.S1")
        everything_is_refused(golden, "other")
    assert golden.delete("s2").changed


def test_another_file_of_that_name_is_another_file(golden: Store) -> None:
    """What a path leads to on this host is certain."""
    elsewhere = golden.path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vol.s1").write_bytes(b"something else")
    overlay(golden, "other", str(elsewhere / "vol.s1"))
    overlay(golden, "relative", "../elsewhere/vol.s1")
    assert golden.delete("s2").changed and golden.absent(cascade=True).changed


def test_paths_to_other_file_systems_are_not_followed(golden: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows who answers there: a file of that name counts, and nothing is asked."""
    elsewhere = golden.path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vol.s1").write_bytes(b"something else")
    overlay(golden, "other", str(elsewhere / "vol.s1"))
    monkeypatch.setattr(resolving, "_mounts", lambda _device: {str(elsewhere): False, "/": True})
    everything_is_refused(golden, "other")


# -- what a guest writes --------------------------------------------------------------------------------------------------


def forge(store: Store, name: str) -> None:
    """The guest of a raw volume writes a header into its disk that names a file of another volume."""
    images.qcow2(store.path.parent / "forged", ("vol.s1", "qcow2"))
    with open(store.path / name, "r+b") as stream:
        stream.write((store.path.parent / "forged").read_bytes()[:65536])


@pytest.mark.parametrize("how", ["created", "cloned", "adopted", "grown"])
def test_a_guests_bytes_block_nothing(golden: Store, how: str) -> None:
    if how == "cloned":
        golden.present("guest", updating.SourceRequest("vol", "s1"), format="raw")
    elif how == "adopted":
        (golden.path / "guest").write_bytes(bytes(MIB))
        golden.present("guest", format="raw")
    else:
        golden.present("guest", size=MIB)
    forge(golden, "guest")
    if how == "grown":
        golden.present("guest", size=2 * MIB)
        golden.snapshot("s1", "guest")
    assert golden.info()["dependents"] == []
    assert golden.delete("s2").changed and golden.absent(cascade=True).changed
    assert (golden.path / "guest").read_bytes()[:4] == b"QFI\xfb"


def test_a_record_that_outlived_its_file_hides_nothing(golden: Store) -> None:
    golden.present("other", size=MIB)
    (golden.path / "other").unlink()
    overlay(golden, "other", "vol.s1")
    everything_is_refused(golden, "other")
    assert golden.info()["dependents"] == [{"volume": "other", "snapshot": "s2"}]


def test_an_overlay_that_was_called_raw_hides_nothing(golden: Store) -> None:
    """A user's word makes it a raw disk, and it still rests on what it names: better ask once more."""
    overlay(golden, "other", "vol.s1")
    golden.present("other", format="raw")
    everything_is_refused(golden, "other")


def test_records_of_older_releases(golden: Store) -> None:
    """They do not say which file the raw disk was. It counts while it names nothing, and is known from the next record on."""
    golden.present("guest", size=MIB)
    record = golden.path / ".remotefs" / "volumes" / "guest.json"
    told = json.loads(record.read_text())
    del told["disks"]
    record.write_text(json.dumps(told))
    golden.snapshot("s1", "guest")
    assert json.loads(record.read_text())["disks"] == {"guest": [(golden.path / "guest").stat().st_ino, MIB]}
    forge(golden, "guest")
    assert golden.delete("s2").changed


def test_where_inodes_are_not_kept_the_length_is_the_proof(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    store = Store(tmp_path / "share", keeps_inodes=False)
    store.present(size=MIB)
    store.present("guest", size=MIB)
    store.snapshot("s1")
    images.qcow2(store.path.parent / "forged", ("vol", "raw"))
    with open(store.path / "guest", "r+b") as stream:
        stream.write((store.path.parent / "forged").read_bytes()[:65536])
    assert store.delete("s1").changed
    store.snapshot("s1")
    (store.path / "guest").unlink()
    overlay(store, "guest", "vol", "raw")
    refused(store, errors.HasDependents, lambda check: store.delete("s1", check=check))


# -- files that cannot be read, and the user's word -------------------------------------------------------------------------


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened = dependents.os.open

    def refusing(path: object, *args: object, **named: object) -> int:
        if path == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **named)

    monkeypatch.setattr(dependents.os, "open", refusing)


def test_a_file_that_may_not_be_read_may_rest_on_anything(golden: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (golden.path / "secret").write_bytes(b"x" * 512)
    with monkeypatch.context() as patched:
        unreadable(patched, "secret")
        everything_is_refused(golden, "secret (which this user may not read")
        options = golden.options(not_dependent=("secret",))
        assert snapshots.delete(golden.candidates, "vol", ["s2"], options).not_counted == ("secret",)
        assert not golden.delete("never-there").changed, "what destroys nothing asks nobody"


def test_in_folders_it_is_a_warning(golden: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (golden.path / "sub").mkdir()
    (golden.path / "sub" / "secret").write_bytes(b"x" * 512)
    warned: list = []
    with monkeypatch.context() as patched:
        unreadable(patched, "secret")
        assert snapshots.delete(golden.candidates, "vol", ["s2"], golden.options(warn=warned.append)).changed
    assert len(warned) == 1 and "sub/secret" in warned[0]


@pytest.mark.parametrize(("file", "said"), [("a b", "a b"), (b"\xff", "\\xff"), ("a\nb", "a\\nb"), ("sub/other", "sub/other"), ("env", "env")])
def test_the_users_word(golden: Store, file: str | bytes, said: str) -> None:
    overlay(golden, file, f"{golden.path}/vol.s1")
    everything_is_refused(golden, said)
    for check in (True, False):
        warned: list = []
        options = golden.options(check=check, not_dependent=(said, "nobody"), warn=warned.append)
        done = snapshots.delete(golden.candidates, "vol", ["s2"], options)
        assert done.changed and done.not_counted == (said,)
        assert [text for text in warned if said in text and "not_dependent" in text]
    again = snapshots.delete(golden.candidates, "vol", ["s2"], golden.options(not_dependent=(said,)))
    assert not again.changed and not again.not_counted
    refused(golden, errors.HasSnapshots, lambda check: golden.absent(check=check))


def test_the_users_word_counts_for_its_own_item_only(golden: Store) -> None:
    golden.present("second", size=MIB)
    overlay(golden, "other", "vol.s1")
    overlay(golden, "another", "second", "raw")

    def item(name: str, word: tuple) -> runner.Item:
        return runner.Item(
            name,
            frozenset([name]),
            lambda options: volumes.ensure_absent(golden.candidates, name, True, replace(options, not_dependent=word)),
            runner.Deletion(golden.candidates, name),
        )

    results = runner.run_all([item("vol", ("other",)), item("second", ("other",))], 2, golden.options())
    assert results[0].not_counted == ("other",)
    assert isinstance(results[1], errors.HasDependents) and "another" in str(results[1])


def test_what_a_bulk_task_makes_and_removes_is_followed(golden: Store) -> None:
    """The headers are read once for a batch; what the batch itself changes is looked at again."""
    golden.present("env", updating.SourceRequest("vol", "s2", linked=True))

    def item(name: str) -> runner.Item:
        return runner.Item(
            name,
            frozenset([name]),
            lambda options: volumes.ensure_absent(golden.candidates, name, True, options),
            runner.Deletion(golden.candidates, name),
        )

    results = runner.run_all([item("env"), item("vol")], 2, golden.options())
    assert not [one for one in results if isinstance(one, Exception)] and os.listdir(golden.path) == [".remotefs"]


def test_it_costs_a_look_at_each_file(golden: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain names are resolved without a system call, and paths with few."""
    for number in range(50):
        overlay(golden, f"other {number}", "elsewhere" if number else "vol.s1")
    counted: list = []
    for name in ("stat", "lstat", "scandir", "listdir", "readlink"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, _call=call, **named: (counted.append(given[:1]), _call(*given, **named))[1])
    with ShareDirectory(golden.share) as directory:
        found = folders.scan_all(directory)
    assert found.above("vol.s1") == ["other 0", "vol.s2"]
    assert len(counted) < 20 + 50 * 8, "what is not there is looked for once"
