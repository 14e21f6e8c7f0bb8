# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system is one row: no code outside the tables names one, what documents them equals the tables, and a new row alone is enough."""
from __future__ import annotations

import ast
import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.doc_fragments import store
from ansible_collections.remotefs.storage.plugins.module_utils import command, localities, model
from ansible_collections.remotefs.storage.plugins.module_utils.localities import LOCALITIES, Locality
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import (
    file_systems,
    observer,
    options,
    parameters,
    planner,
    probe,
    record,
    resolve,
    sources,
    tables,
    types,
)
from ansible_collections.remotefs.storage.plugins.module_utils.operations import candidates, placement, report, shares
from ansible_collections.remotefs.storage.plugins.module_utils.store.locks import kernel_users
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import resolving
from ansible_collections.remotefs.storage.plugins.modules import remotefs_share

REPOSITORY = Path(__file__).resolve().parents[3]
PLUGINS = REPOSITORY / "plugins"
TABLES = ("module_utils/mounts/types.py", "module_utils/mounts/file_systems.py", "module_utils/localities.py")
NAMES = {name for row in types.rows() for name in (row.name, row.mount_type, *row.kernel_types) if name} | {row.kernel_type for row in LOCALITIES}
# Names that are words of English or of paths: no code may have them as a whole string, but text may hold them.
WORDS = {"directory", "bind", "overlay", "proc", "none"}
MAY_SAY = {
    ("planner.py", "directory"): "a key of the diff of a share",
    ("making_room.py", "overlay"): "the name of a file in memory",
    ("folders.py", "zfs"): "the name of a folder of snapshots",
    ("automount.py", "autofs"): "a message names the service that the user has to look at",
    ("applier.py", "autofs"): "the same",
    ("shares.py", "autofs"): "the same",
    ("command_line.py", "fuse"): "a kind of export of qemu-storage-daemon",
    ("guard.py", "fuse"): "the same",
    ("holder.py", "fuse"): "the same, in the daemon's own messages",
    ("targets.py", "fuse"): "a device, without which there is no such export",
}
NOTHING = "none"  # of any list or state; mount(8) has the word for a bind mount's type


def strings(path: Path) -> list[str]:
    """The strings of a source file, without docstrings and documentation."""
    tree = ast.parse(path.read_text())
    told: set[ast.AST] = set()
    for node in ast.walk(tree):
        documentation = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("DOCUMENTATION", "EXAMPLES", "RETURN")
        if documentation or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            told |= set(ast.walk(node))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in told]


def named(text: str) -> set[str]:
    """The names of file systems in a string: as words, and those that are words themselves only where they are the whole."""
    words = {word.strip(".-") for word in re.findall(r"[A-Za-z0-9._-]+", text)}
    return ((words & NAMES) - WORDS) | ({text} & NAMES - {NOTHING})


@pytest.mark.parametrize("path", sorted([*(PLUGINS / "module_utils").rglob("*.py"), *(PLUGINS / "modules").glob("*.py")]), ids=lambda path: path.stem)
def test_no_code_outside_the_tables_names_a_file_system(path: Path) -> None:
    if str(path.relative_to(PLUGINS)) not in TABLES:
        assert not {name for text in strings(path) for name in named(text) if (path.name, name) not in MAY_SAY}


def test_the_exceptions_are_needed() -> None:
    for file, name in MAY_SAY:
        assert any(name in named(text) for path in PLUGINS.rglob(file) for text in strings(path)), f"{file} does not say {name} any more"


@pytest.mark.parametrize("text", ["nfs", "directory", "fuse.", r"(nfs|cifs|smb3)", "see -t nfs4", "autofs"])
def test_what_the_search_finds(text: str) -> None:
    assert named(text)


@pytest.mark.parametrize("text", ["the directory", "none", "/proc/self/fd", "nfs_shares", "system.nfs4_acl", "//nas1/vols"])
def test_what_the_search_passes_over(text: str) -> None:
    assert not named(text)


# -- what documents the table


def options_of(module: object) -> dict:
    return yaml.safe_load(module.DOCUMENTATION)["options"]


def test_the_documented_choices_are_the_rows() -> None:
    documented, spec = options_of(remotefs_share), remotefs_share._share_spec(True)
    choices = [types.AUTO, *(row.name for row in types.rows()), types.OTHER]
    assert documented["fstype"]["choices"] == documented["shares"]["suboptions"]["fstype"]["choices"] == spec["fstype"]["choices"] == choices
    assert documented["fstype"]["default"] == types.AUTO
    assert documented["state"]["choices"] == documented["shares"]["suboptions"]["state"]["choices"] == spec["state"]["choices"] == list(planner.STATES)


def test_the_documented_places_are_the_constants() -> None:
    assert yaml.safe_load(store.ModuleDocFragment.DOCUMENTATION)["options"]["mount_base"]["default"] == model.MOUNT_BASE
    for documented in (options_of(remotefs_share), yaml.safe_load(store.ModuleDocFragment.SHARES)["options"]):
        assert documented["mount_base"]["default"] == model.MOUNT_BASE and documented["fstab"]["default"] == tables.FSTAB


@pytest.mark.parametrize("constant", [model.MOUNT_BASE, tables.FSTAB])
def test_each_place_is_written_once(constant: str) -> None:
    said = [str(path.relative_to(PLUGINS)) for path in PLUGINS.rglob("*.py") if "doc_fragments" not in path.parts and constant in strings(path)]
    assert len(said) == 1


def test_the_documented_packages_are_those_of_the_rows() -> None:
    wanted = next(line for line in yaml.safe_load(remotefs_share.DOCUMENTATION)["requirements"] if "packages" in line)
    page, packages = (REPOSITORY / "README.md").read_text(), (REPOSITORY / "bindep.txt").read_text()
    for row in types.rows():
        if row.package:
            assert row.package in wanted and f"`{row.package}`" in page
            assert (f"{row.package} [platform:dpkg {row.name}]" in packages) == (not row.vendor) and row.vendor in wanted


def test_the_page_about_file_systems_has_each_row() -> None:
    page = (REPOSITORY / "docs" / "file-systems.md").read_text()
    names = {row.name for row in types.rows()}
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", page, re.MULTILINE)) == {"fstype", *names, types.OTHER}
    tried = re.findall(r"^\| `([a-z0-9-]+)`.*\| (tried here|not tried)[^|]*\|$", page, re.MULTILINE)
    assert {name for name, _how in tried} == {*names, types.OTHER}


def test_the_role_knows_the_packages_and_the_forms_of_the_rows() -> None:
    packages = yaml.safe_load((REPOSITORY / "roles/share/defaults/main.yml").read_text())["share_helper_packages"]
    wanted = {row.name: row.package for row in types.rows() if row.package and not row.vendor}
    assert packages["Debian"] == wanted and set(packages["RedHat"]) == set(wanted)
    rules = re.findall(r"regex_replace', '([^']+)', '([a-z0-9-]+)'", (REPOSITORY / "roles/share/tasks/helpers.yml").read_text())
    assert rules
    for row in types.rows():
        claimed = sources.claim(row.example)
        guessed = next((kind for pattern, kind in rules if re.search(pattern, row.example)), None)
        assert guessed == (claimed.name if claimed else None), row.example


# -- a new row


FAKE = types.FileSystem(
    name="fakefs",
    source=r"fake:[a-z]+(/.*)?",
    example="fake:vols",
    claims=r"fake:[a-z]+(/.*)?",
    kernel_types=("fuse.fakefs",),
    mount_type="fuse.fakefs",
    helper="mount.fakefs",
    package="fakefs-client",
    kernel_module="fakemod",
    no_module=("what is fakefs?",),
    by_process=True,
    root_in_source="alone",
    cinder_type="fakedriver",
    credentials="file",
    identity_options=("secrets", "nobody"),
    user_option="login",
    default_options=("quick",),
    shown=("quick", "rev", "login"),
    versions=("rev",),
    separating="alone",
    local_options=("fd",),
    attachable=("quick", "rev"),
    attachable_given=("secrets",),
    assumed=("rev=1",),
    unspellings=(("login=ann", "as-ann"),),
    keeps_modes=False,
    blind_with=("lockless",),
    renumbered_with=types.ALWAYS,
    stale_seconds=2.5,
)


class Host:
    """A host on which mount and umount work as told, and its table of mounts."""

    def __init__(self, path: str) -> None:
        self.path, self.live, self.ran = path, "", []
        self.fails = ""

    def mounts(self, *_args: object) -> tuple[tables.Mount, ...]:
        lines = ["1 0 8:1 / / rw - ext4 /dev/vda rw"]
        if self.live:
            lines.append(f"51 1 0:41 / {self.path} rw,relatime - fuse.fakefs fake:vols {self.live}")
        return tables.parse_mountinfo("\n".join(lines))

    def run(self, argv: list[str], **_how: object) -> command.Result:
        self.ran.append(argv)
        if self.fails:
            return command.Result(1, "", self.fails, argv=tuple(argv))
        given = [] if os.path.basename(argv[0]) == "umount" else argv[argv.index("-o") + 1].split(",")
        self.live = ",".join(["rw", *(word for word in given if not word.startswith("secrets=")), "login=ann", "fd=3"]) if given else ""
        return command.Result(0, "", "", argv=tuple(argv))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(str(tmp_path / "mnt"))
    monkeypatch.setattr(file_systems, "SERVED", (*file_systems.SERVED, FAKE))
    monkeypatch.setattr(tables, "read_mounts", made.mounts)
    monkeypatch.setattr(command, "run", made.run)
    monkeypatch.setattr(command, "find", lambda program, _package: program)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path / "records"))
    monkeypatch.setattr(parameters, "CREDENTIALS", str(tmp_path / "credentials"))
    return made


def given(tmp_path: Path, **changes: object) -> dict:
    params = {
        "src": "fake:vols", "path": str(tmp_path / "mnt"), "mount_base": str(tmp_path / "base"), "fstype": "auto", "opts": ["rev=2"], "state": "mounted",
        "credentials": {"username": "ann", "password": "x"}, "persist": True, "fstab": str(tmp_path / "fstab"), "attempts": 1, "timeout": 5,
    }
    return {**params, **changes}


def steps(result: dict) -> list[str]:
    assert not result["failed"], result["msg"]
    return [action["step"] for action in result["actions"]]


def test_a_new_row_is_mounted_and_taken_away(host: Host, tmp_path: Path) -> None:
    result = shares.ensure(given(tmp_path))
    assert steps(result) == ["write_credentials", "create_directory", "mount", "write_fstab"]
    secrets = parameters.credentials_file(host.path)
    assert host.ran == [["mount", "-t", "fuse.fakefs", "-o", f"quick,rev=2,secrets={secrets}", "fake:vols", host.path]]
    assert (tmp_path / "fstab").read_text() == f"fake:vols {host.path} fuse.fakefs quick,rev=2,secrets={secrets} 0 0\n"
    assert result["share"]["fstype"] == "fakefs" and result["share"]["opts"] == "rw,relatime,quick,rev=2,login=ann"
    assert steps(shares.ensure(given(tmp_path))) == [] == steps(shares.ensure(given(tmp_path, src=None)))
    assert steps(shares.ensure(given(tmp_path, credentials=None, opts=["rev=3"]))) == ["unmount", "mount", "write_fstab"]
    assert steps(shares.ensure(given(tmp_path, state="absent"))) == ["unmount", "remove_fstab", "remove_credentials"]


@pytest.mark.parametrize(("words", "told"), [(["rev=1"], "as-ann"), (["rev=2", "_netdev"], "rev=2,as-ann")])
def test_a_new_row_is_told_to_os_brick(host: Host, tmp_path: Path, words: list[str], told: str) -> None:
    """Its source as it was spelled and what the mount table hides come from the record that the task left."""
    shares.ensure(given(tmp_path, opts=words, persist=False))
    found = resolve.find_share(host.path, fstab="/dev/null")
    assert found.mount_words == f"quick,{told},secrets={parameters.credentials_file(host.path)}"
    (mount,) = [mount for mount in host.mounts() if mount.path == host.path]
    assert record.read(host.path, mount).source == "fake:vols"


def test_a_new_row_is_planned_by_its_columns(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares.ensure(given(tmp_path))
    desired = parameters.read_wish(given(tmp_path), host.mounts(), ())
    seen = observer.observe(desired, host.mounts(), (), shares._deadline(given(tmp_path)))
    assert desired.row is FAKE and seen.source == "fake:vols" and not seen.dead
    other = dataclasses.replace(desired, credentials=dataclasses.replace(desired.credentials, username="bob"))
    assert planner.drifted_options(desired, seen) == () and planner.drifted_options(other, seen) == ("login=bob",)
    assert options.drift(FAKE, ("rev=20",), ("rw", "rev=2.0")) == () and options.drift(FAKE, ("rev=21",), ("rw", "rev=2.0")) == ("rev=21",)
    named_twice = shares.ensure(given(tmp_path, opts=["nobody"]))
    assert named_twice["error_code"] == "invalid_parameter" and "opts name credentials" in named_twice["msg"]
    monkeypatch.setattr(observer, "_is_dead", lambda *_args: True)
    assert steps(shares.ensure(given(tmp_path))) == ["unmount", "mount"]
    assert "alone separates" in shares._why_not_in_force(desired, seen)


def test_the_advice_for_a_new_row_fits(host: Host, tmp_path: Path) -> None:
    host.fails = "what is fakefs?"
    result = shares.ensure(given(tmp_path))
    assert result["error_code"] == "mount_failed" and "modprobe fakemod" in result["msg"]


def test_a_new_row_is_found_and_reported(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(host.path)
    host.live = "rw,quick,rev=2,fd=3"
    for name in ("fake:vols", host.path):
        share = resolve.find_share(name, fstab="/dev/null")
        assert (share.source, share.path, share.fstype, share.export, share.local) == ("fake:vols", host.path, "fakefs", "fake:vols", False)
        assert (share.locks_visible, share.keeps_modes, share.keeps_inodes, share.stale_seconds) == (True, False, False, 2.5)
    volume = model.Volume(name="v", chain=(model.Image("v", "raw", 512),))
    told = report.volume(volume, share, None)["connection"]
    assert told["driver_volume_type"] == "fakedriver" and told["data"]["options"] == "-o quick,rev=2" and "device_path" not in told["data"]
    host.live = "rw,lockless"
    assert "(fakefs)" in resolve.find_share(host.path, fstab="/dev/null").label
    (described,) = shares.describe_all(None, model.MOUNT_BASE, "/dev/null", 5)
    assert (described["fstype"], described["mounted"]) == ("fakefs", True)
    asked: list[str] = []
    monkeypatch.setattr(probe, "capacity", lambda path, *_args: asked.append(path))
    assert candidates.find_candidates(host.path, model.MOUNT_BASE, "/dev/null").shares and asked == [host.path], "its server may not answer"
    host.live = ""
    expected = candidates.find_candidates("fake:vols", model.MOUNT_BASE, "/dev/null").missing[0]
    assert (expected.fstype, expected.local, expected.keeps_modes) == ("fakefs", False, False)


# -- a new file system that only this host uses


@pytest.mark.parametrize("row", [None, Locality("newfs", True, "on a disk", subvolumes=True, shares_blocks=True)], ids=["unlisted", "listed"])
def test_a_new_local_row_is_trusted_by_all_that_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Locality | None) -> None:
    """The same questions about a type that nobody has listed have the other answers."""
    text = f"1 0 8:1 / / rw - ext4 /dev/vda rw\n51 1 0:41 /sub {tmp_path} rw - newfs /dev/vdb rw\n"
    (tmp_path / "link").symlink_to("elsewhere")
    table = tmp_path / "proc/self/mountinfo"
    table.parent.mkdir(parents=True)
    table.write_text(text)
    monkeypatch.setattr(tables, "read_mounts", lambda *_args: tables.parse_mountinfo(text))
    monkeypatch.setattr(kernel_users, "ROOT", str(tmp_path))
    if row is not None:
        monkeypatch.setitem(localities._BY_TYPE, row.kernel_type, row)
    share = resolve.find_share(str(tmp_path), fstab="/dev/null")
    answers = (
        share.fstype == "directory",
        share.local and share.locks_visible and share.keeps_inodes,
        resolve.follow(f"{tmp_path}/link", tables.read_mounts()) == f"{tmp_path}/elsewhere",
        not resolve.is_bind(tables.read_mounts()[1]),
        placement._copies_share_blocks(share, candidates.Candidates((share,))),
        not kernel_users.KernelUsers(0)._may_hang(str(tmp_path / "v")),
        resolving._mounts(0)[str(tmp_path)],
    )
    assert set(answers) == {row is not None}, answers
