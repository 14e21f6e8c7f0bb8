# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mutants of a file: cosmic-ray's operators, as far as each says something of its own, and three more.

Left out is what no test should hold: annotations, the words of messages, decorators, and what another mutant of the same place says as well.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator
from parso.tree import BaseNode, NodeOrLeaf

Span = "tuple[tuple[int, int], tuple[int, int]]"

#: Of all that can stand for a comparison or an operator, the nearest one: a test that sees it sees the others, too.
CORE = (
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceUnaryOperator_Delete_Not",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop", "NumberReplacer",
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Mod_FloorDiv", "RShift_LShift", "LShift_RShift",
                                                   "BitOr_BitAnd", "BitAnd_BitOr")),
)
#: Of a whole condition, Negate says the same.
NEGATIONS = re.compile(r"ReplaceUnaryOperator_Delete_Not|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is)")
_COMMENT = re.compile(r"(^\s*|  )# .*$")
CONDITIONS = {"if_stmt": 1, "while_stmt": 1, "comp_if": 1, "ternary": 2, "test": 2}  # of which child


class LeaveOut(Operator):
    """A call whose result nobody takes, a ``raise`` or an ``x += y`` that is not there: a sync, a check, a refusal, a count."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[Span]:
        if node.type == "simple_stmt" and _does_something(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: BaseNode, index: int) -> BaseNode:
        node.children[0] = parso.python.tree.Keyword("pass", node.children[0].start_pos, node.children[0].get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("sync(directory)\n", "pass\n"), Example("raise error\n", "pass\n"), Example("total += 1\n", "pass\n"))


class Negate(Operator):
    """A whole condition, also that of a comprehension. (AddNot of cosmic-ray negates the first part of an ``and``, and knows no comprehensions.)"""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[Span]:
        if node.type in CONDITIONS:
            condition = node.children[CONDITIONS[node.type]]
            yield condition.start_pos, condition.end_pos

    def mutate(self, node: BaseNode, index: int) -> BaseNode:
        place = CONDITIONS[node.type]
        node.children[place] = parso.parse(f" not ({node.children[place].get_code().strip()})")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("if a and b: c", "if not (a and b): c"), Example("[a for a in b if c in d]", "[a for a in b if not (c in d)]"))


class Uncaught(Operator):
    """An exception that is not caught. (cosmic-ray's own operator knows no dotted names.)"""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[Span]:
        yield from ((name.start_pos, name.end_pos) for name in _caught(node))

    def mutate(self, node: BaseNode, index: int) -> BaseNode:
        name = _caught(node)[index]
        siblings = name.parent.children
        siblings[siblings.index(name)] = parso.python.tree.Keyword("CosmicRayTestingException", name.start_pos, name.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("try: a\nexcept b.C: d", "try: a\nexcept CosmicRayTestingException: d"),)


OPERATORS: tuple[type, ...] = (*(get_operator(f"core/{name}") for name in CORE), LeaveOut, Negate, Uncaught)


class Mutant(NamedTuple):
    """One change of one file. :ivar room: the file, as ``plan/merge.py``. :ivar where: the function, with its class."""

    room: str
    where: str
    line: int
    operator: type
    occurrence: int

    def source(self, original: str) -> str:
        """The file as it is then."""
        changed = mutate_code(original, self.operator(), self.occurrence)
        if changed is None:
            raise ValueError(f"{self.room}: {self.operator.__name__} has no occurrence {self.occurrence}")
        return changed


def of_file(room: str, path: Path) -> list[Mutant]:
    """All mutants of a file, top down."""
    tree = get_ast(path.read_text(encoding="utf-8"))
    nodes = list(ast_nodes(tree))
    found = []
    for operator in OPERATORS:
        positions = ((node, start) for node in nodes for start, _end in operator().mutation_positions(node))
        for occurrence, (node, start) in enumerate(positions):
            if not _says_nothing(tree.get_leaf_for_position(start), node, operator.__name__, occurrence):
                found.append(Mutant(room, _function(node), start[0], operator, occurrence))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.operator.__name__, mutant.occurrence))


def changed_lines(before: str, after: str) -> tuple[str, str]:
    """What was and what has become of it, as :func:`in_one` has it: this stays the same when lines move."""
    diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[3:]
    was, becomes = (in_one(line[1:] for line in diff if line[0] == sign) for sign in "-+")
    return was, becomes


def in_one(lines: Iterable[str]) -> str:
    """Lines of code in one, with single spaces and without comments."""
    return " ".join(" ".join(_COMMENT.sub("", line) for line in lines).split())


def _does_something(node: NodeOrLeaf) -> bool:
    if node.type == "expr_stmt":
        return getattr(node.children[1], "value", "=").endswith(("+=", "-=", "|=", "&=", "*="))
    if node.type in ("raise_stmt", "del_stmt"):
        return True
    last = node.children[-1] if node.type in ("atom_expr", "power") else None
    return last is not None and last.type == "trailer" and last.children[0].value == "("


def _caught(node: NodeOrLeaf) -> list[NodeOrLeaf]:
    """The exceptions that a clause names."""
    if node.type != "except_clause":
        return []
    named = node.children[1]
    if named.type != "atom":
        return [named]
    inner = named.children[1]
    return inner.children[::2] if inner.type == "testlist_comp" else [inner]


def _says_nothing(leaf: NodeOrLeaf, node: BaseNode, operator: str, occurrence: int) -> bool:
    if operator == "NumberReplacer" and occurrence % 2:  # each number is made one larger, and not one smaller as well
        return True
    if NEGATIONS.fullmatch(operator) and node.parent.type in CONDITIONS and node is node.parent.children[CONDITIONS[node.parent.type]]:
        return True
    if node.type == "if_stmt" and node.children[1].get_code().strip() == "TYPE_CHECKING":
        return True
    child = leaf
    while child.parent is not None:
        parent = child.parent
        if parent.type == "annassign" and child is parent.children[1] or parent.type == "tfpdef" and child is parent.children[-1]:
            return True
        if parent.type == "funcdef" and child is parent.annotation:
            return True
        if parent.type in ("fstring", "decorator") or parent.type == "raise_stmt" and operator != "LeaveOut":
            return True
        child = parent
    return False


def _function(node: NodeOrLeaf) -> str:
    names: list[str] = []
    at: NodeOrLeaf | None = node
    while at is not None:
        if at.type in ("funcdef", "classdef"):
            names.insert(0, at.name.value)
        at = at.parent
    return ".".join(names) or "(module)"
