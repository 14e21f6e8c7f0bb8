# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest of one sector: a boot program that writes through its virtio disk for ever, one sector after the other, by the BIOS.

Write number N puts N into sector N modulo the number of sectors. A write is complete before the next one begins. So whatever
consistent state of the disk is looked at shows the writes from the first to some last one, all of them and no later one.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
import time
from pathlib import Path

from .guest import Guest

SECTORS = 256  # a power of two: the first 128 KiB of the disk, two clusters
_ORIGIN, _BUFFER, _DATA = 0x7C00, 0x8000, 0x7D00
_COUNTER, _PACKET = _DATA, _DATA + 16


def program() -> bytes:
    """The boot sector."""
    begin = b"\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0" + b"\xbc" + struct.pack("<H", _ORIGIN) + b"\xfb"  # ax = ds = es = ss = 0; sp; sti
    loop = b"\x66\xff\x06" + struct.pack("<H", _COUNTER)  # inc dword [counter]
    loop += b"\x66\xa1" + struct.pack("<H", _COUNTER)  # mov eax, [counter]
    loop += b"\x66\xa3" + struct.pack("<H", _BUFFER) + b"\x66\xa3" + struct.pack("<H", _BUFFER + 508)  # first and last word of the sector
    loop += b"\x66\x25" + struct.pack("<I", SECTORS - 1)  # and eax, SECTORS - 1
    loop += b"\x66\xa3" + struct.pack("<H", _PACKET + 8)  # the number of the sector
    loop += b"\xbe" + struct.pack("<H", _PACKET) + b"\xb8\x00\x43" + b"\xb2\x81" + b"\xcd\x13"  # si; ax = 4300h; dl = 81h; int 13h
    loop += b"\xeb" + struct.pack("b", -(len(loop) + 2))
    packet = struct.pack("<BBHHHQ", 16, 0, 1, _BUFFER, 0, 0)
    text = (begin + loop).ljust(_DATA - _ORIGIN, b"\0") + bytes(16) + packet
    return text.ljust(510, b"\0") + b"\x55\xaa"


class TinyGuest(Guest):
    """A machine whose guest writes by itself. Its disk has the boot program's writes and nothing else."""

    def __init__(self, path: str, image_format: str, data: bytearray, kind: str = "blockdev") -> None:
        self._boot = Path(tempfile.mkdtemp(prefix="boot-")) / "sector"
        self._boot.write_bytes(program().ljust(1 << 20, b"\0"))
        more = ("-drive", f"file={self._boot},if=none,id=boot,format=raw", "-device", "virtio-blk-pci,drive=boot,bootindex=0")
        super().__init__(path, image_format, data, kind, (*more, "-set", "device.d0.bootindex=1"))
        self.qmp("cont")
        self.wait_for_writes(20)

    def writes(self) -> int:
        """How many writes are complete, at least."""
        told = self.qmp("human-monitor-command", command_line=f"xp /1wx {_COUNTER:#x}")
        return max(0, int(told.split(":")[1].strip(), 16) - 1)

    def wait_for_writes(self, more: int) -> None:
        """Wait until the guest has written that often again."""
        wanted, until = self.writes() + more, time.monotonic() + 60
        while self.writes() < wanted:
            assert time.monotonic() < until, f"the guest hangs at {self.writes()}"
            time.sleep(0.005)


def last_write(path: str, image_format: str) -> int:
    """The number of the last write that an image shows. It must show all before that, and no later one."""
    with tempfile.NamedTemporaryFile() as copy:
        subprocess.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, copy.name], check=True, capture_output=True)
        data = Path(copy.name).read_bytes()[: SECTORS * 512]
    first = [struct.unpack_from("<I", data, number * 512)[0] for number in range(SECTORS)]
    assert first == [struct.unpack_from("<I", data, number * 512 + 508)[0] for number in range(SECTORS)], "a torn sector"
    last = max(first)
    expected = [max(0, last - (last - number) % SECTORS) for number in range(SECTORS)]
    wrong = [number for number in range(SECTORS) if first[number] != expected[number]]
    assert not wrong, f"of {last} writes those to sectors {wrong[:5]} are missing or too late"
    return last
