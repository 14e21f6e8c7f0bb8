# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scripts say of themselves, and words that they do not take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(SCRIPTS / script), *words], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["demo", "test"])
def test_help_is_for_people(script: str, tmp_path: Path) -> None:
    told = run(script, "--help", cwd=tmp_path)
    assert told.returncode == 0 and f"scripts/{script}" in told.stdout
    assert "shellcheck" not in told.stdout and "set -euo" not in told.stdout


@pytest.mark.parametrize("words", [["claen"], ["nonsense/xx"], ["clean", "nonsense"], ["./demo"]])
def test_a_mistyped_word_of_the_demo_makes_no_directory(words: list[str], tmp_path: Path) -> None:
    told = run("demo", *words, cwd=tmp_path)
    assert told.returncode == 1 and "there is no directory" in told.stderr and "usage:" in told.stderr
    assert not list(tmp_path.iterdir())


def test_the_demo_takes_away_only_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    assert "nothing to remove" in run("demo", "clean", ".", cwd=tmp_path).stdout and (tmp_path / "share").is_dir()
    (tmp_path / ".made-by-remotefs-demo").touch()
    assert run("demo", "clean", str(tmp_path), cwd=SCRIPTS).returncode == 0 and not (tmp_path / "share").exists()
