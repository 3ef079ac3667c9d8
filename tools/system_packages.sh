#!/usr/bin/env bash
# Installs the Debian packages that are missing: libraries that opencv-python and open3d need, g++ for torch.compile, and
# with "test" a browser, and what drives it, for the tests of the reports and the viewer. Where it may not or cannot, it says what is needed and goes on.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

[[ $(uname -s) == Linux ]] || exit 0

library() { [[ $(ldconfig -p 2>/dev/null) == *"$1"* ]]; }
browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

missing=()
library libGL.so.1 || missing+=(libgl1)
library libglib-2.0.so.0 || missing+=(libglib2.0-0)
library libusb-1.0.so.0 || missing+=(libusb-1.0-0)
library libX11.so.6 || missing+=(libx11-6)
library libgomp.so.1 || missing+=(libgomp1)
command -v g++ >/dev/null || missing+=(g++)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[[ ${1:-} != test ]] || browser >/dev/null || missing+=(chromium)
[[ ${1:-} != test ]] || command -v chromedriver >/dev/null || missing+=(chromium-driver)
((${#missing[@]})) || exit 0

by_hand="apt-get install -y --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    echo "Not found here: ${missing[*]} (Debian's names). Please install them with this system's package manager." >&2
    exit 0
fi
as_root=()
if ((EUID)); then
    if ! sudo -n true 2>/dev/null; then
        echo "Not found here: ${missing[*]}. Please run: sudo $by_hand" >&2
        exit 0
    fi
    as_root=(sudo -n)
fi
echo "Installing with apt-get: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1 </dev/null; }
if ! { run update && run install -y --no-install-recommends "${missing[@]}"; }; then
    tail -n 15 "$log" >&2
    echo "apt-get did not install ${missing[*]}. Please run: $by_hand" >&2
fi
