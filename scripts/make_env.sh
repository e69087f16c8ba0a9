#!/bin/sh
# Makes a virtual environment and installs requirements into it.
#
#     scripts/make_env.sh FOLDER LOWEST_VERSION PYTHON REQUIREMENTS
#
# An empty PYTHON means: find one.
set -eu

folder=$1 lowest=$2 python=$3 requirements=$4
[ -n "$python" ] || python=$("$(dirname "$0")/find_python.sh" "$lowest")

echo "Making $folder with $python; the first time takes a minute or more."
"$python" -m venv --clear "$folder"
"$folder/bin/pip" install -q -r "$requirements" || {
    echo "$folder: $requirements could not be installed for $("$python" -V) ($python)." >&2
    echo "Another Python may have them: make SITE_PYTHON=… or KERNEL_PYTHON=…" >&2
    exit 1
}
