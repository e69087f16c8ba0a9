#!/bin/sh
# Makes sure that there is a Chromium for the browser tests: installs Debian's where that is possible.
set -eu

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core
then
    exit 0
fi
cat >&2 <<END
The browser tests need Chromium, which could not be installed: that takes root, and Debian or Ubuntu.
    sudo apt-get install chromium      (other systems: any Chromium or Chrome on the PATH)
Then run make test again. The tests without a browser: make test-kernels.
END
exit 1
