#!/usr/bin/env bash
# All checks: style, types, import contracts, tests. Sets up what it needs; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash deploy/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "$@"
