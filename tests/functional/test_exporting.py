# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points of volumes as images: every point of random lives, in every format, by content; and whatever a destination may be."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import viewing
from ansible_collections.remotefs.storage.plugins.module_utils.images.leaving import Access, Destination
from ansible_collections.remotefs.storage.plugins.module_utils.operations import exporting, updating
from ansible_collections.remotefs.storage.plugins.module_utils.operations.exporting import Exported, ExportRequest, ToFile
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import chains

from .test_clones import opened
from .test_importing import content
from .test_refusals import MIB, Store

FORMATS = [("raw", False), ("qcow2", False), ("qcow2", True), ("vmdk", False), ("vmdk", True), ("vdi", False), ("vhdx", False), ("vpc", False)]


class Life:
    """A volume that is written to, grown, and of which snapshots are taken, beside a model of each of its points."""

    def __init__(self, store: Store, seed: int, name: str = "vol", **desired: Any) -> None:
        self.store, self.name, self._chance = store, name, random.Random(seed)
        self.points: dict[str | None, bytes] = {}
        self.shown = bytearray(2 * MIB + 512 * self._chance.randrange(5))
        store.present(name, size=len(self.shown), **desired)

    def write(self, count: int = 4) -> None:
        told = self.store.info(self.name)
        words: list[str] = []
        for _number in range(count):
            start = self._chance.randrange(len(self.shown) // 512) * 512
            length = min(self._chance.choice([512, 4096, 65536, 150 * 512]), len(self.shown) - start)
            value = self._chance.randrange(1, 255)
            kind = self._chance.choice(["pattern", "pattern", "pattern", "zeros", "discard"])
            command = {"pattern": f"write -q -P {value}", "zeros": "write -q -z", "discard": "write -q -z -u"}[kind]
            words += ["-c", f"{command} {start} {length}"]
            self.shown[start : start + length] = bytes([value if kind == "pattern" else 0]) * length
        subprocess.run(["qemu-io", "-f", told["format"], *words, told["path"]], check=True)
        self.points[None] = bytes(self.shown)

    def snapshot(self, name: str) -> None:
        self.store.snapshot(name, self.name)
        self.points[name] = bytes(self.shown)

    def grow(self) -> None:
        self.shown += bytes(self._chance.choice([512, 65536, MIB + 512]))
        self.store.present(self.name, size=len(self.shown))
        self.points[None] = bytes(self.shown)


def lived(store: Store, seed: int, **desired: Any) -> Life:
    life = Life(store, seed, **desired)
    life.write()
    for number in range(3):
        life.snapshot(f"s{number}")
        if number == 1:
            life.grow()
        life.write()
    return life


def export(store: Store, dest: Path | str, snapshot: str | None = None, volume: str = "vol", **more: Any) -> Exported:
    options = store.options(**{key: more.pop(key) for key in ("check", "attachment", "warn", "timeout") if key in more})
    target = ToFile(str(dest), more.pop("access", Access()), more.pop("keeps_old", False))
    return exporting.export(ExportRequest(store.candidates, volume, snapshot, target, **more), options)


def require_shows(path: Path, image_format: str, expected: bytes) -> None:
    assert content(str(path), image_format) == expected
    if image_format not in ("raw", "vpc", "vhdx"):
        checked = subprocess.run(["qemu-img", "check", "-q", "-f", image_format, str(path)], capture_output=True, check=False)
        assert checked.returncode in (0, 63), checked  # 63: this format has no check


@pytest.mark.parametrize("base", ["raw", "qcow2"])
@pytest.mark.parametrize("image_format, compressed", FORMATS)
def test_every_point_in_every_format(store: Store, out: Path, base: str, image_format: str, compressed: bool) -> None:
    """The second time is no change, the volume is as before, and both checksums are what others compute."""
    life = lived(store, FORMATS.index((image_format, compressed)) * 2 + (base == "raw"), format=base)
    before = store.state()
    for number, (point, expected) in enumerate(life.points.items()):
        dest = out / f"{number}.{image_format}"
        first = export(store, dest, point, format=image_format, compressed=compressed)
        require_shows(dest, image_format, expected)
        assert first.changed and first.sums is not None and first.size == len(expected) and first.length == dest.stat().st_size
        assert first.sums.content == hashlib.sha256(expected).hexdigest()
        assert first.sums.file == hashlib.sha256(dest.read_bytes()).hexdigest()
        assert [one["step"] for one in first.actions] == ["export"] and stat.S_IMODE(dest.stat().st_mode) == 0o600
        for check in (True, False):
            again = export(store, dest, point, format=image_format, compressed=compressed, check=check)
            assert not again.changed and again.sums == first.sums and again.length == first.length and not again.actions
    assert store.state() == before and sorted(os.listdir(out)) == [f"{number}.{image_format}" for number in range(len(life.points))]


@pytest.mark.parametrize("is_served", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_views(store: Store, seed: int, is_served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bytes anywhere; and what is told to have no data is zeros. A chain of which only parts have clusters, over several tables."""
    life, chance = lived(store, 20 + seed, format=("raw", "qcow2")[seed % 2]), random.Random(seed)
    store.present(size=1100 * MIB)
    shown = bytearray(life.points[None]).ljust(1100 * MIB, b"\0")
    for start in (600 * MIB + 512, 512 * MIB - 35 * 1024):  # the second lies in two tables
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 {start} 70k", store.info()["path"]], check=True)
        shown[start : start + 70 * 1024] = bytes([7]) * (70 * 1024)
    if is_served:
        monkeypatch.setattr(viewing, "_plain", lambda *_args: None)
    ends = [0, 512, len(life.points[None]), 512 * MIB, 600 * MIB, 600 * MIB + 512, 600 * MIB + 512 + 70 * 1024, 1024 * MIB, len(shown)]
    with ShareDirectory(store.share) as directory:
        observed = chains.observe(directory, "vol")
        assert observed is not None
        with viewing.opened(directory, observed.volume.chain) as view:
            assert view.size == len(shown)
            for _number in range(150):
                start = min(max(0, chance.choice(ends) + chance.randrange(-70000, 70000)), len(shown))
                length = min(chance.choice([1, 511, 4096, 65536, 200000]), len(shown) - start)
                assert view.read(start, length) == shown[start : start + length], (start, length)
                position = start
                for begin, end in [*view.data(start, start + length), (start + length, start + length)]:
                    assert position <= begin <= end <= start + length and not any(shown[position:begin]), (start, length)
                    position = end
            held = sum(end - begin for begin, end in view.data(0, len(shown)))
            assert held < 8 * MIB


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vdi"])
def test_a_file_that_shows_something_else_is_replaced(store: Store, out: Path, image_format: str) -> None:
    """Whatever differs: one byte at the end, the size, the format; a file that is cut short, or that rests on another one."""
    life = lived(store, 1)
    wanted, dest = life.points["s1"], out / "disk"

    def one_byte() -> None:
        data = bytearray(wanted)
        data[-1] ^= 1
        (out / "raw").write_bytes(data)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, str(out / "raw"), str(dest)], check=True)

    def larger() -> None:
        (out / "raw").write_bytes(wanted + bytes(512))
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, str(out / "raw"), str(dest)], check=True)

    def another_format() -> None:
        (out / "raw").write_bytes(wanted)
        other = "vhdx" if image_format != "vhdx" else "raw"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", other, str(out / "raw"), str(dest)], check=True)

    def cut() -> None:
        export(store, dest, "s1", format=image_format)
        os.truncate(dest, dest.stat().st_size // 2)

    def overlay() -> None:
        (out / "raw").write_bytes(wanted)
        dest.unlink()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(out / "raw"), str(dest)], check=True)

    def garbage() -> None:
        dest.write_bytes(random.Random(1).randbytes(70000))

    for spoil in (one_byte, larger, another_format, cut, overlay, garbage, lambda: dest.write_bytes(b"")):
        spoil()
        before = hashlib.sha256(dest.read_bytes()).digest()
        assert export(store, dest, "s1", format=image_format, check=True).changed
        assert hashlib.sha256(dest.read_bytes()).digest() == before
        done = export(store, dest, "s1", format=image_format)
        assert done.changed
        require_shows(dest, image_format, wanted)


def test_zeros_that_are_written_and_holes_are_the_same(store: Store, out: Path) -> None:
    life = lived(store, 2)
    (out / "disk").write_bytes(life.points["s0"])
    assert not export(store, out / "disk", "s0").changed


@pytest.mark.parametrize("kind", ["compressed", "clusters", "subclusters", "bitmap"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vdi"])
def test_images_that_are_not_plain(store: Store, out: Path, kind: str, image_format: str) -> None:
    """QEMU reads them for this task."""
    life = Life(store, 4, format="qcow2")
    life.write(12)
    base = store.path / "vol"
    made = out / "made"
    if kind == "bitmap":
        subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", str(base), "b"], check=True)
    else:
        options = {"compressed": ["-c"], "clusters": ["-o", "cluster_size=4k"], "subclusters": ["-o", "extended_l2=on,cluster_size=128k"]}[kind]
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", *options, str(base), str(made)], check=True)
        os.replace(made, base)
    life.snapshot("s1")
    life.write()
    for point, expected in life.points.items():
        dest = out / f"{point}"
        done = export(store, dest, point, format=image_format)
        require_shows(dest, image_format, expected)
        assert done.sums is not None and done.sums.content == hashlib.sha256(expected).hexdigest()
        assert not export(store, dest, point, format=image_format).changed


@pytest.mark.parametrize("linked", [True, False])
def test_points_of_clones(store: Store, out: Path, linked: bool) -> None:
    life = lived(store, 5)
    store.present("clone", updating.SourceRequest("vol", "s1", linked))
    done = export(store, out / "disk", volume="clone", format="qcow2")
    require_shows(out / "disk", "qcow2", life.points["s1"])
    assert done.changed


def test_holes_are_kept_and_large_disks_take_little(store: Store, out: Path) -> None:
    store.present(size=3 << 40)
    subprocess.run(["qemu-io", "-f", "raw", "-c", f"write -q -P 5 {2 << 40} 64k", str(store.path / "vol")], check=True)
    for image_format, most in (("qcow2", 4 * MIB), ("vdi", 16 * MIB)):
        done = export(store, out / image_format, format=image_format)
        assert done.sums is not None and done.sums.content is None and done.size == 3 << 40
        assert (out / image_format).stat().st_blocks * 512 < most


def test_the_present_that_somebody_writes_is_refused(store: Store, out: Path) -> None:
    """A snapshot of it can be read meanwhile. Somebody who only reads is no reason."""
    life = lived(store, 6)
    with opened(store, "vol"):
        for check in (True, False):
            with pytest.raises(errors.InUse):
                export(store, out / "disk", check=check)
        assert os.listdir(out) == []
        export(store, out / "snapshot", "s2")
    require_shows(out / "snapshot", "raw", life.points["s2"])
    reader = ["qemu-io", "-r", "-f", "qcow2", str(store.path / "vol.s2")]
    with subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdin is not None and user.stdout is not None
        user.stdin.write("read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        export(store, out / "disk")
        user.communicate("quit\n")
    require_shows(out / "disk", "raw", life.points[None])


def test_nobody_can_begin_to_write_while_it_is_read(store: Store, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life, tried = lived(store, 7, format="qcow2"), []
    read = viewing.LayersView.read

    def reading(view: viewing.LayersView, start: int, length: int) -> bytes:
        command = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(store.path / "vol.s2")]
        tried.append(subprocess.run(command, capture_output=True, text=True, check=False).stderr if not tried else "")
        return read(view, start, length)

    monkeypatch.setattr(viewing.LayersView, "read", reading)
    export(store, out / "disk")
    assert "lock" in tried[0]
    require_shows(out / "disk", "raw", life.points[None])


def test_points_that_are_not_there(store: Store, out: Path) -> None:
    lived(store, 8)
    for check in (True, False):
        with pytest.raises(errors.VolumeNotFound):
            export(store, out / "disk", volume="nothing", check=check)
        with pytest.raises(errors.SnapshotNotFound):
            export(store, out / "disk", "nothing", check=check)
    assert os.listdir(out) == []


# -- destinations ----------------------------------------------------------------------------------------------------------


def test_what_a_destination_cannot_be(store: Store, out: Path) -> None:
    lived(store, 9)
    (out / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(out / "pipe")
    before = store.state()
    for dest, error in (
        (out, errors.InvalidParameter),
        (out / "pipe", errors.InvalidParameter),
        (out / "nowhere" / "disk", errors.InvalidParameter),
        (f"{out}/new/", errors.InvalidParameter),
        (Path("/dev/null"), errors.InvalidParameter),
        (store.path / "disk", errors.Conflict),
        (store.path / "vol", errors.Conflict),
        (store.path / "vol.info", errors.Conflict),
        (store.path / ".remotefs" / "disk", errors.Conflict),
        (store.path / ".remotefs" / "locks" / "disk", errors.Conflict),
    ):
        with pytest.raises(error) as caught:
            export(store, dest, "s1")
        assert str(caught.value).endswith("."), dest
    (out / "volume-1.info").write_text("{}")  # of Cinder, on a share that this collection does not know
    for name in ("volume-1", "volume-1.snap", "volume-1.info"):
        with pytest.raises(errors.Conflict):
            export(store, out / name, "s1")
    assert export(store, out / "volume-10", "s1").changed
    for longest, keeps_old in ((255, False), (226, True)):
        export(store, out / ("x" * longest), "s1", keeps_old=keeps_old)
        with pytest.raises(errors.InvalidParameter, match="too long"):
            export(store, out / ("x" * (longest + 1)), "s1", keeps_old=keeps_old)
    assert export(store, out / ("x" * 226), "s0", keeps_old=True).kept
    os.symlink(store.path / "vol", out / "link")
    with pytest.raises(errors.Conflict):
        export(store, out / "link", "s1")
    (store.path / "below").mkdir()
    assert export(store, store.path / "below" / "disk", "s1").changed
    (store.path / "below" / "disk").unlink()
    (store.path / "below").rmdir()
    assert store.state() == before


def test_names_that_no_format_can_keep(store: Store, out: Path) -> None:
    life = lived(store, 18)
    for name in ("a\nb", "a'b\"c d", "ü"):
        export(store, out / name, "s1", format="vmdk")
        require_shows(out / name, "vmdk", life.points["s1"])


def test_a_disk_of_no_bytes(store: Store, out: Path) -> None:
    (store.path / "vol").touch()
    store.present(format="raw")
    assert export(store, out / "disk").length == 0
    for image_format in ("qcow2", "vmdk", "vdi", "vhdx", "vpc"):
        with pytest.raises(errors.InvalidParameter, match="no bytes"):
            export(store, out / "other", format=image_format)


def test_a_link_is_followed(store: Store, out: Path) -> None:
    life = lived(store, 10)
    os.symlink("disk", out / "link")
    export(store, out / "link", "s1")
    assert (out / "link").is_symlink()
    require_shows(out / "disk", "raw", life.points["s1"])


def test_mode_and_owner(store: Store, out: Path) -> None:
    """Those asked for, else those that the file has; that alone is a change of its own."""
    lived(store, 11)
    dest = out / "disk"
    export(store, dest, "s1", access=Access(mode=0o640))
    assert stat.S_IMODE(dest.stat().st_mode) == 0o640
    assert not export(store, dest, "s1").changed
    inode = dest.stat().st_ino
    for check in (True, False):
        done = export(store, dest, "s1", access=Access(mode=0o604), check=check)
        assert done.changed and [one["step"] for one in done.actions] == ["set_access"] and done.before == {**done.before, "mode": "0640"}
    assert stat.S_IMODE(dest.stat().st_mode) == 0o604 and dest.stat().st_ino == inode
    export(store, dest, "s0")
    assert stat.S_IMODE(dest.stat().st_mode) == 0o604 and dest.stat().st_ino != inode
    if os.geteuid() == 0:
        export(store, dest, "s1", access=Access(uid=12, gid=34))
        assert (dest.stat().st_uid, dest.stat().st_gid) == (12, 34)
        export(store, dest, "s0")
        assert (dest.stat().st_uid, dest.stat().st_gid) == (12, 34)


def test_a_backup_of_what_was_there(store: Store, out: Path) -> None:
    life = lived(store, 12)
    dest = out / "disk"
    assert export(store, dest, "s0", keeps_old=True).kept is None
    assert export(store, dest, "s0", keeps_old=True).kept is None
    kept = export(store, dest, "s1", keeps_old=True).kept
    assert kept is not None and Path(kept).read_bytes() == life.points["s0"] and kept.startswith(f"{dest}.")
    require_shows(dest, "raw", life.points["s1"])


@pytest.mark.parametrize("mode", [[], ["-r"]])
def test_a_file_that_a_machine_has_open_is_not_replaced(store: Store, out: Path, mode: list[str]) -> None:
    """Nor if it only reads it: an overlay may rest on it."""
    lived(store, 13)
    dest = out / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(dest), "1M"], check=True)
    with subprocess.Popen(["qemu-io", *mode, "-f", "raw", str(dest)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdin is not None and user.stdout is not None
        user.stdin.write("read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        for check in (True, False):
            with pytest.raises(errors.InUse, match="disk"):
                export(store, dest, "s1", check=check)
        user.communicate("quit\n")
    assert export(store, dest, "s1").changed


def planted(kind: str, path: Path) -> None:
    make: dict[str, Callable[[], object]] = {
        "link": lambda: os.symlink("/etc/passwd", path),
        "dangling": lambda: os.symlink("nowhere", path),
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }
    make[kind]()


@pytest.mark.parametrize("kind", ["link", "dangling", "directory", "pipe"])
def test_what_others_put_in_the_place_of_the_part(store: Store, out: Path, kind: str) -> None:
    lived(store, 14)
    part = out / ".disk.remotefs-part"
    planted(kind, part)
    before = Path("/etc/passwd").read_bytes()
    with pytest.raises(errors.Conflict, match="somebody else"):
        export(store, out / "disk", "s1")
    assert Path("/etc/passwd").read_bytes() == before and os.listdir(out) == [part.name]


def test_a_file_that_a_killed_task_left_is_not_written_to(store: Store, out: Path) -> None:
    """It may be somebody else's, who has it open: a new one takes its place. A second name of another file is nothing that a task leaves."""
    life = lived(store, 15)
    part = out / ".disk.remotefs-part"
    part.write_bytes(b"half")
    with part.open("rb") as left:
        export(store, out / "disk", "s1")
        assert left.read() == b"half" and os.listdir(out) == ["disk"]
    require_shows(out / "disk", "raw", life.points["s1"])
    (out / "other").write_bytes(b"keep")
    os.link(out / "other", part)
    with pytest.raises(errors.Conflict, match="somebody else"):
        export(store, out / "disk", "s2")
    assert (out / "other").read_bytes() == b"keep" and part.exists()


def test_two_tasks_with_one_file(store: Store, out: Path) -> None:
    lived(store, 16)
    with Destination(str(out / "disk")) as place, place.part(0, lambda _seconds: None):
        with pytest.raises(errors.LockTimeout, match="another task is writing"):
            export(store, out / "disk", "s1")
    assert os.listdir(out) == []
    assert export(store, out / "disk", "s1").changed


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
def test_a_full_disk_leaves_what_was_there(store: Store, tmp_path: Path, image_format: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: a file system of its own is mounted")
    lived(store, 17)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 2M", store.info()["path"]], check=True)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(small)], check=True)
    try:
        (small / "disk").write_bytes(b"before")
        with pytest.raises(errors.NoSpace, match="file .*disk: the (file system refused|disk that it is written to is full)"):
            export(store, small / "disk", format=image_format)
        assert (small / "disk").read_bytes() == b"before" and os.listdir(small) == ["disk"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
