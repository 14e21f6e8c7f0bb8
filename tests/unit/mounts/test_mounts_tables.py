# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two tables: what the kernel wrote is read, what an administrator wrote stays."""
from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import binds, tables
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import fstab as fstab_file

MOUNTINFO = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
24 27 0:6 / /dev rw,relatime shared:2 master:1 - devtmpfs devtmpfs rw,size=4k
33 27 0:29 / /mnt/a rw,relatime - nfs4 127.0.0.1:/vols rw,vers=4.2,hard,proto=tcp,addr=127.0.0.1
36 27 0:32 / /mnt/with\\040space ro,relatime - cifs //127.0.0.1/a\\040b rw,vers=3.1.1,nobrl
37 27 254:0 /srv/src /mnt/bound ro,noatime - ext4 /dev/vda rw,discard
38 33 0:40 / /mnt/a/inner rw - tmpfs none rw
39 33 0:41 / /mnt/a rw - tmpfs over rw
40 27 0:29 / /mnt/nfsbound rw,relatime - nfs4 127.0.0.1:/vols/sub rw,vers=4.2
41 27 0:50 / /mnt/auto rw - autofs systemd-1 rw,fd=33
garbage
42 27 0:51 / /mnt/short rw - tmpfs
"""
MOUNTS = tables.parse_mountinfo(MOUNTINFO)


def by_id(number):
    return next(mount for mount in MOUNTS if mount.id == number)


def test_mountinfo_is_read_with_escapes_and_optional_fields():
    assert [mount.id for mount in MOUNTS] == [27, 24, 33, 36, 37, 38, 39, 40, 41]
    assert by_id(36).path == "/mnt/with space" and by_id(36).source == "//127.0.0.1/a b"
    assert by_id(24).fstype == "devtmpfs"


def test_read_only_wins_in_the_effective_options():
    assert by_id(36).options == ("ro", "relatime", "vers=3.1.1", "nobrl")
    assert tables.parse_mountinfo("1 0 0:1 / / rw - nfs a:/b ro,soft\n")[0].options == ("ro", "soft")


@pytest.mark.parametrize(
    ("path", "number"),
    [("/", 27), ("/srv", 27), ("/mnt", 27), ("/mnt/bound/x", 37), ("/dev/null", 24), ("/mnt/a", 39), ("/mnt/a/inner", 39), ("/mnt/ab", 27)],
)
def test_enclosing_walks_as_the_kernel_does(path, number):
    assert tables.enclosing(MOUNTS, path) == by_id(number)


def test_an_automount_trigger_is_no_mount():
    assert tables.mounted_at(MOUNTS, "/mnt/auto") is None
    assert tables.mounted_at(MOUNTS, "/mnt/bound") == by_id(37)
    assert tables.mounted_at(MOUNTS, "/mnt/bound/x") is None


def test_bind_mounts_are_known_by_device_and_place():
    assert binds.shows(MOUNTS, by_id(37), "/srv/src")
    assert not binds.shows(MOUNTS, by_id(37), "/srv/other")
    assert not binds.shows(MOUNTS, by_id(37), "/dev/src")
    assert binds.origin(MOUNTS, by_id(37)) == "/srv/src"


def test_a_bind_mount_of_nfs_is_known_by_its_source():
    mounts = tuple(mount for mount in MOUNTS if mount.id != 39)
    assert binds.shows(mounts, by_id(40), "/mnt/a/sub")
    assert not binds.shows(mounts, by_id(40), "/mnt/a/other")


FSTAB = (
    "# <file system>\t<mount point>\n\nUUID=1 / ext4 errors=remount-ro 0 1\n"
    "nas1:/vols\t /mnt/vols/  nfs4 vers=4.2,_netdev 0 0\n#nas1:/x /x nfs defaults 0 0\nbroken line\n/swap none swap sw"
)


def test_fstab_is_read():
    entries = tables.parse_fstab(FSTAB)
    assert [entry.path for entry in entries] == ["/", "/mnt/vols", "none"]
    assert entries[1] == tables.Entry("nas1:/vols", "/mnt/vols", "nfs4", ("vers=4.2", "_netdev"))


def test_an_edit_touches_one_line_only():
    entry = tables.Entry("nas1:/a b#c", "/mnt/vols", "nfs", ("ro",))
    lines, edited = FSTAB.split("\n"), fstab_file.edit_fstab(FSTAB, "/mnt/vols", entry).split("\n")
    assert edited[3] == "nas1:/a\\040b\\043c /mnt/vols nfs ro 0 0"
    assert [line for number, line in enumerate(edited) if number != 3] == [line for number, line in enumerate(lines) if number != 3]


def test_an_equal_line_keeps_its_spacing():
    assert fstab_file.edit_fstab(FSTAB, "/mnt/vols", tables.parse_fstab(FSTAB)[1]) == FSTAB


def test_a_new_line_goes_to_the_end_and_ends_the_last_one():
    edited = fstab_file.edit_fstab(FSTAB, "/new", tables.Entry("s:/x", "/new", "nfs"))
    assert edited == FSTAB + "\ns:/x /new nfs defaults 0 0\n"
    assert fstab_file.edit_fstab("", "/new", tables.Entry("s:/x", "/new", "nfs")) == "s:/x /new nfs defaults 0 0\n"


def test_duplicates_become_one():
    text = "a:/1 /x nfs a 0 0\n# between\na:/1 /x nfs b 0 0\n"
    assert fstab_file.edit_fstab(text, "/x", tables.Entry("a:/1", "/x", "nfs", ("c",))) == "a:/1 /x nfs c 0 0\n# between\n"
    assert fstab_file.edit_fstab(text, "/x", None) == "# between\n"


LINE = st.text(st.characters(blacklist_characters="\n", blacklist_categories=("Cs",)), max_size=30)


@given(st.lists(LINE, max_size=6))
def test_adding_and_removing_gives_back_what_was_there(lines):
    text = "".join(line + "\n" for line in lines if not (tables.parse_entry(line) and tables.parse_entry(line).path == "/mnt/new"))
    added = fstab_file.edit_fstab(text, "/mnt/new", tables.Entry("nas:/x", "/mnt/new", "nfs", ("ro",)))
    assert added.startswith(text)
    assert fstab_file.edit_fstab(added, "/mnt/new", None) == text


@given(st.text(st.sampled_from("ab/ \t\\#:"), min_size=1, max_size=10), st.text(st.sampled_from("ab \t\\#"), min_size=1, max_size=10))
def test_every_source_and_path_survives_a_line(source, path):
    entry = tables.Entry("n" + source, "/" + path, "nfs", ("a=b c",))
    assert tables.parse_entry(fstab_file.render_entry(entry)) == entry


def test_options_in_quotes_stay_whole():
    assert tables.split_options('a,context="x:y,z",b,,') == ("a", 'context="x:y,z"', "b")


def test_the_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    fstab = tmp_path / "fstab"
    fstab.write_text(FSTAB)
    fstab.chmod(0o640)
    before = fstab.stat().st_ino
    fstab_file.change_fstab(str(fstab), "/mnt/vols", None)
    assert "nas1:/vols" not in fstab.read_text() and stat.S_IMODE(fstab.stat().st_mode) == 0o640
    assert fstab.stat().st_ino != before and os.listdir(tmp_path) == ["fstab"]


def test_an_unchanged_table_is_not_written(tmp_path):
    fstab = tmp_path / "fstab"
    fstab.write_text(FSTAB)
    before = fstab.stat().st_ino
    fstab_file.change_fstab(str(fstab), "/not/there", None)
    assert fstab.stat().st_ino == before


def test_a_missing_table_is_empty_and_gets_made(tmp_path):
    fstab = str(tmp_path / "fstab")
    assert tables.read_fstab(fstab) == ""
    fstab_file.change_fstab(fstab, "/x", tables.Entry("a:/b", "/x", "nfs"))
    assert tables.read_fstab(fstab) == "a:/b /x nfs defaults 0 0\n"
    assert stat.S_IMODE(os.stat(fstab).st_mode) == 0o644


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "real").write_text(FSTAB)
    (tmp_path / "fstab").symlink_to("real")
    with pytest.raises(InvalidParameter, match="symbolic link"):
        fstab_file.change_fstab(str(tmp_path / "fstab"), "/x", tables.Entry("a:/b", "/x", "nfs"))
    assert (tmp_path / "real").read_text() == FSTAB


def test_bytes_that_are_no_text_survive(tmp_path):
    fstab = tmp_path / "fstab"
    fstab.write_bytes(b"# caf\xe9\r\n\x0b\x85\n")
    fstab_file.change_fstab(str(fstab), "/x", tables.Entry("a:/b", "/x", "nfs"))
    assert fstab.read_bytes() == b"# caf\xe9\r\n\x0b\x85\na:/b /x nfs defaults 0 0\n"
