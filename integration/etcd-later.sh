#!/usr/bin/env bash
# Installs the etcd of Debian 13 under target/etcd-later, without changing the system. In this release a
# deposed leader no longer revokes live leases (etcd issue 15247), unlike in Debian 12. Does nothing and
# prints nothing if it is installed. integration/setup.sh calls it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
into="$here/../target/etcd-later"
release=trixie

[[ ! -x $into/usr/bin/etcd ]] || exit 0

printf 'etcd: installing the release of Debian %s beside the one of the system\n' "$release" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"

# Uses the machine's own package mirror, with the next release.
own=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
uri=$(apt-get indextargets --format "\$(RELEASE) \$(REPO_URI)" 'Created-By: Packages' |
    awk -v own="$own" '$1 == own { print $2; exit }')
if [[ -z $uri ]]; then
    printf 'etcd: apt-get has no package source for Debian %s\n' "$own" >&2
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
