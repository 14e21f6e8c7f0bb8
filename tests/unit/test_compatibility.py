# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/compatibility.md claims what the stages run, and nothing else."""
from __future__ import annotations

import re
from pathlib import Path

import yaml
from sessions import machine, stages

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "compatibility.md").read_text()
NOXFILE = (CHECKOUT / "noxfile.py").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The table of a part of the page: its first column, and the others."""
    text = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    assert lines[1][0] == "---"
    return {first: others for first, *others in lines[2:]}


def test_the_controllers() -> None:
    table = rows("Controllers")
    assert tuple(table) == stages.CORES
    for core, (pythons, _stages) in table.items():
        assert tuple(pythons.split(", ")) == stages.PYTHONS[core]
    declared = yaml.safe_load((CHECKOUT / "meta" / "runtime.yml").read_text())["requires_ansible"]
    assert f"ansible-core {declared.removeprefix('>=').removesuffix('.0')} or newer" in PAGE
    between = re.search(r"(2\.\d+) and (2\.\d+) are between two that are tested", PAGE).groups()
    oldest, newest = (int(version.split(".")[1]) for version in (stages.OLDEST, stages.NEWEST))
    assert {f"2.{minor}" for minor in range(oldest, newest + 1)} - set(stages.CORES) == set(between)
    assert ("sanity" in table[stages.OLDEST_SANITY][1]) and "sanity" not in table[stages.OLDEST][1]


def test_the_hosts() -> None:
    table = rows("Managed hosts")
    assert table["Python"][0] == f"{stages.OLDEST_TARGET_PYTHON} or newer"
    oldest = ".".join(map(str, qemu_img.MINIMUM_VERSION))
    assert table["qemu-img, where it is needed"][0] == table["QEMU of running machines"][0] == f"{oldest} or newer"
    release, version = re.search(r"QEMU (\d+) of Debian (\w+)", table["QEMU of running machines"][1]).groups()[::-1]
    assert f'"{release}", place' in NOXFILE and f'"LIVE_QEMU": "{version}"' in NOXFILE


def test_the_shares() -> None:
    """Those that docs/file-systems.md calls tried are here, each with a lab of its own."""
    tried = re.findall(r"^\| `([\w-]+)` \|.*\| tried here.*\|$", (CHECKOUT / "docs" / "file-systems.md").read_text(), re.MULTILINE)
    named = {"directory": "a directory", "bind": "a directory", "nfs": "NFS 4.2", "cifs": "SMB 3.1.1", "glusterfs": "GlusterFS", "sshfs": "sshfs",
             "cephfs": "CephFS", "ceph-fuse": "CephFS"}
    assert {named[kind] for kind in tried} == set(rows("Shares")) - {"NFS 3"}


def test_other_programs() -> None:
    table = rows("Other programs")
    for name, packages in (("cinder", machine.CINDER_PACKAGES), ("glance", machine.GLANCE_PACKAGES)):
        (cells,) = (cells for program, cells in table.items() if name in program.lower())
        assert any(re.fullmatch(rf"{name}[~=]=({re.escape(cells[0])})(\.0)?", package) for package in packages)
    assert "molecule" in machine.TOOL_PACKAGES


def test_the_stages() -> None:
    """Each one named is a stage; those that run only at night are marked."""
    daily, nightly = set(stages.names()), {stage.name for stage in stages.NIGHTLY}
    for heading in re.findall(r"^## (.*)$", PAGE, re.MULTILINE):
        for cells in rows(heading).values():
            for name, marked in re.findall(r"`(\w+)`( \(\*nightly\*\)| \*nightly\*)?", cells[-1]):
                assert name in daily | nightly, name
                assert bool(marked) == (name in nightly or (name == "sanity" and cells[0] != "all")), name
