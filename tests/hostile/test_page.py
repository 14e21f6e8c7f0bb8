# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/hostile-content.md says what the corpus says."""

from __future__ import annotations

import re

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img

from . import page, runner
from .corpus import ATTACKS
from .scene import LOOKING_AFTER, OK, TASKS


def test_the_page_has_the_tables_of_the_corpus() -> None:
    assert page.tables() in page.PAGE.read_text(), "run python tests/hostile/page.py"


def test_the_page_has_the_figures_of_the_code() -> None:
    text = re.sub(r"\s+", " ", page.PAGE.read_text())
    mib = 1 << 20
    for words in (
        f"{qemu_img._CPU_SECONDS} s and {qemu_img._CPU_SECONDS_PER_MIB} s more for each MiB",
        f"{qemu_img._CPU_SECONDS_PER_RAW_GIB} s for each GiB of a raw image",
        f"{qemu_img._MEMORY // mib // 1024} GiB and {qemu_img._MEMORY_PER_LAYER // mib} MiB more for each image",
        f"{runner.TIMEOUT} s",
        f"{runner.PEAK // mib} MiB",
    ):
        assert words in text, words


def test_outcomes_are_codes_and_tasks_that_exist() -> None:
    known = {one.error_code for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.StorageError)} | {OK}
    for attack in ATTACKS:
        assert set(attack.outcome) <= set(TASKS)
        assert {code for codes in attack.outcome.values() for code in codes.split("|")} <= known
    assert {task for attack in ATTACKS for task in attack.outcome}.union(LOOKING_AFTER) == set(TASKS)
