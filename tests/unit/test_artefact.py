# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release holds: links in it lead to files in it, and it claims the versions that the tests run on."""
from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
import yaml
from sessions import stages

CHECKOUT = Path(__file__).resolve().parents[2]
IGNORED = yaml.safe_load((CHECKOUT / "galaxy.yml").read_text())["build_ignore"]
PAGES = [path for pattern in ("*.md", "docs/*.md", "roles/*/README.md") for path in sorted(CHECKOUT.glob(pattern))]


def released(path: Path) -> bool:
    """Whether a file of the checkout goes into the archive; a pattern that names a directory holds for all that is in it."""
    relative = path.relative_to(CHECKOUT)
    return not any(fnmatch.fnmatch(str(part), pattern) for part in [relative, *relative.parents] for pattern in IGNORED)


def test_the_workshop_stays_at_home() -> None:
    for name in ("tests/conftest.py", "scripts/test", ".ci/run", "extensions/molecule/config.yml",
                 "pyproject.toml", "changelogs/fragments/.keep", ".gitignore", "noxfile.py", "antsibull-nox.toml", "REUSE.toml",
                 "LICENSES/GPL-3.0-or-later.txt", ".nox/tools/pyvenv.cfg",
                 "docs/docsite/conf.py"):
        assert not released(CHECKOUT / name), name
    for name in ("plugins/modules/remotefs_volume.py", "plugins/filter/items.yml", "docs/errors.md", "docs/README.md", "docs/docsite/links.yml",
                 "meta/runtime.yml", "requirements.txt", "bindep.txt", "docs/pipelines/gitlab/executor", "playbooks/ci_job.yml"):
        assert released(CHECKOUT / name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_to_files_of_the_release(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            target = (page.parent / link).resolve()
            assert target.exists() and released(target), f"{link} is not in the release"


def test_the_claimed_versions_are_those_of_the_tests() -> None:
    """requires_ansible, roles, README and the linters name the ansible-cores that the stages run on."""
    oldest, newest = stages.OLDEST, stages.NEWEST
    assert yaml.safe_load((CHECKOUT / "meta" / "runtime.yml").read_text())["requires_ansible"] == f">={oldest}.0"
    for meta in CHECKOUT.glob("roles/*/meta/main.yml"):
        assert yaml.safe_load(meta.read_text())["galaxy_info"]["min_ansible_version"] == oldest
    assert f"ansible-core {oldest} to {newest}" in (CHECKOUT / "README.md").read_text()
    assert set(re.findall(r"ansible-core~=([0-9.]+)", (CHECKOUT / "antsibull-nox.toml").read_text())) == {f"{newest}.0"}
    upper = f"{newest.split('.')[0]}.{int(newest.split('.')[1]) + 1}"
    assert f"ansible-core>={oldest},<{upper}" in (CHECKOUT / "scripts" / "demo").read_text()
