#!/usr/bin/env bash
# Mounts a dataset, setting up all that it takes.
#   bash deploy/try.sh                            a sample dataset, served over HTTP on this machine
#   bash deploy/try.sh SOURCE_URI MOUNTPOINT …    any source, with any flag of "dsfs mount"
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
bash "$here/deploy/setup.sh"
dsfs="$here/.venv/bin/dsfs"
if [ $# -gt 0 ]; then
  exec "$dsfs" mount "$@"
fi
exec "$here/.venv/bin/python" "$here/deploy/sample.py" "$dsfs"
