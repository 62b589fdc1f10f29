#!/usr/bin/env bash
# The demo pipeline on this machine: creates .venv, installs jaxasa, downloads sound recordings,
# simulates scenes, trains, evaluates and writes a report.
#   bash launch/local.sh                                     15 to 40 minutes on two cores
#   bash launch/local.sh --gin_file gin/run/smoke.gin --workdir runs/smoke        small and fast
# All arguments go to `jaxasa demo`. After an interruption run it again: finished steps are kept.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

make_environment
use_tcmalloc
exec "$venv/bin/jaxasa" demo --workdir "$root/runs/demo" "$@"
