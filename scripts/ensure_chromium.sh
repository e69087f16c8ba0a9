#!/bin/sh
# Makes sure that there is a Chromium for the browser tests: installs Debian's where that is possible.
set -eu

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core
else
    cat >&2 <<END
The browser tests need Chromium, and only root can install it here:
    sudo apt-get install chromium      (Debian; other systems: any Chromium or Chrome on the PATH)
Then run make test again. The tests without a browser: make test-kernels.
END
    exit 1
fi
