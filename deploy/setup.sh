#!/usr/bin/env bash
# System packages and a virtual environment in .venv, on Debian 12+ and Ubuntu 24.04+. Safe to run again.
#   bash deploy/setup.sh          to run dsfs
#   bash deploy/setup.sh dev      to run its tests too
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(python3 python3-venv python3-dev gcc libc6-dev pkg-config libfuse3-dev fuse3 git openssh-client)
extras=""
if [ "${1:-}" = dev ]; then
  packages+=(systemd nginx-light rsync fcgiwrap openssh-server openssl nfs-ganesha nfs-ganesha-vfs)
  extras="[dev]"
fi

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  "${as_root[@]}" apt-get update -qq >&2
fi
# The client library for nfs:// without a kernel mount, under the name that this release has.
for library in libnfs13 libnfs14t64 libnfs14; do
  if apt-cache show "$library" >/dev/null 2>&1; then
    installed "$library" || missing+=("$library")
    break
  fi
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}" >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "dsfs needs Python 3.11 or later, this is $(python3 --version): use Debian 12, Ubuntu 24.04 or later" >&2
  exit 1
}
# pip runs when what is to be installed has changed, not at every start
stamp=".venv/installed-$(cat pyproject.toml deploy/setup.sh | sha256sum | cut -c1-16)${extras:+-dev}"
if [ ! -e "$stamp" ]; then
  python3 -m venv .venv
  .venv/bin/pip install --quiet --upgrade pip >&2
  # setuptools warns each time that a folder here has the name of a package; it does, and that is meant
  # as a path: the finder that it would be otherwise costs each Python 27 ms
  PYTHONWARNINGS=ignore .venv/bin/pip install --quiet --config-settings editable_mode=compat --editable ".$extras" >&2
  touch "$stamp"
fi
# For the tests of rules and dashboards: the programs alone, as the package would start a service.
if [ -n "$extras" ] && [ ! -x .venv/bin/promtool ]; then
  aside="$(mktemp -d)"
  (
    cd "$aside"
    fetch=(apt-get -o APT::Sandbox::User="$(id -un)" download -qq prometheus)  # the directory is ours alone
    "${fetch[@]}" || { "${as_root[@]}" apt-get update -qq && "${fetch[@]}"; }
    dpkg-deb -x prometheus_*.deb .
  ) >&2
  install -m 755 "$aside"/usr/bin/prometheus "$aside"/usr/bin/promtool .venv/bin/
  rm -r "$aside"
fi
# For the tests of az://: Microsoft's emulator (17 s of processor time, 245 MB), where npm is at hand. They are skipped without it.
if [ -n "$extras" ] && [ ! -e .venv/azurite/node_modules/azurite ] && command -v npm >/dev/null; then
  timeout 180 npm install --prefix .venv/azurite --ignore-scripts --no-audit --no-fund --silent --fetch-retries=1 \
    azurite@3.37.0 >&2 || { rm -rf .venv/azurite && echo "no azurite: the tests of az:// will be skipped" >&2; }
fi
