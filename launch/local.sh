#!/usr/bin/env bash
# The main job on this machine: makes .venv, installs jaxasa, fetches recordings, trains, scores.
#   bash launch/local.sh                                     15 to 35 minutes on two cores
#   bash launch/local.sh --gin_file gin/run/smoke.gin --workdir runs/smoke        small and quick
# All arguments go to `jaxasa demo`. Run it again after an interruption: finished work is kept.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

make_environment
use_tcmalloc
exec "$venv/bin/jaxasa" demo --workdir "$root/runs/demo" "$@"
