# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real OpenStack Glance on this machine: its WSGI application under gunicorn, with sqlite and its file store, in one directory.

There is no Keystone. In its place stands a few lines that know one token. What Glance does with it (policies, the answer 401) is its own.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

_CONFIG = """\
[DEFAULT]
use_stderr = true
enabled_backends = fast:file
[database]
connection = sqlite:///{work}/glance.sqlite
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {work}/store
[os_glance_staging_store]
filesystem_store_datadir = {work}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {work}/tasks
[paste_deploy]
config_file = {work}/paste.ini
[oslo_policy]
policy_file = {work}/policy.yaml
[oslo_concurrency]
lock_path = {work}/lock
[oslo_messaging_notifications]
driver = noop
"""
# Glance's own context filter trusts what stands before it.
_PASTE = """\
[composite:glance-api]
paste.composite_factory = glance.api:root_app_factory
/: api
/healthcheck: healthcheck
[pipeline:api]
pipeline = versionnegotiation context rootapp
[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app
[app:apiversions]
paste.app_factory = glance.api.versions:create_resource
[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory
[app:healthcheck]
paste.app_factory = oslo_middleware:Healthcheck.app_factory
[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory
[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
"""
_GATE = """\
import os

from glance.wsgi.api import application as glance


def application(environ, start_response):
    for name in [name for name in environ if name.startswith("HTTP_X_") and name != "HTTP_X_AUTH_TOKEN"]:
        del environ[name]
    known = environ.get("HTTP_X_AUTH_TOKEN") == os.environ["GLANCE_TOKEN"]
    environ["HTTP_X_IDENTITY_STATUS"] = "Confirmed" if known else "Invalid"
    if known:
        environ.update(HTTP_X_ROLES="member,reader", HTTP_X_USER_ID="tester", HTTP_X_PROJECT_ID="project")
    return glance(environ, start_response)
"""
_START = 90  # seconds


class Glance:
    """A server that answers at ``url`` to whoever has the ``token``."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """The answer to a request. :raises urllib.error.HTTPError: it is a refusal."""
        asked = urllib.request.Request(self.url + path, data=body, method=method, headers={"X-Auth-Token": self.token, "Content-Type": kind})
        with _opener().open(asked, timeout=60) as answer:
            return answer.read()

    def upload(self, path: Path, disk_format: str) -> dict:
        """Make an image of a file. Returns its record."""
        record = json.dumps({"name": path.name, "disk_format": disk_format, "container_format": "bare"}).encode()
        image = json.loads(self.call("POST", "/v2/images", record))
        self.call("PUT", f"/v2/images/{image['id']}/file", path.read_bytes(), "application/octet-stream")
        return json.loads(self.call("GET", f"/v2/images/{image['id']}"))


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def running(work: Path, venv: Path) -> Iterator[Glance]:
    """A Glance whose files are in ``work``. :param venv: has glance and gunicorn."""
    for name in ("store", "staging", "tasks", "lock"):
        (work / name).mkdir()
    (work / "policy.yaml").write_text("{}\n")
    (work / "glance-api.conf").write_text(_CONFIG.format(work=work))
    (work / "paste.ini").write_text(_PASTE)
    (work / "gate.py").write_text(_GATE)
    token = secrets.token_urlsafe(150)  # as long as those of Keystone
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME") and not name.lower().endswith("_proxy")}
    environment = {**kept, "GLANCE_TOKEN": token, "OS_GLANCE_CONFIG_DIR": str(work), "HOME": str(work), "PYTHONPATH": str(work)}
    with open(work / "log", "wb") as log, socket.socket() as listener:
        made = [str(venv / "bin" / "glance-manage"), "--config-file", str(work / "glance-api.conf"), "db", "sync"]
        subprocess.run(made, env=environment, cwd=work, stdout=log, stderr=log, check=True)
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [str(venv / "bin" / "gunicorn"), "--bind", f"fd://{listener.fileno()}", "--workers", "1", "--threads", "4"]
        command += ["--worker-tmp-dir", str(work), "--no-control-socket", "gate:application"]
        server = subprocess.Popen(command, env=environment, cwd=work, stdout=log, stderr=log, pass_fds=[listener.fileno()])
    try:
        until = time.monotonic() + _START
        while not _answers(url):
            assert server.poll() is None and time.monotonic() < until, (work / "log").read_text(errors="replace")[-3000:]
            time.sleep(0.1)
        yield Glance(url, token)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(url: str) -> bool:
    try:
        with _opener().open(f"{url}/healthcheck", timeout=20) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
