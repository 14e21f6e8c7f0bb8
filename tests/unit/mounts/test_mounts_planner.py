# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wish and state in, steps out."""
from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import Conflict, InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import planner, types
from ansible_collections.remotefs.storage.plugins.module_utils.mounts.tables import Entry, Mount

NFS, CIFS, BIND, SSHFS, DIRECTORY = map(types.by_name, ("nfs", "cifs", "bind", "sshfs", "directory"))
PATH = "/mnt/x"
SECRET = planner.Credentials("me", "hidden-word", "HOME")


def desired(row=NFS, src="nas:/x", **changes):
    return planner.DesiredShare(src=src, path=PATH, row=row, credentials_file="/c/file", **changes)


def mount(source="nas:/x", fstype="nfs4", options=("rw", "vers=4.2", "hard")):
    return Mount(2, 1, "0:9", "/", PATH, fstype, source, options, ())


def seen(mounted=None, **changes):
    return planner.Seen(mount=mounted, source=mounted.source if mounted else None, directory=changes.pop("directory", mounted is not None), **changes)


def entry(*options, source="nas:/x", fstype="nfs"):
    return Entry(source, PATH, fstype, options or ("defaults",))


def names(steps):
    return [step.name for step in steps]


CASES = [
    ("nothing there", desired(), seen(), ["create_directory", "mount", "write_fstab"]),
    ("directory there", desired(), seen(directory=True), ["mount", "write_fstab"]),
    ("without fstab", desired(persist=False), seen(), ["create_directory", "mount"]),
    ("all there", desired(), seen(mount(), entry=entry()), []),
    ("server's spelling", desired(src="nas:/x/"), seen(mount(), entry=entry(source="nas:/x/")), []),
    ("fstab says nfs4", desired(), seen(mount(), entry=entry(fstype="nfs4")), []),
    ("fstab says something else", desired(), seen(mount(), entry=entry(fstype="ext4")), ["write_fstab"]),
    ("only fstab missing", desired(), seen(mount()), ["write_fstab"]),
    ("general option", desired(options=("ro",)), seen(mount(), entry=entry()), ["remount", "write_fstab"]),
    ("live option drifted", desired(options=("ro",)), seen(mount(), entry=entry("ro")), ["remount"]),
    ("option that needs a new mount", desired(options=("vers=3",)), seen(mount(), entry=entry()), ["unmount", "mount", "write_fstab"]),
    ("dead process", desired(SSHFS, "u@h:/x", persist=False), seen(mount("u@h:/x", "fuse.sshfs"), dead=True), ["unmount", "mount"]),
    ("credentials", desired(CIFS, "//n/x", credentials=SECRET), seen(), ["write_credentials", "create_directory", "mount", "write_fstab"]),
    ("present", desired(state="present"), seen(), ["create_directory", "write_fstab"]),
    ("present already", desired(state="present"), seen(directory=True, entry=entry()), []),
    ("present ignores what is mounted", desired(state="present"), seen(mount("other:/y"), entry=entry()), []),
    ("unmounted", desired(state="unmounted"), seen(mount(), entry=entry()), ["unmount"]),
    ("unmounted already", desired(state="unmounted"), seen(entry=entry()), []),
    ("absent", desired(state="absent"), seen(mount(), entry=entry()), ["unmount", "remove_fstab"]),
    ("absent, own directory", desired(state="absent", own_directory=True), seen(mount(), entry=entry()), ["unmount", "remove_fstab", "remove_directory"]),
    ("absent, directory with files", desired(state="absent", own_directory=True), seen(directory=True, empty=False), []),
    ("absent, credentials", desired(CIFS, "//n/x", state="absent"), seen(credentials=b"x"), ["remove_credentials"]),
    ("absent, fstab not ours", desired(state="absent", persist=False), seen(mount(), entry=entry()), ["unmount"]),
    ("absent already", desired(state="absent"), seen(), []),
    ("remounted", desired(state="remounted"), seen(mount(), entry=entry()), ["unmount", "mount"]),
    ("remounted, not mounted", desired(state="remounted"), seen(entry=entry()), ["create_directory", "mount"]),
    ("directory", desired(DIRECTORY, PATH), seen(), ["create_directory"]),
    ("directory there already", desired(DIRECTORY, PATH), seen(directory=True), []),
    ("directory is never removed", desired(DIRECTORY, PATH, state="absent"), seen(directory=True), []),
    ("bind", desired(BIND, "/src"), seen(), ["create_directory", "mount", "write_fstab"]),
    ("bind there", desired(BIND, "/src"), seen(mount("/dev/v", "ext4", ("rw",)), bound=True, entry=entry("bind", source="/src", fstype="none")), []),
]


@pytest.mark.parametrize(("wished", "there", "steps"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_steps(wished, there, steps):
    assert names(planner.plan(wished, there)) == steps


@pytest.mark.parametrize(
    ("wished", "there"),
    [
        (desired(), seen(mount("other:/y"))),
        (desired(), seen(mount(fstype="ext4"))),
        (desired(state="unmounted"), seen(mount("other:/y"))),
        (desired(state="absent"), seen(mount("other:/y"))),
        (desired(state="remounted"), seen(mount("other:/y"))),
        (desired(), seen(entry=entry(source="other:/y"))),
        (desired(state="absent"), seen(entry=entry(source="other:/y"))),
        (desired(BIND, "/src"), seen(mount("/dev/v", "ext4"), bound=False)),
    ],
)
def test_another_source_is_a_conflict(wished, there):
    with pytest.raises(Conflict):
        planner.plan(wished, there)


def test_another_source_in_fstab_does_not_matter_where_fstab_does_not():
    assert names(planner.plan(desired(persist=False), seen(entry=entry(source="other:/y")))) == ["create_directory", "mount"]


def test_present_without_fstab_is_nonsense():
    with pytest.raises(InvalidParameter):
        planner.plan(desired(state="present", persist=False), seen())


def test_changed_credentials_mount_anew_and_the_unmount_comes_first():
    line = entry("nobrl", "credentials=/c/file", source="//n/x", fstype="cifs")
    there = seen(mount("//n/x", "cifs", ("rw", "nobrl", "username=me")), credentials=b"username=old\n", entry=line)
    wished = desired(CIFS, "//n/x", credentials=SECRET)
    assert names(planner.plan(wished, there)) == ["unmount", "write_credentials", "mount"]
    assert planner.plan(wished, dataclasses.replace(there, credentials=SECRET.content())) == ()


def test_options_that_another_mount_decides_are_left():
    there = seen(mount(), shared=True, entry=entry())
    assert names(planner.plan(desired(options=("vers=3",), persist=False), there)) == []
    assert names(planner.plan(desired(options=("vers=3", "ro"), persist=False), there)) == ["remount"]


def test_another_user_in_force_is_a_drift():
    there = seen(mount("//n/x", "cifs", ("rw", "nobrl", "username=root")), credentials=SECRET.content())
    assert names(planner.plan(desired(CIFS, "//n/x", credentials=SECRET, persist=False), there)) == ["unmount", "mount"]


def test_credentials_left_out_keep_the_file_that_is_there():
    steps = planner.plan(desired(CIFS, "//n/x"), seen(credentials=b"x"))
    assert steps[1].opts == ("nobrl", "credentials=/c/file") and steps[2].entry.options == ("nobrl", "credentials=/c/file")
    assert planner.plan(desired(CIFS, "//n/x", options=("guest",)), seen(credentials=b"x"))[1].opts == ("nobrl", "guest")


def test_no_step_shows_a_password():
    for row, source in ((CIFS, "//n/x"), (SSHFS, "u@h:/x")):
        wished = desired(row, source, credentials=SECRET)
        steps = planner.plan(wished, seen())
        assert "hidden-word" not in repr(steps) + repr(wished) + repr([step.describe() for step in steps]) + repr(planner.state_after(seen(), wished, steps))
    assert steps[1].opts == ("password_stdin",)


def test_a_step_describes_itself():
    assert [step.describe() for step in planner.plan(desired(options=("ro", "_netdev")), seen())] == [
        {"step": "create_directory", "path": PATH},
        {"step": "mount", "path": PATH, "src": "nas:/x", "fstype": "nfs", "opts": "ro"},
        {"step": "write_fstab", "path": PATH, "fstab": "/etc/fstab"},
    ]


@pytest.mark.parametrize("wished", [case[1] for case in CASES if case[1].state != "remounted"], ids=[case[0] for case in CASES if case[1].state != "remounted"])
@pytest.mark.parametrize("there", [seen(), seen(directory=True)])
def test_a_second_plan_is_empty(wished, there):
    """What the steps leave behind satisfies the wish."""
    for step in planner.plan(wished, there):
        if isinstance(step, planner.MountShare):
            fstype = step.row.kernel_types[0] if step.row.kernel_types else "ext4"
            user = (f"username={step.credentials.username}",) if step.credentials else ()
            there = dataclasses.replace(there, mount=mount(step.src, fstype, ("rw",) + step.opts + user), source=step.src, bound=True)
        elif isinstance(step, (planner.CreateDirectory, planner.RemoveDirectory)):
            there = dataclasses.replace(there, directory=isinstance(step, planner.CreateDirectory))
        elif isinstance(step, planner.WriteFstab):
            there = dataclasses.replace(there, entry=step.entry)
        elif isinstance(step, planner.WriteCredentials):
            there = dataclasses.replace(there, credentials=step.credentials.content())
    assert planner.plan(wished, there) == ()


def test_fold_tells_what_will_be():
    wished, there = desired(options=("ro",)), seen()
    assert planner.state_after(there, wished, planner.plan(wished, there)) == {
        "mounted": "nas:/x", "opts": "ro", "fstab": "nas:/x /mnt/x nfs ro", "directory": True, "credentials": "none",
    }
