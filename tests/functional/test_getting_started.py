# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/getting-started.md, followed by a reader who has nothing yet: the archive is built and installed, then all is done as it stands."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from sessions import stages, tree

from .played_pages import Command, follow, part, steps

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "getting-started.md").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's home, in which the collection is installed as the page says."""
    home = tmp_path_factory.mktemp("reader")
    checkout = tree.copy_tree(home / "checkout") / tree.COLLECTION
    assert len(follow(part(PAGE, "## Install"), checkout, reader(home))) == 3
    assert (home / ".ansible/collections/ansible_collections/remotefs/storage/MANIFEST.json").is_file()
    return home


def reader(home: Path) -> dict:
    """A reader's environment, without any path to the checkout and without settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_") and name != "PYTHONPATH"}
    programs = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    return {**kept, "HOME": str(home), "PATH": programs, "ANSIBLE_NOCOLOR": "1"}


def test_the_versions_are_those_of_the_tests() -> None:
    assert f"ansible-core {stages.OLDEST} to {stages.NEWEST} " in PAGE
    major, minor = stages.NEWEST.split(".")
    assert f"'ansible-core>={stages.OLDEST},<{major}.{int(minor) + 1}'" in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["## For platform engineers", "## For CI teams"])
def test_the_path(heading: str, home: Path, tmp_path: Path) -> None:
    typed = follow(part(PAGE, heading), tmp_path, reader(home))
    assert sum("ansible-playbook" in line for line in typed) >= 5


def test_no_block_is_left_out() -> None:
    found = [step for heading in ("## Install", "## For platform engineers", "## For CI teams") for step in steps(part(PAGE, heading))]
    assert len(re.findall(r"^\$ ", PAGE, re.MULTILINE)) == sum(isinstance(step, Command) for step in found)
    assert PAGE.count("```yaml") == sum(not isinstance(step, Command) for step in found)


@pytest.mark.parametrize(("says", "true"), [("two words", True), ("two\nwords", True), ("words\ntwo", False), ("none", False)])
def test_a_page_that_is_not_true_is_noticed(says: str, true: bool, tmp_path: Path) -> None:
    page = f"Save this as `a.yml`:\n\n```yaml\ntwo   words\n```\n\nThen:\n\n```console\n$ cat a.yml\n{says}\n```\n"
    if true:
        assert follow(page, tmp_path, dict(os.environ)) == ["cat a.yml"]
        return
    with pytest.raises(AssertionError, match="does not say"):
        follow(page, tmp_path, dict(os.environ))
