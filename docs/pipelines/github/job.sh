#!/usr/bin/env bash
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What both hooks know of the job. A runner has one job at a time, so that run, attempt and runner tell it from all others.
# shellcheck source=docs/pipelines/environment
. "$(dirname "${BASH_SOURCE[0]}")/../environment" || return

this_job() {
  [[ ${GITHUB_RUN_ATTEMPT-} && ${RUNNER_NAME-} && ${GITHUB_ENV-} ]] ||
    { say "GITHUB_RUN_ATTEMPT, RUNNER_NAME or GITHUB_ENV is missing; is this a hook of a runner?"; return 1; }
  identify github "${GITHUB_RUN_ID-}" "$GITHUB_RUN_ATTEMPT" "${GITHUB_SERVER_URL-}" "$RUNNER_NAME"
}

# In the directory of each job is whose it was: if a runner dies, its next job removes what the last one left.
this_runner() {
  printf '%s\n' "${GITHUB_SERVER_URL-}" "$RUNNER_NAME" | sha256sum
}

remove_earlier_jobs() {
  local this=$NAME other
  for other in "$PLACE"/github-*/runner; do
    [[ $(cat -- "$other" 2>/dev/null) == "$(this_runner)" ]] || continue
    other=${other%/runner}
    [[ ${other##*/} != "$this" ]] || continue
    REMOTEFS_CI_NAME=${other##*/} identify && absent && say "removed what ${other##*/} left"
  done
  REMOTEFS_CI_NAME=$this identify
}
