#!/usr/bin/env bash
# Sets up a virtual environment with kdtool and everything it needs: scripts/setup.sh VENV
#
# ffcv ships as source and asks pkg-config for all of OpenCV (198 Debian packages). It uses only core and imgproc, so
# we show its build an opencv4.pc and an opencv_modules.hpp that name just those two.
set -euo pipefail

venv=${1:?usage: scripts/setup.sh VENV}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"
    else die "needs root for: $*   Run that yourself as root, or install sudo, then run make setup again."; fi
}

apt_install() {
    say "installing with apt: $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >/dev/null
}

# What the interpreter itself lacks, as Debian package names.
python_packages() {
    if ! command -v "$python" >/dev/null; then echo python3 python3-venv python3-dev; return; fi
    local package
    package=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "$package-venv"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || echo "$package-dev"
}

system_packages() {
    python_packages
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    [ -e /usr/include/turbojpeg.h ] || pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    [ -e /usr/include/opencv4/opencv2/imgproc.hpp ] || echo libopencv-imgproc-dev
    # the opencv-python wheel, which ffcv imports, loads these two
    local libraries
    libraries=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)  # whole: grep -q would end it by a broken pipe
    grep -q 'libGL\.so\.1' <<<"$libraries" || echo libgl1
    grep -q 'libgthread-2\.0\.so' <<<"$libraries" || echo libglib2.0-0
}

stamp="$venv/.kdtool-setup"
want=$(cat "$root/pyproject.toml" "$root/scripts/setup.sh" | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want $root" ] && "$venv/bin/kdtool" --version >/dev/null 2>&1; then
    exit 0
fi

missing=$(system_packages | tr '\n' ' ')
if command -v apt-get >/dev/null; then
    [ -z "${missing// /}" ] || apt_install $missing
    # Real images without a download; where the package is unknown, torchvision fetches the same files when first used.
    [ -d /usr/share/datasets/fashion-mnist ] || apt_install dataset-fashion-mnist \
        || say "no package dataset-fashion-mnist here: it will be downloaded when first used"
elif [ -n "${missing// /}" ]; then
    die "this is not Debian or Ubuntu. Install by hand Python >= 3.10 with its headers, a C++ compiler, pkg-config," \
        "libjpeg-turbo (turbojpeg.h) and OpenCV 4 headers (core, imgproc), then run make setup again."
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || die "kdtool needs Python >= 3.10, found $("$python" --version). Name another: make setup PYTHON=python3.12"

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"  # half-made ones too

if ! "$venv/bin/python" -c 'from importlib.metadata import version; assert version("ffcv") == "1.0.2"' 2>/dev/null; then
    shim=$(mktemp -d)
    trap 'rm -rf "$shim"' EXIT
    if [ -e /usr/include/opencv4/opencv2/imgproc.hpp ]; then
        mkdir -p "$shim/opencv2"
        printf '#define HAVE_OPENCV_CORE\n#define HAVE_OPENCV_IMGPROC\n' > "$shim/opencv2/opencv_modules.hpp"
        printf '%s\n' 'Name: opencv4' 'Description: core and imgproc only' 'Version: 4' \
            "Cflags: -I$shim -I/usr/include/opencv4" 'Libs: -lopencv_imgproc -lopencv_core' > "$shim/opencv4.pc"
        export PKG_CONFIG_PATH="$shim${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
    fi
fi

say "installing kdtool into $venv (the first time fetches about 3 GB)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root[dev]"
printf '%s %s' "$want" "$root" > "$stamp"
say "done: $venv/bin/kdtool"
