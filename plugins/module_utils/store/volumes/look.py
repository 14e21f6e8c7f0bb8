# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at a volume: its record, its ``.info`` and its temporary files, each read once.

Every read is a round trip to the server. Who holds a volume's lock looks once, and hands the look on. When something was
changed, the look is thrown away and another one is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from ...errors import StorageError
from ..metadata import info_file, records

if TYPE_CHECKING:
    from ..files.directory import ShareDirectory
    from .chains import Observed


class Look:
    """What is written of one volume. Each part is read when it is first asked for; an error is raised again at each question.

    ``observed`` is the volume as it was read, with whether somebody uses it, once somebody has read its images.
    """

    def __init__(self, directory: ShareDirectory, name: str) -> None:
        self.directory, self.name = directory, name
        self.observed: Observed | None = None
        self._known: dict[str, tuple[Any, Exception | None]] = {}

    @property
    def record(self) -> records.Record | None:
        """None where there is none. :raises StorageError, OSError: as :func:`records.read`."""
        return self._once("record", records.read)

    @property
    def info(self) -> info_file.Info | None:
        """None where there is none. :raises StorageError, OSError: as :func:`info_file.read`."""
        return self._once("info", info_file.read)

    @property
    def leftovers(self) -> tuple[str, ...]:
        """Temporary files of an interrupted task. Only meaningful under the volume's lock."""
        return self._once("leftovers", lambda directory, name: tuple(directory.leftovers(name)))

    def _once(self, part: str, read: Callable[[ShareDirectory, str], Any]) -> Any:
        if part not in self._known:
            try:
                self._known[part] = (read(self.directory, self.name), None)
            except (OSError, StorageError) as error:
                self._known[part] = (None, error)
        found, failure = self._known[part]
        if failure is not None:
            raise failure
        return found
