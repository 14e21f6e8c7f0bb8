# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show volumes to people: the chain of one volume as a drawing, many volumes as a table.

Documented in chain_picture.yml and volume_table.yml.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible.errors import AnsibleFilterError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SHOWN_SNAPSHOTS = 3


def chain_picture(volume: object) -> str:
    """The chain of one volume as lines of text. :param volume: a volume as the modules return it.

    :raises AnsibleFilterError: ``volume`` is not a volume.
    """
    _check_volume("chain_picture", volume)
    if "error_code" in volume:
        return f"{volume['name']}: cannot be read ({volume['error_code']}): {_one_line(volume.get('msg'))}"
    snapshots_by_file = {}
    for snapshot in volume["snapshots"]:
        snapshots_by_file.setdefault(snapshot["file"], []).append(snapshot)
    chain = list(volume["chain"])
    rows = [_image(image, first=place == 0, last=place == len(chain) - 1) for place, image in enumerate(chain)]
    lines = [f"{volume['name']}: {human_size(volume['size'])}, {human_size(volume.get('allocated'))} on disk" + _state(volume)]
    for image, row in zip(chain, aligned(rows, right=(2, 3))):
        lines.append("  " + row)
        if image["backing_file"] is not None:
            lines.extend("  |  " + _snapshot(snapshot) for snapshot in snapshots_by_file.get(image["file"], []))
            if image["file"] not in snapshots_by_file:
                lines.append("  |")
    lines.extend("  " + relation for relation in _relations(volume))
    return "\n".join(lines)


def volume_table(volumes: object) -> str:
    """The volumes as a table with aligned columns and a heading. :param volumes: a list of volumes as the modules return them.

    :raises AnsibleFilterError: ``volumes`` is not a list of volumes.
    """
    if isinstance(volumes, (str, bytes, Mapping)) or not isinstance(volumes, Sequence):
        raise AnsibleFilterError("remotefs.storage.volume_table: the input must be a list of volumes, such as the volumes of remotefs_volume_info.")
    rows = [["NAME", "SIZE", "ALLOCATED", "FORMAT", "SNAPSHOTS", "SHARE"]]
    for volume in volumes:
        _check_volume("volume_table", volume)
        rows.append(_row(volume))
    return "\n".join(aligned(rows, right=(1, 2)))


def human_size(size: object) -> str:
    """A size in bytes as text, in powers of 1024 with at most one decimal: ``1536`` is ``1.5 KiB``. None, an unknown size, is ``?``."""
    if size is None:
        return "?"
    tenths, unit = int(size) * 10, 0
    while tenths >= 10235 and unit < len(_UNITS) - 1:
        tenths, unit = tenths / 1024, unit + 1
    tenths = round(tenths)
    whole, rest = divmod(tenths, 10)
    return f"{whole}.{rest} {_UNITS[unit]}" if rest else f"{whole} {_UNITS[unit]}"


def aligned(rows: list, right: tuple) -> list:
    """Rows of cells (lists of text of one length) as lines of text with aligned columns. :param right: the numbers of columns to align right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(cell.rjust(width) if number in right else cell.ljust(width) for number, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def _check_volume(name: str, volume: object) -> None:
    if not isinstance(volume, Mapping) or "name" not in volume or not ("error_code" in volume or {"chain", "snapshots", "size"} <= set(volume)):
        raise AnsibleFilterError(
            f"remotefs.storage.{name}: this is no volume as remotefs_volume and remotefs_volume_info return it (result.volume, or one of result.volumes)."
        )


def _image(image: Mapping, first: bool, last: bool) -> list:
    place = " and ".join(word for word, here in (("active", first), ("base", last)) if here)
    return [image["file"], image["format"] or "?", human_size(image.get("size")), f"{human_size(image.get('allocated'))} on disk", place]


def _snapshot(snapshot: Mapping) -> str:
    parts = [f"snapshot {snapshot['name']}"]
    if snapshot.get("created"):
        parts.append(_when(str(snapshot["created"])))
    text = ", ".join(parts)
    described = _one_line(snapshot.get("description"))
    return f"{text}: {described}" if described else text


def printable(text: object) -> str:
    """Free text from a share without control characters, which could manipulate a terminal. None is empty."""
    return "".join(character if character.isprintable() else " " for character in str("" if text is None else text))


def _one_line(text: object) -> str:
    """Free text from a share as one line."""
    return " ".join(printable(text or "").split())


def _when(created: str) -> str:
    """``2026-11-22T14:40:07Z`` as ``2026-11-22 14:40 UTC``; a text of another form stays as it is."""
    day, separator, time = created.partition("T")
    return f"{day} {time[:5]} UTC" if separator and time.endswith("Z") and len(time) >= 6 else created


def _state(volume: Mapping) -> str:
    state = ""
    if volume.get("in_use"):
        state += ", in use"
    if volume.get("pending"):
        state += f", interrupted: {volume['pending'].get('operation')}"
    return state


def _relations(volume: Mapping) -> list:
    """Lines about the volume that this one rests on, and about the volumes that rest on it."""
    lines = []
    if volume.get("parent"):
        lines.append("rests on " + _point(volume["parent"]))
    for clone in volume.get("dependents") or []:
        beneath = f"snapshot {clone['snapshot']}" if clone.get("snapshot") else "it"
        lines.append(f"volume {clone['volume']} rests on {beneath}")
    return lines


def _point(parent: Mapping) -> str:
    return f"volume {parent['volume']}" + (f", snapshot {parent['snapshot']}" if parent.get("snapshot") else "")


def _row(volume: Mapping) -> list:
    if "error_code" in volume:
        return [volume["name"], "-", "-", volume["error_code"], "-", str(volume.get("share") or "-")]
    active, base = volume.get("format") or "?", volume.get("base_format") or "?"
    shown = active if active == base else f"{active} on {base}"
    sizes = [human_size(volume["size"]), human_size(volume.get("allocated"))]
    return [volume["name"], *sizes, shown, _names(volume["snapshots"]), str(volume.get("share") or "-")]


def _names(snapshots: Sequence) -> str:
    names = [snapshot["name"] for snapshot in snapshots]
    if len(names) > _SHOWN_SNAPSHOTS:
        return f"{len(names)}, newest {names[-1]}"
    return ", ".join(names) or "-"


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict:
        """The filters by name."""
        return {"chain_picture": chain_picture, "volume_table": volume_table}
