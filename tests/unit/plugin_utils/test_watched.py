# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin on a host whose connection is lost, or whose work dies. Real hosts are in tests/functional."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.remotefs.storage.plugins.plugin_utils import watched
from ansible_collections.remotefs.storage.plugins.plugin_utils.watched import WatchedAction

FIGURES = {"total": 8, "done": 1, "unknown": 0, "begun": 1, "items": 1, "seconds": 3.0}
LOST = AnsibleConnectionFailure("no route")
DISMISSAL = "cd '/tmp/a b' && rm -f seen process progress progress.new result result.new; rmdir '/tmp/a b'"
GOES_ON = {"changed": False, "_continue": {"place": "/tmp/a b", "progress": FIGURES}}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Action(WatchedAction):
    """Answers of the module and of the shell, in order; the last one is repeated."""

    def __init__(self, modules: list, looks: list, clock: Clock) -> None:
        self._modules, self._looks, self._clock = modules, looks, clock
        self.commands: list[str] = []
        self.shown = ""

    def _next(self, answers: list) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _call(self, task_vars: dict, **asked: object) -> dict:
        return self._next(self._modules)

    def _low_level_execute_command(self, command: str) -> dict:  # type: ignore[override]
        self.commands.append(command)
        self._clock.now += 2
        return {"stdout": "" if command == DISMISSAL else self._next(self._looks)}

    def _teller(self, task_vars: dict) -> watched.Teller:
        def write(text: str) -> None:
            self.shown += text

        return watched.Teller("h", write, None, self._clock.monotonic)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watched, "time", clock)
    return clock


def look(done: int, end: bool = False) -> str:
    return json.dumps({**FIGURES, "done": done, "seconds": done + 3.0}) + ("\nEND\n" if end else "\n")


def test_a_connection_that_comes_back_is_no_matter(clock: Clock) -> None:
    action = Action([GOES_ON, LOST, {"changed": True}], [look(2), LOST, LOST, look(3), look(8, end=True)], clock)
    assert action._watched({}) == {"changed": True}
    assert action.commands[-1] == DISMISSAL and "done, 8 B" in action.shown


def test_a_connection_that_stays_away_is_told_before_the_work_is_given_up(clock: Clock) -> None:
    action = Action([GOES_ON], [look(2), LOST], clock)
    with pytest.raises(AnsibleConnectionFailure, match="no route\nThe connection was lost while the module worked.*Run the task again"):
        action._watched({})
    assert clock.now < 1000 + 60 and "done" not in action.shown


def test_work_that_is_not_there_any_more_is_asked_of_the_module(clock: Clock) -> None:
    action = Action([GOES_ON, {"failed": True}], [look(2), ""], clock)
    assert action._watched({}) == {"failed": True} and "done" not in action.shown


def test_work_without_news_is_asked_of_the_module(clock: Clock) -> None:
    """It may have died without a word; or its host was busy, and it goes on."""
    action = Action([GOES_ON, GOES_ON, {"failed": True}], [look(2)], clock)
    assert action._watched({}) == {"failed": True} and 1060 <= clock.now < 1120


def test_whatever_fails_dismisses_the_work(clock: Clock) -> None:
    class TimeIsOver(BaseException):
        pass

    class Ending(Action):
        def _until_ended(self, *_args: object) -> dict:
            raise TimeIsOver

    action = Ending([GOES_ON], [], clock)
    with pytest.raises(TimeIsOver):
        action._watched({})
    assert action.commands == [DISMISSAL]
