#!/usr/bin/env bash
# Makes the image's lock files anew: every Python package by version and hash, for Debian 12's Python 3.11.
#   bash deploy/lock.sh       newest versions; needs uv on the path (pipx install uv)
set -euo pipefail
cd "$(dirname "$0")"
lock=(uv pip compile --quiet --native-tls --generate-hashes --python-version 3.11 --universal --upgrade --no-header)
"${lock[@]}" ../pyproject.toml --output-file requirements.lock
"${lock[@]}" build-requirements.in --output-file build-requirements.lock
