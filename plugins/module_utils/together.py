# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The message of a task on many objects, some of which failed."""

from __future__ import annotations

from typing import Sequence, Tuple

from . import errors, model

Failures = Sequence[Tuple[Sequence[str], errors.StorageError]]


def failure_of_all(what: str, total: int, failures: Failures) -> dict:
    """The keys ``error_code`` and ``msg`` of a task on many objects. The first failure gives the code; see :func:`combined_message`."""
    return {"error_code": failures[0][1].error_code, "msg": combined_message(what, total, failures)}


def combined_message(what: str, total: int, failures: Failures, most: int = 20) -> str:
    """The message of a task on many objects. It has each reason once, with the names of the objects that the reason itself does not name.

    :param what: the kind of object, such as "volumes". :param total: the number of all objects. :param most: the most reasons in it.
    :param failures: for each failed object its names (volume, or volume and snapshot) and its error.
    """
    groups: dict[str, list[Sequence[str]]] = {}
    for names, error in failures:
        groups.setdefault(str(error), []).append(names)
    subjects = {str(error): error.subject for _names, error in failures}
    reasons = []
    for reason, several in list(groups.items())[:most]:
        words_in_subject = {subjects[reason], *subjects[reason].replace(",", " ").split()}
        labels = list(dict.fromkeys("@".join(names) for names in several))
        known = len(labels) == 1 and words_in_subject.issuperset(several[0])
        reasons.append(reason if known else f"{model.listed(labels)}: {reason}")
    more = f" (and {len(groups) - most} more reasons, see results)" if len(groups) > most else ""
    return f"{len(failures)} of {total} {what} failed. {' '.join(reasons)}{more}"
