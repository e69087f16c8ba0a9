#!/bin/sh
# Prints the path of a Python of at least the given version that can make environments.
#
#     scripts/find_python.sh 3.12
set -eu

lowest=$1
probe="import ensurepip, sys, venv
if sys.version_info < (${lowest%.*}, ${lowest#*.}):
    sys.exit(1)
print(sys.executable)"

for name in python3 python3.12 python3.13 python3.14 python3.11 python3.10; do
    case $name in
        *.*) version=${name#python} ;; # pyenv's python3.12 is there, yet answers to this only
        *) version=${PYENV_VERSION-} ;;
    esac
    if PYENV_VERSION=$version "$name" -c "$probe" 2>/dev/null; then
        exit 0
    fi
done

cat >&2 <<END
No Python $lowest or later that can make environments was found here. Install one, such as Debian's
python3 and python3-venv, or python.org's; or name yours: make SITE_PYTHON=… or KERNEL_PYTHON=…
END
exit 1
