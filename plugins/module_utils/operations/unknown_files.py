# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts of files of which nothing on a share says anything. There can be very many."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Callable, Mapping

from .. import model
from ..store.volumes import chains
from . import report


class UnknownFiles:
    """Results, as texts, for files of which nothing on the share says anything.

    There can be very many, and they differ in name and sizes only. So the first text becomes a pattern for the others, once it is known
    that the pattern makes the same text.
    """

    _NAME, _SIZE, _ALLOCATED = "\0", 8642 << 50, 8643 << 50  # what no name has in it, and no file has

    def __init__(self, share: model.Share, texts: Callable[[Mapping], dict[str, str]]) -> None:
        self._share = share
        self._texts = texts
        self._patterns: dict[bool | None, dict[str, str] | None] = {}

    def text(self, found: chains.Observed) -> dict[str, str]:
        """The texts of one file, by the key of the result that they are for."""
        image = found.volume.active
        if found.in_use not in self._patterns:
            whole = self._texts(report.volume(found.volume, self._share, found.in_use))
            first = self._pattern(found)
            self._patterns[found.in_use] = first if _filled(first, image) == whole else None
            return whole
        pattern = self._patterns[found.in_use]
        if pattern is None:
            return self._texts(report.volume(found.volume, self._share, found.in_use))
        return _filled(pattern, image)

    def _pattern(self, found: chains.Observed) -> dict[str, str]:
        image = replace(found.volume.active, file=self._NAME, size=self._SIZE, allocated=self._ALLOCATED)
        texts = self._texts(report.volume(replace(found.volume, name=self._NAME, chain=(image,)), self._share, found.in_use))
        marks = ((json.dumps(self._NAME)[1:-1], "%(name)s"), (str(self._SIZE), "%(size)d"), (str(self._ALLOCATED), "%(allocated)d"))
        for mark, place in (("%", "%%"), *marks):
            texts = {key: text.replace(mark, place) for key, text in texts.items()}
        return texts


def _filled(pattern: dict[str, str], image: model.Image) -> dict[str, str]:
    values = {"name": image.file, "size": image.size, "allocated": image.allocated}  # a safe name needs no escapes
    return {key: text % values for key, text in pattern.items()}
