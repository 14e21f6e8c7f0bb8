# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One share under many spellings; mounted twice at one path; named with commas and with letters that are not ASCII."""
from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.errors import Conflict, InvalidParameter, ShareNotMounted
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import fstab as fstab_file
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import observer, parameters, planner, probe, resolve, sources, tables, types
from ansible_collections.remotefs.storage.plugins.module_utils.operations import candidates, shares

BASE = "/var/lib/remotefs/mnt"
ROOT = "1 1 8:1 / / rw - ext4 /dev/vda rw\n"

SAME = [
    ("nfs", "nas1:/vols", "nas1://vols"),
    ("nfs", "nas1:/vols", "nas1:/./vols"),
    ("nfs", "nas1:/vols", "nas1:/vols//"),
    ("nfs", "nas1:/vols/sub", "nas1:///vols/.//sub/./"),
    ("nfs", "nas1:/vols", "NAS1:/vols"),
    ("nfs", "nas1:/", "nas1://"),
    ("nfs", "[2001:db8::1]:/vols", "[2001:DB8:0:0::1]:/vols/"),
    ("nfs", "[fe80::1%eth0]:/vols", "[FE80:0::1%eth0]:/vols"),
    ("cifs", "//nas1/vols", "//NAS1/Vols"),
    ("cifs", "//nas1/vols", "\\\\NAS1\\vols"),
    ("cifs", "//nas1/vols", "\\\\nas1\\VOLS\\"),
    ("cifs", "//nas1/vols/Dir", "//nas1//Vols/./Dir/"),
    ("cifs", "//nas1/größe", "//nas1/GRÖSSE".replace("SS", "ß")),
    ("glusterfs", "gl1:/vols", "gl1:vols"),
    ("glusterfs", "gl1,gl2:/vols", "GL1,gl2:vols/"),
    ("sshfs", "user@host:/dir", "user@Host:/dir/"),
    ("sshfs", "user@host:", "user@host:./"),
    ("bind", "/srv/vols", "/srv//vols/."),
]
OTHER = [
    ("nfs", "nas1:/vols", "nas1:/Vols"),
    ("nfs", "nas1:/vols", "nas2:/vols"),
    ("nfs", "nas1:/", "nas1:/vols"),
    ("nfs", "nas1:/a,b", "nas1:/a"),
    ("cifs", "//nas1/vols/dir", "//nas1/vols/Dir"),
    ("cifs", "//nas1/vols", "//nas1/vols/dir"),
    ("cifs", "//nas1/strasse", "//nas1/straße"),
    ("sshfs", "user@host:dir", "user@host:/dir"),
    ("sshfs", "User@host:/dir", "user@host:/dir"),
    ("sshfs", "user@host:", "user@host:/"),
]


@pytest.mark.parametrize(("name", "one", "other"), SAME)
def test_the_same(name, one, other):
    row = types.by_name(name)
    assert sources.normalise(one, row) == sources.normalise(other, row)


@pytest.mark.parametrize(("name", "one", "other"), OTHER)
def test_another(name, one, other):
    row = types.by_name(name)
    assert sources.normalise(one, row) != sources.normalise(other, row)


@given(st.text(st.sampled_from("naN1:/.\\@[]ß ,"), max_size=16))
def test_normalising_ends(text):
    for row in (None, *types.rows()):
        once = sources.normalise(text, row)
        assert sources.normalise(once, row) == once


def params(src, state="mounted", path="/mnt/t", fstype="auto", **given):
    return {"src": src, "path": path, "mount_base": BASE, "fstype": fstype, "opts": None, "state": state, "persist": True, "fstab": "/etc/fstab",
            "credentials": None, **given}


@pytest.mark.parametrize(("name", "shown", "given"), [case for case in SAME if case[0] != "bind"])
def test_a_share_is_mounted_found_and_removed_by_any_spelling(name, shown, given, monkeypatch):
    row = types.by_name(name)
    mounts = tables.parse_mountinfo(ROOT + f"9 1 0:50 / /mnt/t rw - {row.kernel_types[-1]} {fstab_file.escape(shown)} rw,nobrl")
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: mounts)
    found = resolve.find_share(given, fstab="/dev/null")
    assert (found.path, found.source, found.export) == ("/mnt/t", given, shown)
    entry = tables.Entry(shown, "/mnt/t", row.mount_type, row.default_options or ("defaults",))
    there = planner.Seen(mount=mounts[1], source=shown, entry=entry, directory=True)
    for state, steps in (("mounted", []), ("absent", ["unmount", "remove_fstab"])):
        assert [step.name for step in planner.plan(parameters.read_wish(params(given, state, fstype=name), mounts, (entry,)), there)] == steps


@pytest.mark.parametrize(("name", "shown", "given"), [case for case in OTHER if case[0] in ("nfs", "cifs", "sshfs")])
def test_another_share_is_not(name, shown, given, monkeypatch):
    row = types.by_name(name)
    mounts = tables.parse_mountinfo(ROOT + f"9 1 0:50 / /mnt/t rw - {row.kernel_types[-1]} {fstab_file.escape(shown)} rw,nobrl")
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: mounts)
    with pytest.raises(ShareNotMounted):
        resolve.find_share(given, fstab="/dev/null")
    with pytest.raises(Conflict):
        planner.plan(parameters.read_wish(params(given, fstype=name), mounts, ()), planner.Seen(mount=mounts[1], source=shown, directory=True))


def test_the_default_path_is_of_the_exact_spelling_unless_another_one_has_the_share():
    exact, other = resolve.default_path("nas1:/vols/"), resolve.default_path("nas1://vols")
    assert parameters.read_wish(params("nas1:/vols/", path=None), (), ()).path == exact
    mounts = tables.parse_mountinfo(ROOT + f"9 1 0:50 / {other} rw - nfs4 nas1:/vols rw,vers=4.2")
    for state in ("mounted", "absent", "unmounted"):
        assert parameters.read_wish(params("nas1:/vols/", state, path=None), mounts, ()).path == other
    entries = (tables.Entry("nas1://vols", other, "nfs"),)
    assert parameters.read_wish(params("nas1:/vols/", "absent", path=None), (), entries).path == other
    elsewhere = tables.parse_mountinfo(ROOT + "9 1 0:50 / /mnt/by/hand rw - nfs4 nas1:/vols rw,vers=4.2")
    assert parameters.read_wish(params("nas1:/vols/", path=None), elsewhere, ()).path == exact


def test_the_spelling_in_fstab_stays():
    entry = tables.Entry("nas1://vols", "/mnt/t", "nfs", ("ro",))
    (mount,) = tables.parse_mountinfo("9 1 0:50 / /mnt/t rw - nfs4 nas1:/vols rw,vers=4.2")
    desired = parameters.read_wish(params("nas1:/vols"), (mount,), (entry,))
    (step,) = planner.plan(desired, planner.Seen(mount=mount, source="nas1:/vols", entry=entry, directory=True))
    assert (step.entry.source, step.entry.options) == ("nas1://vols", ("defaults",))


@pytest.mark.parametrize("spelled", ["/mnt/caf\\303\\251", "/mnt/café", "//mnt///caf\\303\\251/", "/mnt/./café/."])
def test_a_path_of_fstab_in_octal_or_with_doubled_slashes(spelled):
    text = f"# one\nnas:/x  {spelled}\tnfs ro 0 0\n"
    assert tables.parse_fstab(text)[0].path == "/mnt/café"
    assert fstab_file.edit_fstab(text, "/mnt/café", tables.Entry("nas:/x", "/mnt/café", "nfs", ("ro",))) == text
    assert fstab_file.edit_fstab(text, "/mnt/café", None) == "# one\n"


def test_white_space_of_fstab_is_blanks_and_tabs_only():
    assert tables.parse_entry("nas:/a\u00a0b /mnt/a\u2028b nfs ro 0 0\r").path == "/mnt/a\u2028b"
    assert tables.parse_entry("nas:/a\u00a0b /mnt/x nfs ro 0 0\r") == tables.Entry("nas:/a\u00a0b", "/mnt/x", "nfs", ("ro",))


@given(st.text(st.characters(blacklist_characters="\n\r\0", blacklist_categories=("Cs",)), min_size=1, max_size=12).filter(lambda text: text.strip("/. ")))
def test_every_path_is_found_in_the_table_that_has_it(name):
    path = "/mnt/" + "/".join(part for part in name.split("/") if part not in ("", "."))
    text = fstab_file.edit_fstab("", path, tables.Entry("nas:/x", path, "nfs"))
    assert fstab_file.edit_fstab(text, path, None) == "" and tables.parse_fstab(text)[0].path == path
    octal = "".join(f"\\{byte:03o}" for byte in os.fsencode(path))
    assert tables.parse_entry(f"nas:/x /{octal} nfs").path == path


# --- one upon the other


def stack(*sources, path="/mnt/t", kind="nfs4"):
    lines = [f"{9 + number} {number and 8 + number or 1} 0:5{number} / {path} rw - {kind} {source} rw,vers=4.2" for number, source in enumerate(sources)]
    return tables.parse_mountinfo(ROOT + "\n".join(lines))


@pytest.mark.parametrize(
    ("sources", "unmounts"), [(("nas1:/vols",), 1), (("nas1:/vols",) * 2, 2), (("nas1:/vols",) * 3, 3), (("nas2:/x", "nas1:/vols", "nas1:/vols"), 2)]
)
def test_absent_unmounts_every_layer_of_the_source(sources, unmounts, tmp_path, monkeypatch):
    mounts = stack(*sources)
    desired = parameters.read_wish(params("nas1://vols", "absent"), mounts, ())
    seen = observer.observe(desired, mounts, (), probe.Deadline(5))
    assert [step.name for step in planner.plan(desired, seen)] == ["unmount"] * unmounts
    mounted = parameters.read_wish(params("nas1://vols", persist=False), mounts, ())
    assert planner.plan(mounted, seen) == ()


def test_a_bind_mount_of_a_part_is_not_the_share(monkeypatch):
    mounts = tables.parse_mountinfo(
        ROOT + "9 1 0:50 /sub /mnt/bound rw - cifs //nas/vols rw,nobrl\n10 1 0:50 / /mnt/whole rw - cifs //nas/vols rw,nobrl\n"
        "11 1 0:51 /dir /mnt/dir rw - cifs //nas/vols/dir rw,nobrl\n12 1 0:51 /dir/in /mnt/in rw - cifs //nas/vols/dir rw,nobrl\n"
    )
    monkeypatch.setattr(tables, "read_mounts", lambda *_a: mounts)
    assert resolve.find_share("//NAS/Vols", fstab="/dev/null").path == "/mnt/whole"
    assert resolve.find_share("//nas/vols/dir", fstab="/dev/null").path == "/mnt/dir"
    part = resolve.find_share("/mnt/bound/x", fstab="/dev/null")
    assert (part.source, part.export, part.below) == ("/mnt/bound/x", "//nas/vols", "sub/x")
    assert resolve.find_share("/mnt/bound", fstab="/dev/null").source == "/mnt/bound"
    inner = resolve.find_share("/mnt/in", fstab="/dev/null")
    assert (inner.source, inner.export, inner.below) == ("/mnt/in", "//nas/vols/dir", "in")
    desired = parameters.read_wish(params("//nas/vols", path="/mnt/bound"), mounts, ())
    with pytest.raises(Conflict):
        planner.plan(desired, planner.Seen(mount=mounts[1], source="//nas/vols", directory=True))


# --- what `share` is


def test_a_comma_in_a_share_is_no_list(tmp_path):
    for name in ("vols,old", "a", "b"):
        (tmp_path / name).mkdir()
    one = candidates.find_candidates(f"{tmp_path}/vols,old", BASE, "/dev/null")
    assert [share.path for share in one.shares] == [f"{tmp_path}/vols,old"]
    many = candidates.Finder().find([f"{tmp_path}/a", f"{tmp_path}/b"], BASE)
    assert [share.path for share in many.shares] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert candidates.Finder().find(f"{tmp_path}/vols,old", BASE).shares == one.shares
    told = shares.describe_all(f"{tmp_path}/vols,old", BASE, "/dev/null", 5)
    assert [share["src"] for share in told] == [f"{tmp_path}/vols,old"]


@pytest.mark.parametrize("given", [{"a": 1}, [["x"]], [None], 7])
def test_what_is_no_share_is_said(given):
    with pytest.raises(InvalidParameter, match="not a text"):
        resolve.share_names(given)


def test_an_option_in_quotes_keeps_its_commas():
    split_by_ansible = ["ro", 'context="system_u:object_r:nfs_t:s0:c1', 'c2"', "hard"]
    assert parameters.read_wish(params("nas:/x", opts=split_by_ansible), (), ()).options == ("ro", 'context="system_u:object_r:nfs_t:s0:c1,c2"', "hard")
