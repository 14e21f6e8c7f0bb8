# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a bootstrap of pip where ansible-test looks before it downloads one: ``python give_pip.py HOME``.

ansible-test makes an environment for each test, and would download the pip for it from a host of its own.
This runs on the Python of the environment whose ansible-test is meant. The bootstrap installs the version of pip that this
ansible-test wants, from its wheel, which pip itself fetches from wherever the user's settings say.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ansible_test._internal.host_configs import VirtualPythonConfig
from ansible_test._internal.python_requirements import get_venv_packages

SCRIPT = """\
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "{wheel}/pip", "install", "--quiet", "--no-index", "{wheel}"]))
"""


def main(home: Path) -> None:
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (home / ".config").mkdir(exist_ok=True)
    settings = Path.home() / ".config" / "pip"
    if settings.is_dir() and not (home / ".config" / "pip").exists():
        (home / ".config" / "pip").symlink_to(settings)
    python = VirtualPythonConfig(version="%d.%d" % sys.version_info[:2], path=sys.executable)
    version = get_venv_packages(python)["pip"]
    wheel = cache / f"pip-{version}-py3-none-any.whl"
    if not wheel.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), f"pip=={version}"], check=True)
    (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(SCRIPT.format(wheel=wheel))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
