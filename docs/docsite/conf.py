# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of the site for Sphinx. tests/sessions/docsite.py puts the pages together around a copy of this file.

The build needs no network, and neither does the site: no inventories are downloaded, and no page loads anything from elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

project = "remotefs.storage"
copyright = "contributors to the remotefs.storage collection"  # noqa: A001  # the name is Sphinx's
language = "en"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
exclude_patterns = ["conf.py"]
nitpicky = True
myst_heading_anchors = 4  # headings have the anchors that they have in the repository
html_theme = "sphinx_rtd_theme"
html_theme_options = {"navigation_depth": 3, "collapse_navigation": True}
html_title = "remotefs.storage"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

_ANSIBLE = "https://docs.ansible.com/ansible/latest"
#: Where Ansible's own pages explain what those of antsibull-docs refer to.
_PAGES_OF_ANSIBLE = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}


def link_to_ansible(_app, _env, node, content):
    """A reference to what is Ansible's becomes a link to its own pages; one to what should be here stays an error."""
    page = _page_of_ansible(node.get("reftype"), node.get("reftarget", ""))
    return nodes.reference("", "", content, refuri=f"{_ANSIBLE}/{page}") if page else None


def _page_of_ansible(kind, target):
    """The page of a reference, or None if it is not Ansible's."""
    if kind == "envvar" and target.startswith("ANSIBLE_CACHE_PLUGIN"):
        return f"reference_appendices/config.html#envvar-{target}"
    if not target.startswith("ansible_collections.") or target.startswith("ansible_collections.remotefs.storage."):
        return _PAGES_OF_ANSIBLE.get(target)
    _word, namespace, name, plugin = target.split(".", 3)
    return f"collections/{namespace}/{name}/{plugin.partition('__')[0]}.html"


def link_to_pages(app, doctree):
    """Modules name pages of the repository, as ``docs/live.md``, because ansible-doc shows text. On the site such a name is a link."""
    page = app.env.docname
    if not page.startswith("reference/"):
        return
    for text in list(doctree.findall(nodes.Text)):
        parts = re.split(r"\b(docs/[\w-]+\.md)\b", text.astext())
        if len(parts) == 1 or isinstance(text.parent, nodes.reference):
            continue
        made = []
        for number, part in enumerate(parts):
            if number % 2 == 0:
                made.append(nodes.Text(part))
                continue
            name = part.removeprefix("docs/").removesuffix(".md")
            if not Path(app.srcdir, f"{name}.md").exists():
                logging.getLogger(__name__).warning("there is no page %s", part, location=page)
            made.append(nodes.reference("", part, refuri=f"../{name}.html"))
        text.parent.replace(text, made)


def setup(app):
    """Called by Sphinx."""
    app.connect("doctree-read", link_to_pages)
    app.connect("missing-reference", link_to_ansible)
