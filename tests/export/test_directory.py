# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of an export: a plain one, or an XFS file system in a file, which is mounted, grows, and stays when the export goes."""

from __future__ import annotations

import pytest

from .conftest import Nas

MIB = 1 << 20
VOLUMES = "/srv/volumes"

pytestmark = [pytest.mark.slow, pytest.mark.lab]


def test_a_plain_directory(nas: Nas) -> None:
    before = nas.files()
    assert nas.export("--check", "--diff", path=VOLUMES) == 1 and nas.files() == before
    assert nas.export(path=VOLUMES, mode="0750") == 1 and nas.export(path=VOLUMES, mode="0750") == 0
    assert nas.run(f"stat -c '%U %G %a' {VOLUMES}") == "root root 750\n"
    nas.run(f"echo kept >{VOLUMES}/volume")
    assert nas.export(path=VOLUMES, state="absent") == 0 and nas.run(f"cat {VOLUMES}/volume") == "kept\n"
    assert nas.export("--check", path=VOLUMES, state="absent", remove_data=True) == 1 and nas.run(f"cat {VOLUMES}/volume") == "kept\n"
    assert nas.export(path=VOLUMES, state="absent", remove_data=True) == 1
    assert nas.export(path=VOLUMES, state="absent", remove_data=True) == 0
    assert nas.files() == before


def test_a_file_system_of_its_own(nas: Nas) -> None:
    before = nas.files()
    sized = {"path": VOLUMES, "size": "320M"}
    assert nas.export("--check", "--diff", **sized) >= 3 and nas.files() == before
    assert nas.export(**sized) >= 3
    made = nas.files()
    assert nas.export(**sized) == 0 and nas.export("--check", **sized) == 0 and nas.files() == made
    assert nas.run(f"findmnt -n -o FSTYPE,OPTIONS --mountpoint {VOLUMES}").startswith("xfs") and "nosuid,nodev" in made
    assert nas.run(f"stat -c %a {VOLUMES} {VOLUMES}.xfs") == "770\n600\n"
    assert int(nas.run(f"stat -c %b {VOLUMES}.xfs")) * 512 >= 320 * MIB, "the space is reserved"
    # Copies share their data, which is what the file system is for.
    nas.run(f"dd if=/dev/urandom of={VOLUMES}/a bs=1M count=64 status=none && cp --reflink=always {VOLUMES}/a {VOLUMES}/b && cmp {VOLUMES}/a {VOLUMES}/b")
    assert int(nas.run(f"df --output=used -B1 {VOLUMES} | tail -1")) < 100 * MIB
    checksum = nas.run(f"sha256sum <{VOLUMES}/a")
    # As after a boot: the line of fstab brings it back.
    nas.run(f"umount {VOLUMES} && mount {VOLUMES} && mountpoint -q {VOLUMES}")
    assert nas.run(f"sha256sum <{VOLUMES}/b") == checksum and nas.export(**sized) == 0
    # Growth, and what is left when the export goes: the file, with all data.
    assert nas.export("--check", path=VOLUMES, size="384M") == 1 and nas.export(**sized) == 0
    assert nas.export(path=VOLUMES, size="384M") == 1 and nas.export(path=VOLUMES, size="384M") == 0
    assert int(nas.run(f"df --output=size -B1 {VOLUMES} | tail -1")) > 300 * MIB
    nas.export(fails="XFS cannot shrink", **sized)
    assert nas.export(path=VOLUMES, state="absent") == 2 and nas.export(path=VOLUMES, state="absent") == 0
    assert VOLUMES not in nas.run("findmnt -rn -o TARGET; cat /etc/fstab") and nas.run(f"ls -A {VOLUMES}") == ""
    nas.export(path=VOLUMES, size="384M")
    assert nas.run(f"sha256sum <{VOLUMES}/b") == checksum
    assert nas.export("--check", path=VOLUMES, state="absent", remove_data=True) == 3 and nas.run(f"sha256sum <{VOLUMES}/b") == checksum
    assert nas.export(path=VOLUMES, state="absent", remove_data=True) == 3
    assert nas.files() == before


def test_growth_that_was_cut_off_ends(nas: Nas) -> None:
    nas.export(path=VOLUMES, size="320M", reserve=False)
    nas.run(f"truncate --size 384M {VOLUMES}.xfs")
    assert nas.export(path=VOLUMES, size="384M", reserve=False) == 1
    assert int(nas.run(f"df --output=size -B1 {VOLUMES} | tail -1")) > 300 * MIB
    assert int(nas.run(f"stat -c %b {VOLUMES}.xfs")) * 512 < 200 * MIB, "no space is reserved"


def test_nothing_is_hidden_or_formatted(nas: Nas) -> None:
    """Files beneath the mount, another mount, a file that is no file system, and a file that a killed play left half-made."""
    nas.run(f"mkdir {VOLUMES} && echo mine >{VOLUMES}/.hidden")
    nas.export(path=VOLUMES, size="320M", fails="which a file system mounted there would hide")
    nas.run(f"rm {VOLUMES}/.hidden && mount -t tmpfs tmpfs {VOLUMES}")
    nas.export(path=VOLUMES, size="320M", fails=f"At {VOLUMES} tmpfs is mounted, not {VOLUMES}.xfs")
    nas.export(path=VOLUMES, state="absent", remove_data=True, fails="Something is mounted at /srv/volumes")
    nas.run(f"umount {VOLUMES} && echo precious >{VOLUMES}.xfs")
    nas.export(path=VOLUMES, size="320M", fails="mount")
    assert nas.run(f"cat {VOLUMES}.xfs") == "precious\n"
    nas.run(f"mv {VOLUMES}.xfs {VOLUMES}.xfs.new")
    nas.export(path=VOLUMES, size="320M")
    assert nas.run(f"ls {VOLUMES}.xfs*") == f"{VOLUMES}.xfs\n"


@pytest.mark.parametrize(
    "variables, told",
    [
        ({"path": "/srv"}, "export_path is /srv: give an absolute path of two or more parts"),
        ({"path": "/srv/../etc"}, "give an absolute path of two or more parts"),
        ({"path": "/srv/a b"}, "with letters, digits and ._- only"),
        ({"path": VOLUMES, "name": "../x"}, "export_name is ../x"),
        ({"path": VOLUMES, "size": "1G", "image": VOLUMES + "/x"}, "Give a file outside /srv/volumes"),
        ({"path": VOLUMES, "smb": {"share": "global", "user": "a", "password": "b"}}, "none that Samba has a meaning for"),
        ({"path": VOLUMES, "smb": {"user": "a"}}, "Give export_smb a user (small letters, digits and _-) and a password"),
        ({"path": VOLUMES, "gluster": {"peers": ["192.0.2.99"]}}, "this host is 192.0.2.11"),
        ({"path": VOLUMES, "gluster": {"peers": ["192.0.2.11", "192.0.2.12"], "replica": 3}}, "a multiple of export_gluster.replica"),
        ({"path": VOLUMES, "gluster": {"peers": ["192.0.2.11"]}, "nfs": ["*"]}, "nothing else may write there"),
        ({"path": VOLUMES, "state": "gone"}, "value of export_state must be one of"),
    ],
)
def test_what_is_refused(nas: Nas, variables: dict, told: str) -> None:
    before = nas.files()
    nas.export(fails=told, **variables)
    assert nas.files() == before
