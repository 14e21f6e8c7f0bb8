#!/usr/bin/env bash
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What a self-hosted runner of GitHub Actions runs before each job (ACTIONS_RUNNER_HOOK_JOB_STARTED). The steps find REMOTEFS_DISK_0 and so on.
set +e -uo pipefail

# shellcheck source=docs/pipelines/github/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh" || exit

start() {
  this_job && remove_earlier_jobs && can_play && make_directory && this_runner >"$DIRECTORY/runner" || return
  present && cat "$DIRECTORY/lines" >>"$GITHUB_ENV" && return
  absent
  return 1
}

start || exit 1
