# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site is the Markdown pages of the repository: their links lead to the same pages there, and its first page names all of them."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from sessions import docsite

CHECKOUT = Path(__file__).resolve().parents[2]
#: The tests that play what pages have as YAML.
PLAYED_BY = {
    "README.md": "functional/test_documents.py",
    "docs/attach.md": "functional/test_documents.py",
    "docs/ci.md": "functional/test_ci_guide.py",
    "docs/coming-from.md": "functional/test_coming_from.py",
    "docs/concepts.md": "functional/test_concepts.py",
    "docs/errors.md": "functional/test_tasks_of_pages.py",
    "docs/getting-started.md": "functional/test_getting_started.py",
    "docs/images.md": "functional/test_importing.py",
    "docs/leases.md": "functional/test_lease_guide.py",
    "docs/live.md": "live/test_guide.py",
    "docs/metrics.md": "functional/test_metrics.py",
    "docs/molecule.md": "unit/test_molecule_guide.py",
    "docs/moving.md": "functional/test_moving_guide.py",
    "docs/pipelines.md": "functional/test_pipelines.py",
    "docs/recipes.md": "functional/test_recipes.py",
    "docs/replicas.md": "functional/test_replica_guide.py",
    "docs/restore.md": "functional/test_restore_guide.py",
    "docs/retention.md": "functional/test_tasks_of_pages.py",
    "docs/space.md": "functional/test_space_guide.py",
    "docs/worst-day.md": "functional/test_tasks_of_pages.py",
    "roles/ci_environment/README.md": "functional/test_ci_environment.py",
    "roles/export/README.md": "export/test_ssh.py",
    "roles/housekeeping/README.md": "functional/test_tasks_of_pages.py",
    "roles/replicas/README.md": "functional/test_roles.py",
    "roles/report/README.md": "functional/test_report.py",
    "roles/share/README.md": "functional/test_tasks_of_pages.py",
    "roles/snapshots/README.md": "functional/test_tasks_of_pages.py",
    "roles/volumes/README.md": "functional/test_tasks_of_pages.py",
}
#: It installs a timer of systemd, which no test has on a directory.
NOT_PLAYED = {"roles/collector/README.md"}
SITE = docsite.Site({"docs/README.md": "index.md", "docs/a.md": "a.md", "docs/jobs/run": "jobs/run", "roles/r/README.md": "roles/r.md",
                     "plugins/modules": "reference/index.rst"})


@pytest.mark.parametrize(("page", "text", "there"), [
    ("docs/a.md", "the [first](README.md) page", "the [first](index.md) page"),
    ("docs/a.md", "[role](../roles/r/README.md#when-it-fails)", "[role](roles/r.md#when-it-fails)"),
    ("docs/a.md", "[here](#below), [a job](jobs/run)", "[here](#below), [a job](jobs/run)"),
    ("docs/README.md", "[modules](../plugins/modules/)", "[modules](reference/index.rst)"),
    ("roles/r/README.md", "[two](../../docs/a.md) [links](../../docs/jobs/run)", "[two](../a.md) [links](../jobs/run)"),
    ("docs/a.md", "[elsewhere](https://example.org/a.md)", "[elsewhere](https://example.org/a.md)"),
    ("docs/a.md", "```\n[code](none.md)\n```\n[first](README.md)", "```\n[code](none.md)\n```\n[first](index.md)"),
])
def test_links_are_those_of_the_site(page: str, text: str, there: str) -> None:
    assert SITE.text(page, text) == there


@pytest.mark.parametrize("path", ["none.md", "../README.md", "../../a.md", "jobs"])
def test_a_dead_link_is_told(path: str) -> None:
    with pytest.raises(docsite.DeadLink, match="docs/a.md: " + re.escape(path)):
        SITE.text("docs/a.md", f"[text]({path})")


def test_the_menu_is_the_first_page() -> None:
    start = "## Start\n\n- [One](one.md): and [more](not-this.md)\n1. [Two](sub/two.md#part)\n\ntext [no](no.md)\n\n"
    text = f"# Title\n\n- [before](x.md)\n\n{start}## End\n\n- [Three](three.rst)\n"
    assert docsite.parts_of_menu(text) == {"Start": {"one": "One", "sub/two": "Two"}, "End": {"three": "Three"}}
    assert "```{toctree}\n:hidden:\n:caption: Start\n\nOne <one>\nTwo <sub/two>\n```\n" in docsite.menu(text)


def test_the_first_page_names_all_pages() -> None:
    """A page that nobody can find is no documentation."""
    site = docsite.Site.of_checkout(CHECKOUT)
    text = site.text(docsite.INDEX, (CHECKOUT / docsite.INDEX).read_text())
    named = [page for part in docsite.parts_of_menu(text).values() for page in part]
    pages = {re.sub(r"\.(md|rst)$", "", where) for name, where in site.places.items() if name.endswith((".md", ".rst"))}
    assert pages - set(named) == {"index"}
    assert "docs/ci.md" in site.places and "roles/share/README.md" in site.places and "docs/docsite/conf.py" not in site.places
    assert len(named) == len(set(named))


def test_all_pages_have_live_links() -> None:
    site = docsite.Site.of_checkout(CHECKOUT)
    for name, where in site.places.items():
        if name.endswith(".md") and not where.startswith(docsite.REFERENCE):
            site.text(name, (CHECKOUT / name).read_text())


def test_playbooks_of_pages_are_played() -> None:
    """A new page with YAML needs a test that reads it."""
    pages = {name for name in docsite.Site.of_checkout(CHECKOUT).places if name.endswith(".md") and "```yaml" in (CHECKOUT / name).read_text()}
    assert pages == set(PLAYED_BY) | NOT_PLAYED
    for page, test in PLAYED_BY.items():
        assert f'{Path(page).name}"' in (CHECKOUT / "tests" / test).read_text(), f"{test} does not read {page}"
