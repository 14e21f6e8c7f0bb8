# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volumes of a directory, attached by os-brick. The labs have the same for shares on servers (tests/integration/attach_by_os_brick.py)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from os_brick.initiator.connectors.local import LocalConnector
from os_brick.initiator.connectors.remotefs import RemoteFsConnector

from .brick import Brick, Volumes


@pytest.mark.parametrize("snapshot", [False, True], ids=["no snapshot", "snapshot"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_volume_of_a_directory(directory: Path, image_format: str, snapshot: bool) -> None:
    made = Volumes(str(directory))
    made.make("db01", image_format, snapshot)
    (told,) = made.told()
    assert told["connection"]["data"]["format"] == ("qcow2" if snapshot else image_format)
    brick = made.require_attached(told)
    assert isinstance(brick.connector, LocalConnector) and not brick.commands


def test_the_other_connectors_are_those_of_the_labs() -> None:
    for protocol in ("nfs", "glusterfs", "smbfs"):
        made = Brick({"driver_volume_type": protocol, "data": {}, "mount_point_base": "/mnt"})
        assert isinstance(made.connector, RemoteFsConnector) and made.connector.get_search_path() == "/mnt"


def test_the_example_of_the_guide(directory: Path, tmp_path: Path) -> None:
    """It gets the volume as a task returned it, and says where os-brick has it."""
    (guide,) = re.findall(r"^```python\n(.*?)^```$", (Path(__file__).parents[2] / "docs" / "attach.md").read_text(), re.MULTILINE | re.DOTALL)
    made = Volumes(str(directory))
    made.make("db01", "raw", True)
    (told,) = made.told()
    (tmp_path / "db01.json").write_text(json.dumps(told))
    script = tmp_path / "attach.py"
    script.write_text(guide)
    done = subprocess.run([sys.executable, "-W", "ignore", str(script), str(tmp_path / "db01.json")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{told['path']} qcow2\n"), done.stderr
