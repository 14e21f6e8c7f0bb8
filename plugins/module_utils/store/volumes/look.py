# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at a volume: its record, its ``.info`` and its temporary files, each read once.

Every read is a round trip to the server. So a task that holds a volume's lock takes one look and passes it on. After a change the
look is thrown away and a new one is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from ... import errors
from ..metadata import info_file, records

if TYPE_CHECKING:
    from ... import attachments
    from ..files.directory import ShareDirectory
    from . import chains


class Look:
    """The metadata of one volume. Each part is read at its first use. If that fails, each further use raises the same error.

    ``observed``: the volume and whether it is in use, set once its images were read. ``attachment`` is the machine that the user names.
    """

    def __init__(self, directory: ShareDirectory, name: str, attachment: attachments.Attachment | None = None) -> None:
        self.directory, self.name, self.attachment = directory, name, attachment
        self.observed: chains.Observed | None = None
        self._known: dict[str, tuple[Any, Exception | None]] = {}

    @property
    def record(self) -> records.Record | None:
        """The record, None if there is none. :raises StorageError, OSError: as :func:`records.read`."""
        return self._once("record", records.read)

    @property
    def info(self) -> info_file.Info | None:
        """The content of ``.info``, None if there is none. :raises StorageError, OSError: as :func:`info_file.read`."""
        return self._once("info", info_file.read)

    @property
    def leftovers(self) -> tuple[str, ...]:
        """Names of temporary files that an interrupted task left. Only meaningful under the volume's lock."""
        return self._once("leftovers", lambda directory, name: tuple(directory.leftovers(name)))

    def _once(self, part: str, read: Callable[[ShareDirectory, str], Any]) -> Any:
        if part not in self._known:
            try:
                self._known[part] = (read(self.directory, self.name), None)
            except (OSError, errors.StorageError) as error:
                self._known[part] = (None, error)
        found, failure = self._known[part]
        if failure is not None:
            raise failure
        return found
