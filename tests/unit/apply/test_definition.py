# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of a domain's XML, and what is written back: one disk's image, and nothing else."""

from __future__ import annotations

import re

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import definition
from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt.definition import Unreadable

DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/><source file='/s/v.a' index='3'/>
<backingStore type='file' index='1'><format type='raw'/><source file='/s/v'/><backingStore/></backingStore><target dev='vda'/></disk>"""
OTHERS = """<disk type='file' device='cdrom'><target dev='sda'/></disk><disk type='block'><source dev='/dev/x'/><target dev='vdb'/></disk>
<disk type='file' device='disk'><source file='/s/w'/><target dev='vdc'/><readonly/></disk>"""
XML = f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>d</name>
<metadata><a:b xmlns:a='urn:a'>c</a:b></metadata><devices>{DISK}{OTHERS}</devices><qemu:commandline><qemu:arg value='x'/></qemu:commandline></domain>"""


def test_disks_are_read() -> None:
    first, second = definition.disks(XML)
    assert [(image.path, image.format, image.handle) for image in first.images] == [("/s/v.a", "qcow2", "vda[3]"), ("/s/v", "raw", "vda[1]")]
    assert (first.oddity, first.direct, first.mirror, first.is_ready) == (None, True, None, False)
    assert (second.target, second.oddity, second.images[0].format) == ("vdc", "readonly", None)
    assert definition.targets(XML) == ["vda", "sda", "vdb", "vdc"]


def test_a_mirror_is_read() -> None:
    for mirror, ready in (("<mirror type='file' job='active-commit' ready='yes'><source file='/s/v'/></mirror>", True), ("<mirror file='/s/v'/>", False)):
        (disk, *_others) = definition.disks(XML.replace("<target dev='vda'/>", f"<target dev='vda'/>{mirror}"))
        assert (disk.mirror, disk.is_ready) == ("/s/v", ready)


def test_only_the_image_changes() -> None:
    """What other programs keep in the definition stays, under the same prefixes."""
    changed = definition.with_image(XML, "vda", "/s/v.b & more", "qcow2")
    (disk, *_others) = definition.disks(changed)
    assert [(image.path, image.handle) for image in disk.images] == [("/s/v.b & more", None)]
    assert disk.direct and "io=\"native\"" in changed
    assert "qemu:arg" in changed and "a:b" in changed and "ns0" not in changed
    back = definition.with_image(changed, "vda", "/s/v.a", "qcow2")
    assert re.sub(r"\s", "", definition.with_image(XML, "vda", "/s/v.a", "qcow2")) == re.sub(r"\s", "", back)


def test_a_disk_that_is_not_there() -> None:
    with pytest.raises(Unreadable, match="vdz"):
        definition.with_image(XML, "vdz", "/s/v", "raw")


@pytest.mark.parametrize("text", ["", "<domain>", "no xml", "<domain><devices><disk type='file'></devices></domain>"])
def test_what_is_no_description(text: str) -> None:
    for read in (definition.disks, definition.targets, definition.paths_in, definition.disks_of_state, definition.agent_channel):
        with pytest.raises(Unreadable):
            read(text)


@pytest.mark.parametrize(
    "disks, expected",
    [
        ("<disk name='vda' snapshot='external'/>", {"vda"}),
        ("<disk name='vda' snapshot='no'/>", set()),
        ("<disk name='vda' checkpoint='no'/><disk name='vdb' checkpoint='bitmap'/>", {"vdb"}),
        ("<disk name='vda'/>", {"vda"}),
    ],
)
def test_the_disks_of_a_snapshot(disks: str, expected: set[str]) -> None:
    assert definition.disks_of_state(f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>") == expected


def test_overlays_are_described() -> None:
    made = definition.overlays_xml({"vda": "/s/<v>"}, ["vdb"])
    assert definition.disks_of_state(made) == {"vda"} and definition.paths_in(made) == {"/s/<v>"}
