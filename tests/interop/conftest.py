# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume of Cinder's for each test, with a raw and with a qcow2 base file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Iterator

import pytest

from .turns import Turns

logging.getLogger("cinder").setLevel(logging.CRITICAL)


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not named after the test: Cinder cannot measure a share with "snapshot" in its path."""
    return tmp_path_factory.mktemp("cinder")


@pytest.fixture(params=["raw", "qcow2"])
def turns(request: pytest.FixtureRequest, directory: Path) -> Iterator[Turns]:
    world = Turns(directory, request.param == "qcow2")
    yield world
    world.close()
