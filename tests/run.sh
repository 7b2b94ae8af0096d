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
# Most of a test is waiting for a process to start, so more of them than processors run at once; a file stays together,
# as its servers and mounts do. In the order of their folders, not of their numbers of tests: those that mount have few
# and take long, and would be waited for at the end; so those of unit/ are, which are over at once.
exec python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder "$@"
