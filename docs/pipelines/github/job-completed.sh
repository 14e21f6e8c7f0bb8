#!/usr/bin/env bash
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What a self-hosted runner of GitHub Actions runs after each job (ACTIONS_RUNNER_HOOK_JOB_COMPLETED). A job that passed does not fail here: what
# could not be removed goes with the next job of this runner, or when its lease has ended.
set +e -uo pipefail

# shellcheck source=docs/pipelines/github/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh" || exit 0

this_job && absent
exit 0
