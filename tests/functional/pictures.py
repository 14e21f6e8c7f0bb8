# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of chains as SVG: what volumes are on shares, before and after an operation. They are drawn from what the collection says
of a volume, and from what QEMU says is in each file."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Iterator

from ansible_collections.remotefs.storage.plugins.filter.chain_picture import human_size

SLOT, SLOTS = 65536, 4  # a cell of a picture is one cluster of the disk
COLOURS = {"A": "#8ecae6", "B": "#95d5b2", "C": "#ffd166", "D": "#f4a6c0"}
BOX_WIDTH, BOX_HEIGHT, GAP, COLUMN, HEAD, MARGIN, BETWEEN = 226, 44, 24, 326, 62, 16, 56


@dataclass(frozen=True)
class File:
    """One file of a chain.

    :ivar cells: what the file itself holds of each cluster: a letter, or nothing.
    :ivar shows: whose data one sees through it: snapshots, and ``now`` for the active image.
    :ivar beneath: its backing file.
    """

    name: str
    form: str
    size: int
    cells: tuple[str, ...]
    shows: tuple[str, ...]
    beneath: str | None


@dataclass(frozen=True)
class Column:
    """The files of one volume, the active one first; those of a parent are in the parent's column."""

    title: str
    files: tuple[File, ...]


def column(title: str, volume: dict, apart: set[str]) -> Column:
    """The column of a volume. :param volume: as ``remotefs_volume_info`` returns it. :param apart: names of files that are in other columns."""
    chain = volume["chain"]
    folder = Path(volume["mountpoint"])
    beneath = {image["file"]: image["backing_file"] for image in chain}
    files = []
    for image in chain:
        if image["file"] in apart:
            continue
        shows = ["now"] * (image is chain[0]) + [point["name"] for point in volume["snapshots"] if beneath[point["file"]] == image["file"]]
        cells = cells_of(folder / image["file"], image["format"])
        files.append(File(image["file"], image["format"], image["size"], cells, tuple(shows), image["backing_file"]))
    return Column(title, tuple(files))


def cells_of(path: Path, form: str) -> tuple[str, ...]:
    """The letters that a file itself holds at the beginning of the first clusters of the disk."""
    told = subprocess.run(["qemu-img", "map", "--output=json", "-f", form, path], capture_output=True, text=True, check=True)
    cells = [""] * SLOTS
    for entry in json.loads(told.stdout):
        if entry["depth"] != 0 or not entry["data"]:
            continue
        for number in range(SLOTS):
            inside = number * SLOT - entry["start"]
            if 0 <= inside < entry["length"]:
                with path.open("rb") as stream:
                    stream.seek(entry["offset"] + inside)
                    cells[number] = stream.read(1).decode("ascii").strip("\0")
    return tuple(cells)


# ------------------------------------------------------------------------------------------------ drawing


def picture(said: str, before: tuple[Column, ...], after: tuple[Column, ...]) -> str:
    """Both states side by side as an SVG. :param said: what the operation is, for those who do not see it."""
    rows = max([1, *(len(one.files) for one in (*before, *after))])
    height = HEAD + rows * (BOX_HEIGHT + GAP) + MARGIN
    left = max(1, len(before)) * COLUMN
    width = 2 * MARGIN + left + BETWEEN + max(1, len(after)) * COLUMN
    middle = HEAD + rows * (BOX_HEIGHT + GAP) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif">',
        f"<title>{escape(said)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#fafafa"/>',
        *_panel("before", before, MARGIN, rows),
        _text(MARGIN + left + BETWEEN / 2 - 14, middle, "&#8594;", size=26, colour="#555"),
        *_panel("after", after, MARGIN + left + BETWEEN, rows),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _panel(title: str, columns: tuple[Column, ...], left: float, rows: int) -> Iterator[str]:
    yield _text(left, 24, title, size=15, weight="bold")
    if not columns:
        yield _text(left, HEAD + rows * (BOX_HEIGHT + GAP) - GAP - 16, "an empty share", colour="#777")
    places = {}
    for number, one in enumerate(columns):
        x = left + number * COLUMN
        yield _text(x, 46, one.title, colour="#555")
        for row, file in enumerate(one.files):
            places[one.title.rpartition(" on ")[2], file.name] = (x, _top(row, one, rows, columns))
    for one in columns:
        for file in one.files:
            x, y = places[one.title.rpartition(" on ")[2], file.name]
            if file.beneath is not None:
                yield _rests(x, y, *places[one.title.rpartition(" on ")[2], file.beneath])
            yield from _box(file, x, y)


def _top(row: int, one: Column, rows: int, columns: tuple[Column, ...]) -> float:
    """Chains stand on the ground. A clone, whose base is in another column, begins above that file."""
    ground = rows - len(one.files)
    lowest = one.files[-1].beneath
    for other in columns:
        for place, file in enumerate(other.files):
            if lowest == file.name and other is not one:
                ground = max(0, rows - len(other.files) + place - len(one.files))
    return HEAD + (ground + row) * (BOX_HEIGHT + GAP)


def _box(file: File, x: float, y: float) -> Iterator[str]:
    border, thick = ("#1d3557", 2) if "now" in file.shows else ("#888", 1)
    yield f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4" fill="#fff" stroke="{border}" stroke-width="{thick}"/>'
    yield _text(x + 8, y + 18, escape(file.name), weight="bold", family="monospace")
    yield _text(x + 8, y + 35, f"{file.form}, {human_size(file.size)}", size=11, colour="#555")
    for number, letter in enumerate(file.cells):
        at = x + BOX_WIDTH - 8 - (SLOTS - number) * 19
        yield f'<rect x="{at}" y="{y + 13}" width="18" height="18" fill="{COLOURS.get(letter, "#fff")}" stroke="#bbb"/>'
        if letter:
            yield _text(at + 5, y + 27, letter, size=12)
    for number, name in enumerate(file.shows):
        yield _text(x + BOX_WIDTH + 6, y + 18 + 16 * number, f"&#9666; {escape(name)}", weight="bold" if name == "now" else "normal")


def _rests(x: float, y: float, beneath_x: float, beneath_y: float) -> str:
    """A line from the file to the one beneath it."""
    start, middle = (x + 20, y + BOX_HEIGHT), (y + BOX_HEIGHT + 11)
    return (f'<path d="M{start[0]} {start[1]} V{middle} H{beneath_x + (20 if beneath_x == x else BOX_WIDTH - 20)} V{beneath_y}" '
            'fill="none" stroke="#555" stroke-width="1.5"/>')


def _text(x: float, y: float, text: str, size: int = 12, weight: str = "normal", colour: str = "#111", family: str = "") -> str:
    more = f' font-family="{family}"' if family else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}"{more}>{text}</text>'
