#!/usr/bin/env bash
# Fetches what the tests need besides Rust, into the user's cache (never into the repository): the Python environments, the
# packages for Node, the default model, the embedding model and the chat templates. Running it again does nothing.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
sdk="$here/../crates/pagoda/tests/sdk"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pagoda/test"
mkdir -p "$cache"

# Runs a command if what the files say has changed since it last succeeded: unless_done NAME FILES -- COMMAND
unless_done() {
    local done="$cache/$1-installed.txt" wanted="" file
    shift
    while [ "$1" != -- ]; do
        file="$1"
        wanted+="$(cat "$file")"
        shift
    done
    shift
    if [ "$(cat "$done" 2>/dev/null || true)" != "$wanted" ]; then
        "$@"
        printf '%s\n' "$wanted" > "$done"
    fi
}

# python_environment FOLDER REQUIREMENTS [PIP'S OPTIONS]
python_environment() {
    local folder="$1" requirements="$2"
    shift 2
    [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" -r "$requirements"
}

node_packages() {
    mkdir -p "$cache/node"
    cp "$sdk/package.json" "$sdk/package-lock.json" "$cache/node/"
    npm ci --prefix "$cache/node" --omit=peer --no-audit --no-fund --loglevel=error
}

# Side by side: most of the time is waiting for the network.
environments=()
install() {
    unless_done "$@" &
    environments+=($!)
}
install requirements "$here/requirements-test.txt" -- \
    python_environment "$cache/venv" "$here/requirements-test.txt"
install clients "$here/requirements-clients.txt" -- \
    python_environment "$cache/clients-venv" "$here/requirements-clients.txt" --no-deps
install memgpt "$here/requirements-memgpt.txt" -- \
    python_environment "$cache/memgpt-venv" "$here/requirements-memgpt.txt" --no-deps
install node "$sdk/package-lock.json" -- node_packages
for environment in "${environments[@]}"; do
    wait "$environment"
done

bash "$here/fetch_chat_templates.sh"
bash "$here/install_nvcc.sh"

# The models are fetched by the program under test. The whole workspace is built as the tests build it: building the binary
# alone would choose other features for its dependencies and compile them twice.
cd "$here/.."
cargo build --quiet --profile ci --workspace --all-targets
"${CARGO_TARGET_DIR:-target}/ci/pagoda" pull smollm2-135m-instruct
"${CARGO_TARGET_DIR:-target}/ci/pagoda" pull all-minilm-l6-v2
