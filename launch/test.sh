#!/usr/bin/env bash
# The checks: creates .venv if needed, then runs lint, format, types and pytest.
#   bash launch/test.sh                     everything
#   bash launch/test.sh tests/hf -k merge   arguments go to pytest
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

make_environment test
cd "$root"
export PATH=$venv/bin:$PATH
ruff check .
ruff format --check .
mypy
exec pytest -q -n auto "$@"
