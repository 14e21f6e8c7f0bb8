# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An SMB share with a user, served by a real Samba and used by a real client."""

from __future__ import annotations

import base64
import hashlib
import random
import shutil

import pytest

from .conftest import Nas

VOLUMES = "/srv/volumes"
CONFIG = "/etc/samba/smb.conf"
SHARE = {"user": "nasclient", "password": "a'long \"pass word$"}

missing = [program for program in ("smbd", "testparm", "smbclient") if not shutil.which(program)]
pytestmark = [pytest.mark.slow, pytest.mark.lab, pytest.mark.skipif(bool(missing), reason=f"needs {' '.join(missing)} (packages samba smbclient)")]


def serve(nas: Nas) -> None:
    """A Samba on the host, on another port than that of this machine's own."""
    nas.run(f"printf '[global]\\ndisable netbios = yes\\nsmb ports = 4450\\nserver min protocol = SMB2\\n[others]\\npath = /srv\\n' >{CONFIG}")
    nas.run("smbd --daemon </dev/null >/dev/null 2>&1; sleep 1")


def client(nas: Nas, command: str, password: str = SHARE["password"], user: str = SHARE["user"]) -> str:
    """What smbclient says on the host. The password is not on its command line."""
    return nas.run(f"cd /srv && PASSWD=$(cat) smbclient -p 4450 -U {user} //127.0.0.1/volumes -c '{command}'", check=False, text=password)


def test_a_client_writes_and_reads(nas: Nas) -> None:
    serve(nas)
    assert nas.export("--check", "--diff", path=VOLUMES, smb=SHARE) >= 4 and "nasclient" not in nas.files() + nas.run("getent passwd")
    told = nas.play([nas.role(path=VOLUMES, smb=SHARE)], "-vvv")
    assert SHARE["password"] not in told and "pass word" not in told, "the password is in no output"
    assert nas.run(f"stat -c %U {VOLUMES}") == "nasclient\n", "the user may write"
    nas.run("smbcontrol smbd reload-config; sleep 1")
    data = random.Random(5).randbytes(3 << 20)
    nas.run("base64 -d >/srv/sent", text=base64.b64encode(data).decode())
    client(nas, "put sent volume; get volume received")
    assert nas.run(f"sha256sum <{VOLUMES}/volume") == nas.run("sha256sum </srv/received") == f"{hashlib.sha256(data).hexdigest()}  -\n"
    assert nas.run(f"stat -c '%U %a' {VOLUMES}/volume") == "nasclient 660\n"
    assert "NT_STATUS_LOGON_FAILURE" in client(nas, "ls", password="wrong") and "NT_STATUS" in client(nas, "ls", user="nobody", password="")
    # Once more is no change; another password is one, and works.
    assert nas.export(path=VOLUMES, smb=SHARE) == 0 and nas.export("--check", path=VOLUMES, smb=SHARE) == 0
    assert nas.export(path=VOLUMES, smb={**SHARE, "password": "another"}) == 1
    assert "NT_STATUS_LOGON_FAILURE" in client(nas, "ls") and "volume" in client(nas, "ls", password="another")
    # The share goes, and what others have stays.
    assert nas.export("--check", path=VOLUMES, state="absent") == 4 and "volume" in client(nas, "ls", password="another")
    assert nas.export(path=VOLUMES, state="absent") == 4 and nas.export(path=VOLUMES, state="absent") == 0
    nas.run("smbcontrol smbd reload-config; sleep 1")
    assert "NT_STATUS" in client(nas, "ls", password="another")
    assert "[others]" in nas.run(f"testparm -s {CONFIG} 2>/dev/null") and "include" not in nas.run(f"cat {CONFIG}")
    assert "nasclient" not in nas.run(f"pdbedit -s {CONFIG} -L") and nas.run(f"ls {VOLUMES}") == "volume\n"
    nas.run("pkill -x smbd || true; userdel nasclient", check=False)


def test_sound_settings_stay_sound(nas: Nas) -> None:
    """A parameter that Samba does not know, a name that is taken, and settings that were broken before."""
    nas.run(f"printf '[global]\\n[Volumes]\\npath = /srv\\n' >{CONFIG}")
    before = nas.run(f"cat {CONFIG}")
    nas.export(path=VOLUMES, smb=SHARE, fails="already has a share volumes, which this role did not make")
    for settings, told in (({"no such": "x"}, "Samba would not take it: Unknown parameter"), ({"read only": "perhaps"}, "Change export_smb.settings")):
        nas.export(path="/srv/vms", smb={**SHARE, "settings": settings}, fails=told)
    assert nas.run(f"cat {CONFIG}") == before and nas.run("ls -A /etc/samba/remotefs.d") == ""
    nas.run(f"printf '[glob\\n' >{CONFIG}")
    nas.export(path="/srv/vms", smb=SHARE, fails="testparm does not take /etc/samba/smb.conf as it is")
    assert nas.run(f"cat {CONFIG}") == "[glob\n"
    nas.run("userdel nasclient", check=False)


def test_an_account_of_others_stays(nas: Nas) -> None:
    nas.run(f"printf '[global]\\n' >{CONFIG}; useradd -r nasclient; printf 'x\\nx\\n' | smbpasswd -c {CONFIG} -s -a nasclient")
    nas.export(path=VOLUMES, smb=SHARE)
    nas.export(path=VOLUMES, state="absent")
    assert "nasclient" in nas.run(f"pdbedit -s {CONFIG} -L")
    nas.run(f"pdbedit -s {CONFIG} -x nasclient; userdel nasclient", check=False)


def test_an_account_stays_while_another_export_has_it(nas: Nas) -> None:
    nas.run(f"printf '[global]\\n' >{CONFIG}")
    for path in (VOLUMES, "/srv/second"):
        nas.export(path=path, smb=SHARE)
    nas.export(path=VOLUMES, state="absent")
    assert "nasclient" in nas.run(f"pdbedit -s {CONFIG} -L")
    nas.export(path="/srv/second", state="absent")
    assert "nasclient" not in nas.run(f"pdbedit -s {CONFIG} -L")
    nas.run("userdel nasclient", check=False)


def test_a_file_system_that_is_not_mounted_is_not_shared(nas: Nas) -> None:
    """Otherwise clients would write to the disk beneath it."""
    serve(nas)
    nas.export(path=VOLUMES, size="320M", reserve=False, smb=SHARE)
    nas.run("smbcontrol smbd reload-config; sleep 1")
    assert "NT_STATUS" not in client(nas, "ls")
    nas.run(f"umount {VOLUMES}")
    assert "NT_STATUS" in client(nas, "ls")
    nas.run("pkill -x smbd || true; userdel nasclient", check=False)
