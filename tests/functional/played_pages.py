# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages that tell a reader to save files and to type commands, read as such a reader does.

A YAML block is a file if the last line before it names one (``Save this as `site.yml`:``). In a console block, lines with a dollar are
commands, and the lines below one are found in what it says, in this order.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Iterator, NamedTuple

_BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<kind>yaml|console)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`(?P<name>[\w.-]+\.yml)`")


class SavedFile(NamedTuple):
    """A file that the reader writes."""

    name: str
    text: str


class Command(NamedTuple):
    """What the reader types, and what is said then."""

    line: str
    says: tuple[str, ...]


def part(text: str, heading: str) -> str:
    """The part of a page below one of its headings, up to the next one of that level."""
    level = heading.partition(" ")[0]
    (found,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^{level} |\Z)", text, re.MULTILINE | re.DOTALL)
    return found


def steps(text: str) -> Iterator[SavedFile | Command]:
    """What the reader does, in order. Every YAML block must be named, so that none is left out."""
    for block in _BLOCK.finditer(text):
        if block["kind"] == "yaml":
            names = _NAMED.findall(block["before"])
            assert len(names) == 1, f"which file is this? {block['before']}"
            yield SavedFile(names[0], block["text"])
            continue
        for command in re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]:
            line, *says = command.splitlines()
            yield Command(line, tuple(says))


def follow(text: str, place: Path, environment: dict) -> list[str]:
    """Does in ``place`` all that a page says, and compares. Returns the commands."""
    typed = []
    for step in steps(text):
        if isinstance(step, SavedFile):
            (place / step.name).write_text(step.text)
            continue
        typed.append(step.line)
        done = subprocess.run(["bash", "-euc", step.line], cwd=place, env=environment, capture_output=True, text=True, check=False)
        said = _words(done.stdout + done.stderr)
        assert done.returncode == 0, f"{step.line}: {done.stdout}{done.stderr}"
        at = 0
        for line in map(_words, step.says):
            found = said.find(line, at)
            assert found >= 0, f"{step.line} does not say {line!r} (there): {said}"
            at = found + len(line)
    return typed


def _words(text: str) -> str:
    """Text with single spaces: columns are wider on one file system than on another."""
    return " ".join(text.split())
