#!/usr/bin/env bash
# Installs a later etcd than Debian 12 has, under target/etcd-later: one without the fault that a deposed leader revokes
# live leases (etcd issue 15247), from Debian 13. Nothing of the system changes. Does nothing, and says nothing, where it
# is there already. integration/setup.sh calls it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
into="$here/../target/etcd-later"
release=trixie

[[ ! -x $into/usr/bin/etcd ]] || exit 0

printf 'etcd: installing the one of Debian %s beside the own one\n' "$release" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"

# Where this machine has its packages from, and the next release beside them.
own=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
uri=$(apt-get indextargets --format "\$(RELEASE) \$(REPO_URI)" 'Created-By: Packages' |
    awk -v own="$own" '$1 == own { print $2; exit }')
if [[ -z $uri ]]; then
    printf 'etcd: apt-get knows no packages of Debian %s\n' "$own" >&2
    exit 1
fi
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$uri" "$release" \
    >"$work/sources.list"

apt=(
    apt-get -qq
    -o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=/dev/null"
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=$(id -un)"
)
if ! { "${apt[@]}" update && cd "$work" && "${apt[@]}" download etcd-server; } >"$work/log" 2>&1 </dev/null; then
    cat "$work/log" >&2
    printf 'etcd: could not download the package\n' >&2
    exit 1
fi
rm -rf "$into"
mkdir -p "$into"
dpkg -x "$work"/etcd-server_*.deb "$into"
