# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``actions`` predicts what a merge writes to within 10 %, one pass writes as much less than one by one as it should, no content changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .measuring import PAGE
from .merge_bytes import SHAPES, Shape, measure_shape

WITHIN = 0.10
RECORDS = 32 << 10  # bytes at most of .info, intent and records, which no estimate counts


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_prediction(tmp_path: Path, shape: Shape) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = measure_shape(shape, scratch)
    assert abs(result.predicted - result.written) <= WITHIN * result.written, result
    assert (result.written - RECORDS) * shape.saves <= min(result.top_down, result.bottom_up), result


def test_the_page_shows_these_shapes() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [\d.]+ MiB \| [\d.]+ MiB \| ([\d.]+) \| [\d.]+ \| [\d.]+ \|$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ratio in rows] == [shape.name for shape in SHAPES], "run scripts/bench --write-docs"
    assert all(abs(float(ratio) - 1) <= WITHIN for _name, ratio in rows)
