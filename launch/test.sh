#!/usr/bin/env bash
# The checks: creates .venv if needed, then runs lint, format, types and pytest.
#   bash launch/test.sh                     everything
#   bash launch/test.sh tests/hf -k merge   arguments go to pytest
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

# PyTorch, transformers and peft are part of the checks: exports, logits and adapters are compared
# with theirs on each change. JAXASA_TEST_EXTRAS=test leaves them out, and skips those tests.
make_environment "${JAXASA_TEST_EXTRAS:-test,parity}"
cd "$root"
export PATH=$venv/bin:$PATH
ruff check .
ruff format --check .
mypy
# A file's tests stay in one process, which makes its fixtures and compiles its programs once.
exec pytest -q -n auto --dist loadfile "$@"
