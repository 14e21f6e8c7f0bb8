# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Sphinx builds the site from: the Markdown pages of the repository where they stand, beside pages that antsibull-docs made.

No page is written for the site alone. docs/README.md is its first page, and the menu has that page's headings and links, in its order.
Links are those of the repository, so they work there, too; here they are led to where a page is on the site.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from . import machine

CHECKOUT = machine.CHECKOUT
INDEX = "docs/README.md"
REFERENCE = "reference"  # of antsibull-docs
#: Not pages, and not what a page shows.
LEFT_OUT = ("docs/docsite",)

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_MENU = re.compile(r"^## (?P<caption>.+)$|^(?:[-*]|\d+\.) .*?\[(?P<title>[^\]]+)\]\((?P<path>[^)#\s:]+)(?:#[^)\s]*)?\)", re.MULTILINE)


class DeadLink(Exception):
    """A page links to a file that is not there, or not on the site."""


class Site(NamedTuple):
    """Pages and other files of the repository, by where they are in the repository and on the site; both with slashes."""

    places: dict[str, str]

    @staticmethod
    def of_checkout(checkout: Path) -> Site:
        """The pages are docs/, the READMEs, and what contributors read."""
        places = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.rst": "changelog.rst", "SUPPORT.md": "support.md",
                  "SECURITY.md": "report-security.md", "CODE_OF_CONDUCT.md": "conduct.md"}
        places["plugins/modules"] = f"{REFERENCE}/index.rst"
        for path in sorted((checkout / "docs").rglob("*")):
            name = path.relative_to(checkout).as_posix()
            if path.is_file() and not name.startswith(LEFT_OUT) and "__pycache__" not in name:
                places[name] = name.partition("/")[2]
        for path in sorted(checkout.glob("roles/*/README.md")):
            places[path.relative_to(checkout).as_posix()] = f"roles/{path.parent.name}.md"
        for path in sorted((checkout / "plugins" / "modules").glob("*.py")):
            places[path.relative_to(checkout).as_posix()] = f"{REFERENCE}/{path.stem}_module.rst"
        places[INDEX] = "index.md"
        return Site(places)

    def link(self, page: str, path: str) -> str:
        """What the link ``path`` of a page of the repository is on the site. :raises DeadLink:"""
        wanted = os.path.normpath((PurePosixPath(page).parent / path).as_posix())
        if wanted not in self.places:
            raise DeadLink(f"{page}: {path} is not a page or file of the site")
        return os.path.relpath(self.places[wanted], PurePosixPath(self.places[page]).parent.as_posix())

    def text(self, page: str, text: str) -> str:
        """A Markdown page for the site: its links lead to pages there. :raises DeadLink:"""
        def led(match: re.Match) -> str:
            return self.link(page, match["path"]) + (match["anchor"] or "")

        parts, end = [], 0
        for fence in _FENCE.finditer(text):
            parts += [_LINK.sub(led, text[end : fence.start()]), fence[0]]
            end = fence.end()
        return "".join([*parts, _LINK.sub(led, text[end:])])


def parts_of_menu(text: str) -> dict[str, dict[str, str]]:
    """The menu of the site, from the first page: for each heading the first links in the lines of its list, as pages with their titles."""
    found: dict[str, dict[str, str]] = {}
    caption = ""
    for match in _MENU.finditer(_FENCE.sub("", text)):
        if match["caption"]:
            caption = match["caption"]
        elif caption:
            found.setdefault(caption, {})[re.sub(r"\.(md|rst)$", "", match["path"])] = match["title"].replace("`", "")
    return found


def menu(text: str) -> str:
    """The same as MyST has it."""
    told = ""
    for caption, pages in parts_of_menu(text).items():
        lines = [f"{title} <{page}>" for page, title in pages.items()]
        told += "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", "", ""])
    return told


def put_together(place: Path) -> int:
    """Writes the sources of the site into ``place``, where antsibull-docs has written its pages. Returns the number of Markdown pages.

    :raises DeadLink: a link leads nowhere.
    """
    site = Site.of_checkout(CHECKOUT)
    pages = 0
    for name, where in site.places.items():
        if where.startswith(REFERENCE):
            continue
        target = place / where
        target.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith(".md"):
            shutil.copyfile(CHECKOUT / name, target)
            continue
        text = site.text(name, (CHECKOUT / name).read_text())
        target.write_text(f"{text}\n{menu(text)}" if name == INDEX else text)
        pages += 1
    (place / "_static").mkdir(exist_ok=True)
    shutil.copyfile(CHECKOUT / "docs" / "docsite" / "site.css", place / "_static" / "site.css")
    shutil.copyfile(CHECKOUT / "docs" / "docsite" / "conf.py", place / "conf.py")
    return pages
