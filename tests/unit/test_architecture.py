# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the house that CONTRIBUTING.md states: arrows point down, effects live at the edges."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
UTILS = PLUGINS / "module_utils"
LAYERS = ["inventory", "modules", "results"]
LAYERS += ["changes", "hidden_options", "machines", "refused", "background", "arguments", "operations", "images", "apply", "plan", "store"]
LAYERS += ["mounts", "together", "model", "lease", "attachments", "localities", "command", "pace", "progress", "limited", "process_copies", "errors"]
MAY_IMPORT = {
    "modules": {"access", "results", "leasing", "changes", "hidden_options", "arguments", "operations", "mounts", "plan", "together", "model", "errors"},
    "inventory": {"arguments", "operations", "errors"},
    "results": {"changes", "operations", "together", "errors"},
    "leasing": {"changes", "arguments", "operations", "model", "plan", "errors"},
    "changes": {"leasing", "operations", "machines", "refused", "background", "model", "attachments", "errors"},
    "hidden_options": set(),
    "machines": {"attachments", "errors"},
    "refused": set(),
    "background": {"command", "progress", "errors"},
    "arguments": {"operations", "model", "errors"},
    "consumers": {"apply", "mounts", "attachments", "command", "errors"},
    "access": {"consumers", "apply", "store", "mounts", "model", "attachments", "command", "errors"},
    "operations": {"access", "consumers", "machines", "images", "apply", "plan", "store", "mounts", "together", "model", "lease", "attachments", "localities"}
    | {"process_copies", "limited", "pace", "progress", "errors"},
    "images": {"store", "model", "pace", "errors"},
    "apply": {"plan", "store", "model", "attachments", "command", "pace", "progress", "errors"},
    "plan": {"model", "lease", "attachments", "errors"},
    "store": {"model", "lease", "attachments", "localities", "process_copies", "errors"},
    "mounts": {"model", "localities", "command", "limited", "errors"},
    "together": {"model", "errors"},
    "model": {"errors"},
    "lease": set(),
    "attachments": set(),
    "localities": set(),
    "command": {"process_copies", "pace", "errors"},
    "pace": {"progress", "errors"},
    "progress": set(),
    "limited": {"process_copies", "errors"},
    "process_copies": set(),
    "errors": set(),
}
SPEAKING = {"client", "agent", "connection", "definition"}
PURE = {"plan", "model", "lease", "attachments", "localities", "errors"}
EFFECTS = {"os", "subprocess", "shutil", "socket", "tempfile", "ansible"}
SOURCES = sorted([*UTILS.rglob("*.py"), *(PLUGINS / "modules").glob("*.py"), *(PLUGINS / "inventory").glob("*.py")])


def layer_of(path: Path) -> str:
    return path.relative_to(UTILS).parts[0].replace(".py", "") if path.is_relative_to(UTILS) else path.parent.name


def imported_layers(path: Path) -> set[str]:
    found = set()
    here = ["module_utils", *path.relative_to(UTILS).parts[:-1]] if path.is_relative_to(UTILS) else [path.parent.name]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            names = [base] if node.module and len(base) > 1 else [base + [alias.name] for alias in node.names]
            found |= {name[1] for name in (names if len(base) > 1 or base == ["module_utils"] else [])}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_arrows_point_down(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    assert imported_layers(path) - {layer} <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_pure_layers_stay_pure(path: Path) -> None:
    if layer_of(path) not in PURE:
        return
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    assert not names & EFFECTS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_programs_start_in_one_place(path: Path) -> None:
    text = path.read_text()
    if path.name != "command.py":
        assert "subprocess" not in text and "os.system" not in text and "os.popen" not in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_rooms_stay_small(path: Path) -> None:
    code = path.read_text().split('RETURN = r"""')[-1]
    assert len(code.splitlines()) <= 420


@pytest.mark.parametrize("path", sorted(UTILS.rglob("*.py")), ids=lambda path: str(path.relative_to(UTILS)))
def test_engines_are_chosen_in_one_place(path: Path) -> None:
    """Nothing but ``apply/engine.py`` imports a room of an engine, and no name outside of it says which one works. That holds for the
    rooms of another engine, too. Consumers speak the same protocols: they use the rooms that only speak."""
    inside = path.relative_to(UTILS)
    text = path.read_text()
    for room, name, most in (("offline", "OfflineEngine", 5), ("live", "QmpEngine", 2), ("libvirt", "LibvirtEngine", 2)):
        if inside.parts[:2] == ("apply", room):
            continue
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and room in (node.module or "").split(".")]
        if inside.parts[0] == "consumers":
            imports = [node for node in imports if not {*(node.module or "").split("."), *(alias.name for alias in node.names)} & SPEAKING]
        assert len(imports) == (most if str(inside) == "apply/engine.py" else 0)
        assert name not in text or str(inside) == "apply/engine.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_what_an_intent_looks_like_is_known_in_two_rooms(path: Path) -> None:
    """One that writes and understands it, and one that picks names out of what may be broken."""
    if str(path.relative_to(PLUGINS)) not in ("module_utils/plan/intent.py", "module_utils/store/metadata/unfinished.py"):
        assert not re.search(r"\bintent(\.get\(|\[)", path.read_text())


def undescribed(body: list[ast.stmt], within: str = "") -> list[str]:
    """Public classes, functions and methods without a docstring. What is defined inside a function is nobody else's."""
    lacking = []
    for node in body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        if not node.name.startswith("_") and ast.get_docstring(node) is None:
            lacking.append(within + node.name)
        if isinstance(node, ast.ClassDef):
            lacking += undescribed(node.body, f"{node.name}.")
    return lacking


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_public_names_say_what_they_mean(path: Path) -> None:
    assert set(undescribed(ast.parse(path.read_text()).body)) <= {"main"}


def test_the_map_names_every_room() -> None:
    """CONTRIBUTING.md says of each module what it is for, under its folder."""
    text = (PLUGINS.parent / "CONTRIBUTING.md").read_text()
    named: dict[int, str] = {}
    rooms = set()
    for line in text[text.index("plugins/module_utils/\n") :].split("```")[0].splitlines()[1:]:
        depth, words = (len(line) - len(line.lstrip())) // 2, line.split()
        if words[0].endswith("/"):
            named[depth] = words[0]
        folder = "".join(named[level] for level in range(1, depth))
        rooms |= {folder + word for word in words if word.endswith(".py")}
    there = {str(path.relative_to(UTILS)) for path in UTILS.rglob("*.py") if path.name != "__init__.py"}
    assert rooms == there, f"not in the map: {sorted(there - rooms)}; not there: {sorted(rooms - there)}"
