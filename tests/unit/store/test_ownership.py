# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a file is, and which volume rests on which: by records, ``.info`` and headers, whatever is missing of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import Conflict
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Parent, Share, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.store import qcow2
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import Directory, ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.metadata import info_file, records
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import ownership
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes.dependents import Backings

MIB = 1 << 20


class Files:
    """A share that is filled by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / ".remotefs").mkdir(mode=0o700)
        (path / ".remotefs/volumes").mkdir(mode=0o700)
        self.directory = ShareDirectory(Share(str(path), str(path), "directory"))

    def raw(self, *files: str) -> None:
        for file in files:
            (self.path / file).write_bytes(bytes(512))

    def overlay(self, file: str, backing: str | None, backing_format: str | None = "qcow2") -> None:
        with open(self.path / file, "wb") as stream:
            qcow2.write_image(stream.fileno(), MIB, backing, backing_format if backing else None)

    def chain(self, *files: str) -> None:
        """Overlays, top first, on a raw file, which is the last one."""
        self.raw(files[-1])
        for above, below in zip(files, files[1:]):
            self.overlay(above, below, "raw" if below == files[-1] else "qcow2")

    def record(self, name: str, *, parent: Parent | None = None, marks: dict | None = None, disks: dict | None = None, **formats: str) -> None:
        """``_`` in a file's name stands for a dot."""
        named = {file.replace("_", "."): value for file, value in formats.items()}
        content = records.Record(named, parent=parent, marks=marks or {}, disks=disks or {})
        (self.path / f".remotefs/volumes/{name}.json").write_bytes(content.to_bytes(name))

    def info(self, name: str, active: str, *snapshots: tuple[str, str]) -> None:
        (self.path / f"{name}.info").write_bytes(info_file.Info(active, snapshots).to_bytes())

    def torn(self, name: str) -> None:
        (self.path / name).write_bytes(b'{"acti')

    def owner(self, file: str, excluding: str | None = None) -> str | None:
        """With and without what is known of other files the answer is the same."""
        known: dict[str, set[str]] = {}
        alone = ownership.owner_of(self.directory, file, excluding)
        assert [ownership.owner_of(self.directory, file, excluding, known) for _time in "12"] == [alone, alone]
        return alone


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path)
    with made.directory:
        yield made


# -- who owns a file ---------------------------------------------------------------------------------------------------


def test_files_of_a_record(share: Files) -> None:
    share.record("v", v="raw", v_s="qcow2")
    assert [share.owner(file) for file in ("v", "v.s", "v.t", "v2", "w.v")] == ["v", "v", None, None, None]
    assert share.owner("v", excluding="v") is None and share.owner("v.s", excluding="v") is None
    assert share.owner("v.s", excluding="w") == "v"


def test_of_several_that_may_own_a_file_the_longest_name_comes_first(share: Files) -> None:
    share.record("v", v="raw", v_a_b="qcow2")
    assert share.owner("v.a.b") == "v"
    share.record("v.a", v_a="raw", v_a_b="qcow2")
    assert share.owner("v.a.b") == "v.a" and share.owner("v.a.b", excluding="v.a") == "v"
    share.record("v.a.b", v_a_b="raw")
    assert share.owner("v.a.b") == "v.a.b"


def test_files_of_an_info_and_of_the_headers_beneath(share: Files) -> None:
    """A volume of Cinder's has no record."""
    share.chain("v.t", "v.s", "v.merged", "v")
    share.raw("v.other")
    share.info("v", "v.t", ("s", "v.s"), ("gone", "v.gone"))
    assert [share.owner(file) for file in ("v", "v.t", "v.s", "v.merged", "v.gone")] == ["v"] * 5
    assert share.owner("v.other") is None
    share.record("v", v_x="qcow2")  # what is on record counts as well
    assert share.owner("v.x") == "v" and share.owner("v.merged") == "v"


def test_an_info_alone_claims_the_base_by_its_name(share: Files) -> None:
    share.info("v", "v.t")
    assert share.owner("v") == "v" and share.owner("v.s") is None


def test_a_header_that_a_guest_may_have_written_leads_nowhere(share: Files) -> None:
    share.overlay("v.s", "v", "raw")
    share.overlay("v", "v.other")
    share.info("v", "v.s")
    assert share.owner("v.other") == "v"  # nobody says that v is a raw disk, and the header above does not decide
    share.record("v", v="raw", v_s="qcow2")
    assert share.owner("v.other") is None


@pytest.mark.parametrize("backing, backing_format, claimed", [("v.b", "qcow2", True), ("v.b", None, False), ("/vols/v.b", "qcow2", True)])
def test_a_header_counts_if_it_says_the_format_below(share: Files, backing: str, backing_format: str | None, claimed: bool) -> None:
    share.raw("v.b")
    share.overlay("v.s", backing, backing_format)
    share.info("v", "v.s")
    assert share.owner("v.b") == ("v" if claimed else None)


def test_headers_that_lead_in_a_circle_end(share: Files) -> None:
    share.overlay("v.s", "v.t")
    share.overlay("v.t", "v.s")
    share.info("v", "v.s")
    assert share.owner("v.t") == "v" and share.owner("v.u") is None


def test_who_cannot_be_read_claims_nothing_more(share: Files) -> None:
    share.record("v", v="raw", v_s="qcow2")
    share.torn("v.info")
    assert share.owner("v.s") == "v" and share.owner("v.t") is None
    share.torn(".remotefs/volumes/v.json")
    assert share.owner("v.s") is None
    share.info("v", "v.s")
    share.raw("v.s")
    assert share.owner("v.s") is None


def test_names_that_no_volume_can_have_are_not_asked(share: Files) -> None:
    share.info(".hidden", "v")
    assert share.owner(".hidden") is None and share.owner(".hidden.s") is None


def test_a_volume_that_was_made_after_the_one_that_had_its_file(share: Files) -> None:
    """The old record outlived its volume, whose snapshot ``s`` had this file."""
    share.record("v", v="raw", v_s="qcow2")
    assert share.owner("v.s", excluding="v.s") == "v" and not ownership.is_its_own(share.directory, "v", "v.s")
    share.record("v.s", v_s="raw")
    assert share.owner("v.s", excluding="v.s") is None and ownership.is_its_own(share.directory, "v", "v.s")
    share.record("v.s", other="raw")
    assert share.owner("v.s", excluding="v.s") == "v"
    share.record("v.s", v_s="raw")
    share.info("v", "v.s")  # the volume is there still
    assert share.owner("v.s", excluding="v.s") == "v"
    share.torn("v.info")
    assert share.owner("v.s", excluding="v.s") == "v"


def test_a_record_is_read_once_for_many_files(share: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    share.chain("v.t", "v.s", "v")
    share.info("v", "v.t", ("s", "v.s"))
    real, asked, known = records.read, [], {}
    monkeypatch.setattr(records, "read", lambda directory, name: (asked.append(name), real(directory, name))[1])
    for _time in "12":
        assert [ownership.owner_of(share.directory, file, None, known) for file in ("v.t", "v.s", "v")] == ["v"] * 3
    assert sorted(asked) == ["v", "v.s", "v.t"]


# -- what a volume rests on --------------------------------------------------------------------------------------------


def images(*files: str) -> tuple[Image, ...]:
    return tuple(Image(file, "qcow2", MIB) for file in files)


def parent(share: Files, name: str, *files: str) -> Parent | None:
    info, record = info_file.read(share.directory, name), records.read(share.directory, name)
    return ownership.parent_of(share.directory, name, images(*files), info, record)


def golden(share: Files) -> None:
    """Volume ``vol``: what its snapshot ``old`` shows is in ``vol``, and ``new`` in ``vol.old``."""
    share.chain("vol.new", "vol.old", "vol")
    share.info("vol", "vol.new", ("old", "vol.old"), ("new", "vol.new"))


def test_a_volume_that_rests_on_nobody(share: Files) -> None:
    golden(share)
    assert parent(share, "vol", "vol.new", "vol.old", "vol") is None
    assert parent(share, "alone", "alone") is None
    share.record("vol", vol="raw", vol_old="qcow2", vol_new="qcow2", parent=Parent("w", None, "w"))
    assert parent(share, "vol", "vol.new", "vol.old", "vol") is None  # flattened meanwhile


def test_the_record_decides_where_the_chain_agrees(share: Files) -> None:
    golden(share)
    on_record = Parent("vol", "by-another-name", "vol.old")
    for files in (("env", "vol.old", "vol"), ("env.s", "env", "vol.old", "vol")):
        share.record("env", env="qcow2", parent=on_record)
        assert parent(share, "env", *files) == on_record
    share.record("env", env="qcow2", parent=Parent("vol", "x", "env"))
    assert parent(share, "env", "env", "vol.old", "vol") == Parent("vol", "new", "vol.old")


def test_without_a_record_names_and_claims_decide(share: Files) -> None:
    golden(share)
    assert parent(share, "env", "env", "vol.old", "vol") == Parent("vol", "new", "vol.old")
    assert parent(share, "env", "env", "vol") == Parent("vol", "old", "vol")
    assert parent(share, "env", "env", "vol.new", "vol.old", "vol") == Parent("vol", None, "vol.new")
    assert parent(share, "env", "env.s", "env.t", "env", "vol.old") == Parent("vol", "new", "vol.old")
    assert parent(share, "env", "env", "lone") == Parent("lone", None, "lone")
    assert parent(share, "env", "other", "lone") == Parent("lone", None, "lone")


def test_files_that_are_certainly_its_own_are_not_the_parents(share: Files) -> None:
    """Also those between which another one stands, and those that are not named after it."""
    golden(share)
    share.record("env", strange="qcow2", env="qcow2")
    assert parent(share, "env", "env", "strange", "vol") == Parent("vol", "old", "vol")
    assert parent(share, "env", "env", "env.x", "strange", "vol") == Parent("vol", "old", "vol")
    (share.path / ".remotefs/volumes/env.json").unlink()
    share.info("env", "env.t", ("s", "odd"))
    assert parent(share, "env", "env.t", "odd", "vol") == Parent("vol", "old", "vol")
    share.info("env", "odd")
    assert parent(share, "env", "env", "odd", "vol") == Parent("vol", "old", "vol")


def test_a_volume_named_after_the_clone_may_be_its_parent(share: Files) -> None:
    share.record("env.base", env_base="raw")
    assert parent(share, "env", "env", "env.base") == Parent("env.base", None, "env.base")
    assert parent(share, "env", "env", "env.mine", "env.base") == Parent("env.base", None, "env.base")


def test_a_parent_that_cannot_be_read_shows_no_snapshot(share: Files) -> None:
    golden(share)
    share.record("vol", vol="raw")
    share.torn("vol.info")
    assert parent(share, "env", "env", "vol") == Parent("vol", None, "vol")


def test_all_that_a_volume_rests_on(share: Files) -> None:
    golden(share)
    share.overlay("b", "vol.old")
    share.overlay("c", "b")
    assert ownership.ancestors_of(share.directory, "vol") == set() == ownership.ancestors_of(share.directory, "nobody")
    assert ownership.ancestors_of(share.directory, "b") == {"vol"} and ownership.ancestors_of(share.directory, "c") == {"b", "vol"}
    share.overlay("c.s", "c")
    share.info("c", "c.s")
    assert ownership.ancestors_of(share.directory, "c") == {"b", "vol"}
    share.record("c", c="qcow2", c_s="qcow2")
    assert ownership.ancestors_of(share.directory, "c") == {"b", "vol"}
    share.torn("c.info")
    assert ownership.ancestors_of(share.directory, "c") == {"b", "vol"}
    share.torn(".remotefs/volumes/c.json")
    assert ownership.ancestors_of(share.directory, "c") == {"b", "vol"}


def test_what_a_raw_disk_says_of_itself_makes_no_ancestor(share: Files) -> None:
    share.raw("w")
    share.overlay("v", "w", "raw")
    assert ownership.ancestors_of(share.directory, "v") == {"w"}
    share.record("v", v="raw")
    assert ownership.ancestors_of(share.directory, "v") == set()


def test_where_headers_end_the_record_names_the_parent(share: Files) -> None:
    share.raw("v")
    share.record("v", v="qcow2", parent=Parent("w", "s", "w"))
    share.record("w", w="raw")
    assert ownership.ancestors_of(share.directory, "v") == {"w"}


def test_volumes_that_rest_on_each_other_have_an_end(share: Files) -> None:
    share.overlay("a", "b")
    share.overlay("b", "c")
    share.overlay("c", "b")
    assert ownership.ancestors_of(share.directory, "a") == {"b", "c"} and ownership.ancestors_of(share.directory, "b") == {"c"}
    share.overlay("d", "d.x")
    share.overlay("d.x", "d")
    assert ownership.ancestors_of(share.directory, "d") == set()


def test_files_named_after_it_are_its_own_unless_another_one_claims_them(share: Files) -> None:
    share.chain("v", "v.x", "w")
    assert ownership.ancestors_of(share.directory, "v") == {"w"}
    share.record("v.x", v_x="qcow2")
    assert ownership.ancestors_of(share.directory, "v") == {"v.x", "w"}


# -- formats, overlays and clones --------------------------------------------------------------------------------------


def test_the_format_of_a_file_below(share: Files) -> None:
    share.raw("vol", "vol.s")
    share.record("vol", vol="raw", vol_s="qcow2")
    assert ownership.format_of_another(share.directory, "env", "vol") == "raw"
    assert ownership.format_of_another(share.directory, "env", "vol.s") == "qcow2"
    assert ownership.format_of_another(share.directory, "vol", "vol.s") is None  # of its own files it is not asked
    assert ownership.format_of_another(share.directory, "env", "other") is None
    (share.path / "vol.s").unlink()
    assert ownership.format_of_another(share.directory, "env", "vol.s") is None
    share.info("cinders", "cinders")
    share.raw("cinders")
    assert ownership.format_of_another(share.directory, "env", "cinders") is None


@pytest.mark.parametrize("kept_as", ["marks", "disks"])
def test_a_record_that_outlived_its_file_says_no_format(share: Files, kept_as: str) -> None:
    share.raw("vol")
    inode = (share.path / "vol").stat().st_ino
    for mark, told in (((inode, 512), "raw"), ((inode + 1, 512), None), ((0, 512), "raw"), ((0, 9), "raw"), ((inode, 512, 7), "raw")):
        kept = {"vol": records.Disk(*mark)}
        share.record("vol", vol="raw", marks=kept if kept_as == "marks" else None, disks=kept if kept_as == "disks" else None)
        assert ownership.format_of_another(share.directory, "env", "vol") == told


def test_of_what_cannot_be_read_no_format_is_known(share: Files) -> None:
    share.record("vol", vol="raw")
    (share.path / "vol").symlink_to("elsewhere")
    assert ownership.format_of_another(share.directory, "env", "vol") is None


def test_overlays_of_a_volume_without_an_info(share: Files) -> None:
    share.chain("v.s", "v")
    share.overlay("v.t", "/vols/v.s", None)
    share.overlay("v.base", None)
    share.overlay("v.info", "v")
    share.overlay("v.clone", "v")
    share.record("v.clone", v_clone="qcow2")
    share.overlay("v.no name", "v")
    share.overlay("v2.s", "v")
    share.raw("v.raw")
    (share.path / "v.link").symlink_to("v.s")
    assert ownership.overlays_named_after(share.directory, "v") == {"v.s": "v", "v.t": "v.s"}


def test_an_overlay_that_goes_while_names_are_read(share: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    share.chain("v.s", "v")
    monkeypatch.setattr(Directory, "names_from", lambda _directory, _prefix: ["v.gone", "v.s"])
    assert ownership.overlays_named_after(share.directory, "v") == {"v.s": "v"}


def test_clones_are_told_by_their_volume_or_their_file(share: Files) -> None:
    share.record("env", env="qcow2", env_s="qcow2")
    backings = Backings()
    for file, names in (("env.s", ["b"]), ("lone\n", ["b", "a"]), ("v.t", ["a"]), ("far", ["elsewhere"])):
        backings.put(file, names)
    found = ownership.dependents_on(share.directory, ["a", "b"], ["v.t"], backings)
    assert found == (("env", "b"), ("lone\\n", "a"), ("lone\\n", "b"))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_file_that_two_volumes_claim_is_refused(share: Files) -> None:
    volume = Volume("v", images("v.s", "v"), stale=(("gone", "v.old"),))
    ownership.require_own_files(share.directory, volume)
    share.record("v", v="raw", v_s="qcow2", v_old="qcow2")
    ownership.require_own_files(share.directory, volume)
    for file in ("v.s", "v.old"):
        share.record(file, **{file: "raw"})
        with pytest.raises(Conflict, match=f"file {file} on .*: volume v and volume {file} both claim it; see which .info is wrong"):
            ownership.require_own_files(share.directory, volume)
        (share.path / f".remotefs/volumes/{file}.json").unlink()
    share.record("v.x", v_x="raw")
    ownership.require_own_files(share.directory, Volume("v.x", images("v.x")))
    share.record("v", v="raw", v_x="qcow2")  # of a volume's own name another check decides
    ownership.require_own_files(share.directory, Volume("v.x", images("v.x")))


def test_a_name_is_free_if_nothing_has_it(share: Files) -> None:
    ownership.require_free_name(share.directory, "v.s", "v")
    share.raw("v.s")
    with pytest.raises(Conflict, match="file v.s on .*: the name is taken by a file that is not this volume's; remove or rename it"):
        ownership.require_free_name(share.directory, "v.s", "v")
    share.record("v", v_s="qcow2")
    with pytest.raises(Conflict, match="the name is taken by a file that is not this volume's"):
        ownership.require_free_name(share.directory, "v.s", "v")
    with pytest.raises(Conflict, match="the name belongs to volume v;"):
        ownership.require_free_name(share.directory, "v.s", "v.s")
    for kind, make in (("link", lambda path: os.symlink("v.s", path)), ("folder", os.mkdir), ("pipe", os.mkfifo)):
        make(share.path / kind)
        with pytest.raises(Conflict, match="something that is no regular file has this name"):
            ownership.require_free_name(share.directory, kind, "v")
