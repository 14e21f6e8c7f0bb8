# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dates in names of snapshots are in UTC wherever users read how to make them: periods of retention are, and hosts can be in any zone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SHOWN = ("DOCUMENTATION", "EXAMPLES", "RETURN")
LOCAL = {
    "a fact": re.compile(r"ansible_date_time|\bdate_time\b"),
    "now": re.compile(r"\bnow\((?!utc=true\b)"),
    "the filter strftime": re.compile(r"\|\s*(?:ansible\.builtin\.)?strftime\b(?!\([^{}\n]*utc=true)"),
    "the program date": re.compile(r"\bdate\s+(?!-u\b|--utc\b)['\"]?(?:\+(?!%s\b)|-d\b|--date\b|-I|--iso)"),
    "a pipe": re.compile(r"pipe['\"],\s*['\"]date\b(?!\s+(?:-u|--utc)\b)"),
}


def texts() -> dict[str, str]:
    """What users read, by name: pages, roles, playbooks, and what plugins document."""
    found = {}
    for folder in ("docs", "roles", "playbooks", "extensions"):
        for path in sorted((CHECKOUT / folder).rglob("*")):
            if path.suffix in (".md", ".yml", ".yaml", ".j2", ".sh", "") and path.is_file():
                found[str(path.relative_to(CHECKOUT))] = path.read_text(errors="replace")
    for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "plugins").rglob("*.yml"))):
        found[str(path.relative_to(CHECKOUT))] = path.read_text()
    for path in sorted((CHECKOUT / "plugins").rglob("*.py")):
        assigned = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in SHOWN]
        if assigned:
            found[str(path.relative_to(CHECKOUT))] = "\n".join(str(ast.literal_eval(node.value)) for node in assigned)
    return found


def local_dates(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if any(pattern.search(line) for pattern in LOCAL.values())]


def test_nobody_is_shown_a_local_date() -> None:
    every = texts()
    assert {name: local_dates(text) for name, text in every.items() if local_dates(text)} == {}
    assert sum("now(utc=true, fmt=" in text for text in every.values()) > 8, "these are the pages that it is about"


@pytest.mark.parametrize(
    "line",
    [
        "name: nightly-{{ ansible_date_time.date }}",
        "name: nightly-{{ ansible_facts['date_time'].date }}",
        "name: nightly-{{ ansible_facts.date_time.date }}",
        "name: \"{{ now().strftime('%F') }}\"",
        "name: \"{{ now(fmt='%F') }}\"",
        "name: \"{{ '%F' | strftime }}\"",
        "name: \"{{ '%F' | ansible.builtin.strftime(1) }}\"",
        "name: \"{{ lookup('pipe', 'date +%F') }}\"",
        "name: \"{{ lookup('ansible.builtin.pipe', 'date') }}\"",
        "- ansible-playbook -e name=$(date +%F) play.yml",
        "- name=$(date --date yesterday)",
    ],
)
def test_a_local_date_is_seen(line: str) -> None:
    assert local_dates(line) == [line]


@pytest.mark.parametrize(
    "line",
    [
        "name: \"{{ now(utc=true, fmt='%F') }}\"",
        "name: \"{{ now(utc=true).strftime('%F') }}\"",
        "name: \"{{ '%F' | strftime(1, utc=true) }}\"",
        "- name=$(date -u +%F)",
        "began=$(date +%s)",
        "the update + what it brings, up to date - as always",
    ],
)
def test_a_date_in_utc_is_none(line: str) -> None:
    assert local_dates(line) == []
