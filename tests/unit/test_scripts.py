# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scripts say of themselves, words that they do not take, and what the words of scripts/test stand for."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest
import yaml
from sessions import stages

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


def test_every_stage_is_a_session() -> None:
    """noxfile.py has a session for each stage, on the same versions of ansible-core; antsibull-nox brings the one called lint."""
    tree = ast.parse((SCRIPTS.parent / "noxfile.py").read_text())
    found = {}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for decorator in map(ast.unparse, function.decorator_list):
            if re.match(r"stage\b", decorator):
                cores = re.search(r"cores=stages\.(\w+)", decorator)
                found[function.name] = getattr(stages, cores.group(1)) if cores else ()
                assert ast.get_docstring(function), f"the session {function.name} says nothing of itself"
    wanted = {stage.name: stage.cores for stage in (*stages.STAGES, *stages.NIGHTLY)}
    assert {**found, "lint": ()} == {**wanted, "tools": (), "shellcheck": (), "forms": ()}


@pytest.mark.parametrize(("workflow", "wanted"), [("tests", stages.daily()), ("nightly", [*(stage.name for stage in stages.NIGHTLY), "sanity:2.19"])])
def test_every_stage_is_in_a_workflow(workflow: str, wanted: list[str]) -> None:
    text = (SCRIPTS.parent / ".github" / "workflows" / f"{workflow}.yml").read_text()
    (given,) = yaml.safe_load(text)["jobs"]["stages"]["strategy"]["matrix"].values()
    assert sorted(" ".join(given).split()) == sorted(wanted)


def items(*words: str) -> list[str]:
    return [run.item for run in stages.runs(words, "2.19")]


def test_words_stand_for_runs() -> None:
    assert items("unit") == ["unit:2.21", "unit:2.19", "unit:2.17"] and items("sanity") == ["sanity:2.21", "sanity:2.19"]
    assert items("unit:2.17", "nightly", "ruff") == ["unit:2.17", "nightly", "ceph", "container", "systemd", "newqemu", "mutation", "sanity:2.19", "ruff"]
    assert items("mutation") == ["mutation"]
    assert items("fast") == ["ruff+fast", "unit:2.19+fast", "functional:2.19+fast", "property+fast", "integration:2.19+fast"]
    assert items() == items("all") == [item for item in items(*stages.names()) if item != "sanity:2.19"]
    assert not {"nightly", "ceph", "container", "systemd", "newqemu", "mutation"} & set(items())
    assert [(run.session, run.words, run.title) for run in stages.runs(["unit:2.21+fast", "docs"], "2.19")] == [
        ("unit(2.21)", "fast", "unit, ansible-core 2.21"), ("docs", "", "docs")]
    assert {run.lane for run in stages.runs([], "2.21")} == {stages.FIRST, stages.BESIDE, stages.ALONE}
    assert [run.minutes for run in stages.runs(["ruff", "nightly"], "2.21")] == [stages.MINUTES, *(stage.minutes for stage in stages.NIGHTLY), stages.MINUTES]


@pytest.mark.parametrize("word", ["unti", "unit:2.5", "ruff:2.21", "", "unit:"])
def test_a_word_that_is_no_stage_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(stages.UnknownStage):
        stages.runs([word], "2.21")
    told = run("test", "ruff", word, cwd=tmp_path)
    assert told.returncode == 2 and "the stages are: fast all nightly newqemu ceph container systemd mutation ruff unit" in told.stderr and not told.stdout


def test_stages_are_listed(tmp_path: Path) -> None:
    told = run("test", "--list", cwd=tmp_path)
    assert told.returncode == 0 and told.stdout.split() == stages.names()


STUB = """\
#!/bin/bash
# In place of nox: nox --no-install -s SESSION -- WORDS
case $3 in
  ruff) echo ":: no findings"; echo "nox > Ran 2 sessions in a second:" ;;
  "unit(2.21)") echo "==== 3 passed in 0.10s ====" ;;
  py38) echo "no Python 3.8" >"$STAGE_NOT_POSSIBLE" ;;
  docs) echo "words: $5"; touch "$TMPDIR/left"; echo "$TMPDIR" >"$WITNESS"; exit 1 ;;
  hostile | gluster) echo "$$ $TMPDIR" >"$WITNESS.$3"; sleep 60 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of the launcher alone, in which nox is a stub."""
    place = tmp_path / "checkout"
    (place / "scripts").mkdir(parents=True)
    (place / "tests").mkdir()
    (place / "tests" / "sessions").symlink_to(SCRIPTS.parent / "tests" / "sessions")
    launcher = (SCRIPTS / "test").read_text().replace('nox=$(ask nox', 'nox=$(echo "$STUB"')
    (place / "scripts" / "test").write_text(launcher)
    (tmp_path / "nox").write_text(STUB)
    (tmp_path / "nox").chmod(0o755)
    return place


def start(checkout: Path, *words: str) -> subprocess.Popen:
    env = {**os.environ, "STUB": str(checkout.parent / "nox"), "WITNESS": str(checkout.parent / "witness")}
    argv = ["bash", str(checkout / "scripts" / "test"), *words]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(checkout: Path, *words: str) -> subprocess.CompletedProcess:
    process = start(checkout, *words)
    told, complained = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, told, complained)


def test_the_table_and_the_last_words(checkout: Path) -> None:
    told = launch(checkout, "ruff", "unit:2.21", "py38")
    assert told.returncode == 0, told.stdout + told.stderr
    assert re.search(r"^ruff +\d+ s  pass$", told.stdout, re.M) and re.search(r"^unit, ansible-core 2.21 +\d+ s  pass$", told.stdout, re.M)
    assert re.search(r"^py38 +\d+ s  not possible here: no Python 3.8$", told.stdout, re.M)
    assert re.search(r"^ +pass \(\d+ s\)  no findings$", told.stdout, re.M) and re.search(r"^ +pass \(\d+ s\)  3 passed in 0.10s$", told.stdout, re.M)
    assert told.stdout.endswith("\n1 not possible here (see the table)\nPASSED\n2 passed, 0 failed\n")


def test_a_failure_shows_its_log_and_leaves_nothing(checkout: Path) -> None:
    told = launch(checkout, "ruff", "docs")
    assert told.returncode == 1 and told.stdout.endswith("FAILED\n1 passed, 1 failed\n")
    assert "words:" in told.stdout and re.search(r"^docs +\d+ s  FAIL$", told.stdout, re.M)
    assert not Path((checkout.parent / "witness").read_text().strip()).exists(), "the stage's scratch directory is still there"


def test_nothing_but_impossible_stages_is_no_success(checkout: Path) -> None:
    told = launch(checkout, "py38")
    assert told.returncode == 1 and told.stdout.endswith("FAILED\n0 passed, 0 failed\n")


@pytest.mark.parametrize(("name", "status"), [("ruff", 0), ("docs", 1), ("py38", 77)])
def test_one_stage_ends_with_its_own_status(name: str, status: int, checkout: Path) -> None:
    assert launch(checkout, "--stage", name).returncode == status


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("names", [["hostile"], ["hostile", "gluster"], ["--stage", "hostile"]])
def test_who_stops_it_stops_all_of_it(names: list[str], checkout: Path) -> None:
    process = start(checkout, *names)
    witnesses = [checkout.parent / f"witness.{name}" for name in names if not name.startswith("-")]
    until(lambda: all(witness.exists() and witness.read_text() for witness in witnesses))
    process.terminate()
    process.communicate()
    assert process.returncode == 130
    for witness in witnesses:
        stage, scratch = witness.read_text().split()
        until(lambda: not Path(scratch).exists() and not Path("/proc", stage, "cmdline").exists())  # noqa: B023  # it is called here
