# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seeds: small images from which cloud-init learns what to make of a new machine (its data source NoCloud).

What a seed holds may be secret. It goes from the options into the file and nowhere else: no error, step, record or result has it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .. import errors, model
from ..apply import engine
from ..images import iso9660
from ..plan import seeds as plans
from ..plan.desired import DesiredVolume
from ..plan.plan import Plan
from ..store.files import passing

if TYPE_CHECKING:
    from . import workspace

LABEL = "cidata"  # by which cloud-init finds it
APPLICATION = "REMOTEFS.STORAGE SEED"  # by which this module knows its own
MOST = 16 << 20  # bytes of all its texts
_FILES = {"user_data": "user-data", "meta_data": "meta-data", "network_config": "network-config", "vendor_data": "vendor-data"}
# What is no printable character for YAML, or a line break there, and none for JSON.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_ALONE = "a seed is a raw image of its own, which this option makes whole"


@dataclass(frozen=True)
class Seed:
    """The bytes of the image, which may be secret."""

    content: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.content)


def request_of(params: dict) -> Seed:
    """The image that the option ``source.seed`` of a task or an item asks for.

    :raises InvalidParameter: other options do not go with it, or it cannot be what cloud-init reads.
    """
    _require_alone(params)
    given, name = params["source"]["seed"], str(params["name"])
    texts = {option: _text(option, given.get(option), name) for option in _FILES}
    files = {_FILES[option]: text for option, text in texts.items() if text is not None}
    if sum(len(data) for data in files.values()) > MOST:
        raise errors.InvalidParameter("option source.seed", f"its texts have more than {MOST >> 20} MiB", "let cloud-init fetch what is large")
    return Seed(iso9660.image(files, LABEL, APPLICATION))


def _require_alone(params: dict) -> None:
    """:raises InvalidParameter: another option asks for what a seed cannot be."""
    given = params["source"]
    asked = {
        "format": params["format"] not in (None, "raw"),
        "size": params["size"] is not None,
        "preallocation": params["preallocation"] not in (None, "off"),
        "snapshot": params["snapshot"] is not None,
        "flatten": bool(params["flatten"]),
        "moved_from": params["moved_from"] is not None,
        "source.method": given["method"] not in (None, "full"),
        **{f"source.{name}": given.get(name) is not None for name in ("volume", "image", "share", "snapshot")},
    }
    for option, is_asked in asked.items():
        if is_asked:
            raise errors.InvalidParameter(f"option {option}", f"it does not go with source.seed: {_ALONE}", "leave it out")


def _text(option: str, value: object, name: str) -> bytes | None:
    """The content of a file; None where there is none. :raises InvalidParameter: it can be no text, or not what cloud-init understands there."""
    subject, is_user_data = f"option source.seed.{option}", option in ("user_data", "vendor_data")
    if value is None or value == "":
        if option == "meta_data":
            value = {"instance-id": name, "local-hostname": name}
        elif option == "user_data":
            value = "#cloud-config\n"  # cloud-init wants the file
        else:
            return None
    if isinstance(value, str):
        text = value
    elif isinstance(value, dict):
        complete = {"instance-id": name, **value} if option == "meta_data" else value
        text = ("#cloud-config\n" if is_user_data else "") + _json(subject, complete)
    elif isinstance(value, list) and is_user_data:
        text = "#cloud-config-archive\n" + _json(subject, value)
    else:
        kinds = "a text, a dictionary or a list" if is_user_data else "a text or a dictionary"
        raise errors.InvalidParameter(subject, f"it is no such thing as cloud-init reads there ({type(value).__name__})", f"give {kinds}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        pass  # its message would show what is in the text
    raise errors.InvalidParameter(subject, "it has letters that UTF-8 has not", "give text in UTF-8; base64 in write_files holds anything")


def _json(subject: str, value: object) -> str:
    """JSON that YAML understands as the same. Sorted, so that equal values give equal texts. :raises InvalidParameter: JSON cannot hold it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1)
    except (TypeError, ValueError, RecursionError):
        text = ""  # its message would show what is in it
    if not text:
        raise errors.InvalidParameter(subject, "it has values that are neither texts, numbers, lists nor dictionaries with texts as keys", "give it as a text")
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def source_of(work: workspace.Workspace, share: model.Share, seed: Seed) -> engine.CopySource:
    """The content for the plan that writes it."""
    return engine.CopySource(work.directory(share), (), content=seed.content)


def replacing(work: workspace.Workspace, share: model.Share, volume: model.Volume, desired: DesiredVolume, seed: Seed) -> Plan | None:
    """The plan that gives a volume this content. None if it has it.

    :raises Conflict: the volume is something else than a seed. :raises HasDependents: something rests on it.
    """
    plans.require_lone(volume)
    if _holds(work, share, volume, seed):
        return None
    return plans.replaced(replace(volume, dependents=work.mode.dependents(share, volume)), desired, seed.size)


def _holds(work: workspace.Workspace, share: model.Share, volume: model.Volume, seed: Seed) -> bool:
    """Whether the file has this content. :raises Conflict: it is no seed at all."""
    file = volume.own_base.file
    root = work.directory(share).root
    if work.options.check and root.status(file) is None:
        return False  # the volume is only foretold
    with root.opened(file) as fd:
        length = os.fstat(fd).st_size
        if not iso9660.is_image(os.pread(fd, iso9660.HEAD, 0), length, LABEL, APPLICATION):
            raise plans.not_one(volume, f"its file has no mark of an image {LABEL} of this module")
        if length != seed.size:
            return False
        view, position = memoryview(seed.content), 0
        for piece in passing.file_pieces(fd):
            if piece != view[position : position + len(piece)]:
                return False
            position += len(piece)
        return position == length
