#!/usr/bin/env bash
# Puts real chat templates into the test cache: the .jinja files of one sdist on PyPI. They are other people's work under
# their models' licences, so they are never committed. Needs the Python of the test cache (scripts/setup_tests.sh makes it;
# made here where it is absent). Does nothing when the templates are there.
set -euo pipefail

cache="${XDG_CACHE_HOME:-$HOME/.cache}/pagoda/test"
package="llama-cpp-python==0.3.36"
sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
inside="vendor/llama.cpp/models/templates"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

if [ -f "$cache/templates/.$sha256" ]; then
    echo "chat templates: $cache/templates"
    exit 0
fi

if [ ! -x "$cache/venv/bin/python" ]; then
    python3 -m venv "$cache/venv"
    "$cache/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements-test.txt"
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# pip asks the sdist for its metadata before it keeps it; scikit-build-core in the venv answers without compiling.
echo "$package --hash=sha256:$sha256" > "$work/requirements.txt"
"$cache/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
    --no-build-isolation --require-hashes -r "$work/requirements.txt" -d "$work"
tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work" --wildcards "*/$inside/*.jinja"

rm -rf "$cache/templates.part"
mkdir -p "$cache/templates.part"
cp "$work"/llama_cpp_python-*/"$inside"/*.jinja "$cache/templates.part/"
touch "$cache/templates.part/.$sha256"
rm -rf "$cache/templates"
mv "$cache/templates.part" "$cache/templates"
echo "chat templates: $(ls "$cache/templates" | wc -l) in $cache/templates"
