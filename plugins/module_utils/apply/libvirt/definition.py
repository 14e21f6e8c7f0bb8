# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The description of a domain (libvirt's domain XML): what it says of disks, and the same with another image of a disk.

See https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms for the elements.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from xml.etree import ElementTree

AGENT = "org.qemu.guest_agent.0"
_WITHOUT_CACHE = ("none", "directsync")


class Unreadable(Exception):
    """What libvirt says is no description of a domain."""


@dataclass(frozen=True)
class Image:
    """A file in the chain of a disk: its path, its format (None: not said), and libvirt's name for it (``vda[2]``) while the domain runs."""

    path: str
    format: str | None
    handle: str | None


@dataclass(frozen=True)
class Disk:
    """A disk that is a file. ``target`` is its name, ``images`` are its files from the active one down, as far as they are said.

    ``oddity`` says what it is besides a plain disk, if anything. ``direct``: past the kernel's cache. ``mirror`` is the path of the file
    that a job is going to put in the place of the active image, and ``is_ready`` whether it could."""

    target: str
    images: tuple[Image, ...]
    oddity: str | None
    direct: bool
    mirror: str | None
    is_ready: bool


def disks(xml: str) -> list[Disk]:
    """The disks that are files. :raises Unreadable: it is no description of a domain."""
    return [_disk(element) for element in _parsed(xml).findall("./devices/disk") if element.find("source") is not None and element.get("type") == "file"]


def _disk(element: ElementTree.Element) -> Disk:
    target, driver, mirror = element.find("target"), element.find("driver"), element.find("mirror")
    name = (target.get("dev") if target is not None else None) or ""
    oddities = [word for word in ("readonly", "shareable", "transient") if element.find(word) is not None]
    if element.get("device", "disk") != "disk":
        oddities.append(str(element.get("device")))
    source = element.find("./mirror/source")
    mirrored = (source.get("file") if source is not None else None) or (mirror.get("file", "?") if mirror is not None else None)
    return Disk(
        target=name,
        images=tuple(_images(element, name)),
        oddity=oddities[0] if oddities else None,
        direct=driver is not None and driver.get("cache") in _WITHOUT_CACHE,
        mirror=mirrored,
        is_ready=mirror is not None and mirror.get("ready") == "yes",
    )


def _images(disk: ElementTree.Element, target: str) -> list[Image]:
    found: list[Image] = []
    element: ElementTree.Element | None = disk
    while element is not None:
        source = element.find("source")
        if source is None:
            break
        described = element.find("driver") if element is disk else element.find("format")
        index = source.get("index") or element.get("index")  # of the images below the backingStore has it
        handle = f"{target}[{index}]" if index and index.isdigit() else None
        found.append(Image(source.get("file") or "", described.get("type") if described is not None else None, handle))
        element = element.find("backingStore")
    return found


def paths_in(xml: str) -> set[str]:
    """Every path that some description of libvirt's (of a snapshot, of a domain) names as the source of a disk. :raises Unreadable: it is none."""
    return {str(source.get("file")) for source in _parsed(xml).iter("source") if source.get("file")}


def disks_of_state(xml: str) -> set[str]:
    """The disks that belong to a snapshot of libvirt's or to a checkpoint, by target. :raises Unreadable: it is neither."""
    found = set()
    for element in _parsed(xml).findall("./disks/disk"):
        if element.get("snapshot", "internal") != "no" and element.get("checkpoint", "bitmap") != "no" and element.get("name"):
            found.add(str(element.get("name")))
    return found


def with_image(xml: str, target: str, path: str, image_format: str) -> str:
    """The same description, in which a disk has this active image. What it says of the files below goes: libvirt reads that from the image.

    :raises Unreadable: there is no such disk.
    """
    root = _to_be_written(xml)
    for element in root.findall("./devices/disk"):
        named, source, driver = element.find("target"), element.find("source"), element.find("driver")
        if named is None or named.get("dev") != target or source is None:
            continue
        source.set("file", path)
        source.attrib.pop("index", None)
        if driver is None:
            driver = ElementTree.Element("driver", name="qemu")
            element.insert(0, driver)
        driver.set("type", image_format)
        for below in element.findall("backingStore"):
            element.remove(below)
        return ElementTree.tostring(root, encoding="unicode")
    raise Unreadable(f"it has no disk {target}")


def name_of(xml: str) -> str:
    """The name of the domain; empty if it has none. :raises Unreadable: it is no description of a domain."""
    return (_parsed(xml).findtext("name") or "").strip()


def with_uuid(xml: str, uuid: str) -> str:
    """The same description of a domain with this UUID. :raises Unreadable: it is no description of a domain."""
    root = _to_be_written(xml)
    if root.tag != "domain":
        raise Unreadable(f"it begins with {root.tag}")
    for element in root.findall("uuid"):
        root.remove(element)
    ElementTree.SubElement(root, "uuid").text = uuid
    return ElementTree.tostring(root, encoding="unicode")


def overlays_xml(overlays: dict[str, str], others: list[str]) -> str:
    """What libvirt is told to let disks use overlays that are there already.

    :param overlays: the path for each disk, by target. :param others: the targets of all other disks.
    """
    root = ElementTree.Element("domainsnapshot")
    told = ElementTree.SubElement(root, "disks")
    for target, path in overlays.items():
        disk = ElementTree.SubElement(told, "disk", name=target, snapshot="external", type="file")
        ElementTree.SubElement(disk, "driver", type="qcow2")
        ElementTree.SubElement(disk, "source", file=path)
    for target in others:
        ElementTree.SubElement(told, "disk", name=target, snapshot="no")
    return ElementTree.tostring(root, encoding="unicode")


def targets(xml: str) -> list[str]:
    """The names of all disks, also of those that are no files. :raises Unreadable: it is no description of a domain."""
    return [str(element.get("dev")) for element in _parsed(xml).findall("./devices/disk/target")]


def agent_channel(xml: str) -> str | None:
    """What libvirt says of the channel of the guest's agent while the domain runs: ``connected``, ``disconnected`` or nothing.

    None: there is no such channel. :raises Unreadable: it is no description of a domain.
    """
    for target in _parsed(xml).findall("./devices/channel/target"):
        if target.get("type") == "virtio" and target.get("name") == AGENT:
            return target.get("state") or ""
    return None


def _to_be_written(xml: str) -> ElementTree.Element:
    """As :func:`_parsed`, for text that is made from it again. Other programs keep parts there, which keep the prefixes of their names."""
    for prefix, uri in _prefixes(xml):
        ElementTree.register_namespace(prefix, uri)
    return _parsed(xml)


def _prefixes(xml: str) -> list[tuple[str, str]]:
    try:
        return [pair for _event, pair in ElementTree.iterparse(io.StringIO(xml), events=["start-ns"]) if pair[0]]
    except ElementTree.ParseError as error:
        raise Unreadable(str(error)) from error


def _parsed(xml: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise Unreadable(str(error)) from error
