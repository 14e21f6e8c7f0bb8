# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains of libvirt with a guest: Linux with its own agent, and Linux with one that does what it is told.

See :mod:`real_guest` for what runs in them. libvirt has the channel of the agent.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from typing import Any, Sequence

from .libvirtd import Libvirtd
from .real_guest import BOOT, Talking, made

_DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{place}/vmlinuz</kernel><initrd>{place}/initrd</initrd><cmdline>{boot}</cmdline></os>
  <on_poweroff>destroy</on_poweroff>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}{channel}
    <serial type='file'><source path='{console}'/></serial><memballoon model='none'/>
  </devices><seclabel type='none'/></domain>"""
_DISK = "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'/><target dev='vd{}' bus='virtio'/></disk>"
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
# It answers as qemu-ga does, but for what `does` says. What that is it is told by a command of its own, in a shell's words.
_SCRIPTED = r"""#!/bin/sh
exec 3<>$(echo /dev/vport*)
say() { echo "$*" >&3; }
usual() {
  case "$1" in
    status) say "{\"return\": \"$(cat /run/state)\"}" ;;
    freeze) echo frozen >/run/state; echo freeze >>/run/froze; say '{"return": 1}' ;;
    thaw) echo thawed >/run/state; say '{"return": 1}' ;;
  esac
}
[ -e /run/state ] || echo thawed >/run/state
[ -e /run/does ] || echo 'usual $1' >/run/does
while true; do
  IFS= read -r line <&3 || { sleep 0.05; continue; }  # nobody is at the other end
  case "$line" in
    *guest-sync*) id=${line##*:}; say "{\"return\": ${id%%\}*}}" ;;
    *x-does*) text=${line##*TEXT:}; echo "${text%%:END*}" | base64 -d >/run/does; say '{"return": {}}' ;;
    *x-state*) say "{\"return\": [\"$(cat /run/state)\", $(cat /run/froze 2>/dev/null | wc -l)]}" ;;
    *guest-fsfreeze-*) verb=${line##*guest-fsfreeze-}; verb=${verb%%\"*}; set -- $verb; . /run/does ;;
  esac
done
"""


class DomainWithGuest(Talking):
    """A domain that runs, whose guest has these disks (paths and formats), mounted at /a and /b."""

    def __init__(self, libvirtd: Libvirtd, disks: Sequence[tuple[str, str]], channel: str = CHANNEL) -> None:
        self.libvirtd, self.name = libvirtd, f"g{os.urandom(4).hex()}"
        told = "".join(_DISK.format(image_format, path, letter) for (path, image_format), letter in zip(disks, "ab"))
        self.console = libvirtd.directory / f"{self.name}.console"
        xml = _DOMAIN.format(name=self.name, place=made(), boot=BOOT, disks=told, channel=channel, console=self.console)
        libvirtd("define", "/dev/stdin", given=xml)
        libvirtd("start", self.name)
        if channel:
            self.wait_for_agent()

    def wait_for_agent(self) -> None:
        """Wait until somebody in the guest has the channel open."""
        until = time.monotonic() + 60
        while "state='connected'" not in self.libvirtd("dumpxml", self.name):
            assert time.monotonic() < until, self.console.read_text(errors="replace")[-2000:]
            time.sleep(0.1)

    def ask(self, command: str, **arguments: Any) -> Any:
        """See :meth:`real_guest.Talking.ask`."""
        answer = json.loads(self.libvirtd("qemu-agent-command", self.name, "--timeout", "60", self.request(command, arguments)))
        assert "return" in answer, answer
        return answer["return"]

    def end(self) -> None:
        """Kill the machine."""
        subprocess.run(["virsh", "-q", "-c", self.libvirtd.uri, "destroy", self.name], capture_output=True, check=False)
        self.libvirtd("undefine", self.name)


class ScriptedGuest(DomainWithGuest):
    """One whose agent does what it is told: a program takes the place of qemu-ga in the guest."""

    def __init__(self, libvirtd: Libvirtd, disks: Sequence[tuple[str, str]]) -> None:
        super().__init__(libvirtd, disks)
        text = base64.b64encode(_SCRIPTED.encode()).decode()
        self.run(f"echo {text} | base64 -d >/bin/other && chmod 755 /bin/other && mv /bin/other /bin/qemu-ga")
        self.ask("guest-exec", path="/bin/sh", arg=["-c", "sleep 0.3; kill -9 $(pidof qemu-ga)"])
        until = time.monotonic() + 30
        while True:  # its successor is started after a second
            time.sleep(0.5)
            try:
                self.state()
                return
            except AssertionError:
                assert time.monotonic() < until

    def does(self, text: str) -> None:
        """From now on it does this, in the words of its shell. ``$1`` is ``status``, ``freeze`` or ``thaw``. It has ``usual`` and ``say``."""
        self.ask("x-does", text="TEXT:" + base64.b64encode(text.encode()).decode() + ":END")

    def state(self) -> tuple[bool, int]:
        """Whether it is frozen, and how often it was."""
        told = self.ask("x-state")
        return told[0] == "frozen", told[1]
