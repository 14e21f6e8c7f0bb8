# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that rest on volume ``vol`` in ways that are easily overlooked, and files that only seem to."""

from __future__ import annotations

import os
import struct
from functools import partial
from typing import Callable

from . import images
from .scene import Scene

Plant = Callable[[Scene], None]


def _overlay(scene: Scene, file: str | bytes, name: str | bytes = "vol", **fields: object) -> None:
    told = name.replace("{share}", str(scene.share)) if isinstance(name, str) else name
    path = os.path.join(os.fsencode(scene.share), os.fsencode(file))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    images.qcow2(path, (told, "raw"), **fields)  # type: ignore[arg-type] # a path of bytes serves as well


def _bytes(scene: Scene, content: bytes) -> None:
    (scene.share / "other").write_bytes(content)


def _data_file(scene: Scene) -> None:
    images.qcow2(scene.share / "other", extensions=((images.DATA_FILE, b"vol"),), incompatible=4)


def vhdx(*names: str) -> bytes:
    """A differencing disk with a parent locator of these paths."""
    keys = [key.encode("utf-16-le") for key in ("relative_path", "absolute_win32_path", "volume_path")]
    entries, text, at = b"", b"", 20 + 12 * len(names)
    for key, name in zip(keys, names):
        value = name.encode("utf-16-le")
        entries += struct.pack("<IIHH", at + len(text), at + len(text) + len(key), len(key), len(value))
        text += key + value
    locator = bytes(18) + struct.pack("<H", len(names)) + entries + text
    metadata = b"metadata" + bytes(2) + struct.pack("<H", 1) + bytes(20)
    metadata += bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c") + struct.pack("<IIII", 64 << 10, len(locator), 4, 0)
    regions = b"regi" + struct.pack("<III", 0, 1, 0) + bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e") + struct.pack("<QII", 1 << 20, 1 << 20, 1)
    return b"".join(
        [b"vhdxfile".ljust(192 << 10, b"\0"), regions.ljust(1 << 20, b"\0")[: (1 << 20) - (192 << 10)], metadata.ljust(64 << 10, b"\0"), locator]
    )


def vhd(name: str) -> bytes:
    """A differencing disk that names its parent in the dynamic header, and in one locator."""
    footer = b"conectix" + struct.pack(">IIQ", 2, 0x10000, 512) + bytes(36) + struct.pack(">I", 4)
    head = b"cxsparse".ljust(64, b"\0") + name.encode("utf-16-be").ljust(512, b"\0")
    spelt = f".\\{name}".encode("utf-16-le")
    head += struct.pack(">4sIIIQ", b"W2ru", 512, len(spelt), 0, 2048)
    return footer.ljust(512, b"\0") + head.ljust(1536, b"\0") + spelt.ljust(512, b"\0")


RESTING: dict[str, tuple[str, Plant]] = {
    "overlay with a blank": ("an overlay called `a b.qcow2`", partial(_overlay, file="a b.qcow2")),
    "overlay that is no text": ("an overlay whose name is `b'\\xff\\xfe'`", partial(_overlay, file=b"\xff\xfe")),
    "overlay with a newline": ("an overlay called `a\\nb`", partial(_overlay, file="a\nb")),
    "hidden overlay": ("an overlay called `.hidden`", partial(_overlay, file=".hidden")),
    "overlay called as a record": ("an overlay called `x.info`", partial(_overlay, file="x.info")),
    "overlay by path": ("the name goes through the share's own path", partial(_overlay, file="other", name="{share}/../share//vol")),
    "overlay by JSON": (
        "the name is JSON with a nested file",
        partial(_overlay, file="other", name='json:{"file": {"filename": "v\\u006fl", "driver": "file"}, "driver": "qcow2"}'),
    ),
    "overlay by URL": ("another host reaches the share by its server", partial(_overlay, file="other", name="nfs://nas1/vols/vol?uid=0")),
    "overlay of 2006": ("a qcow header of version 1", lambda scene: _bytes(scene, images.qcow1("vol"))),
    "overlay of a later version": ("a qcow2 header of version 9", partial(_overlay, file="other", version=9)),
    "overlay in a folder": ("an overlay in a folder of the share", partial(_overlay, file="sub/deep/other", name="../../vol")),
    "link to the image": ("a link that somebody's overlay elsewhere may go through", lambda scene: os.symlink("vol", scene.share / "other")),
    "external data": ("an image whose data file is this one", _data_file),
    "QED overlay": ("a QED header", lambda scene: _bytes(scene, images.qed("vol"))),
    "VMDK with a parent": (
        "a descriptor with a parent",
        lambda scene: _bytes(scene, images.vmdk_descriptor("twoGbMaxExtentSparse", "").replace(b"createType", b'parentFileNameHint="vol"\ncreateType')),
    ),
    "VMDK extent": ("a descriptor whose extent is this file", lambda scene: _bytes(scene, images.vmdk_descriptor("x", 'RW 8192 FLAT "vol" 0'))),
    "VHD with a parent": ("a differencing disk", lambda scene: _bytes(scene, vhd("vol"))),
    "VHDX with a parent": ("a differencing disk", lambda scene: _bytes(scene, vhdx(r".\vol"))),
}


def _raw_disk_of_a_guest(scene: Scene) -> None:
    """Another volume, whose guest wrote a header into its raw disk that names this one."""
    images.qcow2(scene.share / "other", ("vol", "qcow2"))
    status = os.stat(scene.share / "other")
    scene.record("other", formats={"other": "raw"}, disks={"other": [status.st_ino, status.st_size]}, active="other")


def _neighbour(scene: Scene) -> None:
    _overlay(scene, "sub/vol", "elsewhere")
    _overlay(scene, "sub/other", "vol")


SEEMING: dict[str, tuple[str, Plant]] = {
    "guest's overlay": ("another volume's guest wrote a header with this name into its raw disk", _raw_disk_of_a_guest),
    "snapshot of the server": ("an overlay in `.snapshot`", partial(_overlay, file=".snapshot/hourly.0/other", name="../../vol")),
    "name of a neighbour": ("an overlay in a folder that has a file of that name itself", _neighbour),
}
