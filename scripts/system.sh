# Sourced by setup.sh and ffcv_wheel.sh: what the system must have, and how ffcv is built with little of it.
#
# ffcv ships as source and asks pkg-config for all of OpenCV (198 Debian packages). It uses only core and imgproc, so
# we show its build an opencv4.pc and an opencv_modules.hpp that name just those two.

FFCV_VERSION=1.0.2
python=${PYTHON:-python3}
say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }
die() { say "$*"; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"
    else die "needs root for: $*   Run that yourself as root, or install sudo, then run the same command again."; fi
}

apt_install() {
    say "installing with apt: $*"
    as_root apt-get update -qq
    # without apt-utils apt tells that it configures packages later, which concerns nobody
    as_root env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
        apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >/dev/null
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

# What building ffcv takes.
build_packages() {
    python_packages
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    [ -e /usr/include/turbojpeg.h ] || pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    [ -e /usr/include/opencv4/opencv2/imgproc.hpp ] || echo libopencv-imgproc-dev
}

# A Python that was asked for by name must be there: apt may not know it.
find_python() {
    [ "$python" = python3 ] || command -v "$python" >/dev/null \
        || die "$python is not here. Install it with its headers and venv, or name one that is: make $1 PYTHON=python3"
}

check_python() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || die "kdtool needs Python >= 3.10, found $("$python" --version). Name another: make $1 PYTHON=python3.12"
}

# Makes pkg-config tell ffcv's build of core and imgproc alone.
show_small_opencv() {
    [ -e /usr/include/opencv4/opencv2/imgproc.hpp ] || return 0  # not Debian's place: OpenCV's own opencv4.pc then
    local shim=$scratch/opencv
    mkdir -p "$shim/opencv2"
    printf '#define HAVE_OPENCV_CORE\n#define HAVE_OPENCV_IMGPROC\n' > "$shim/opencv2/opencv_modules.hpp"
    printf '%s\n' 'Name: opencv4' 'Description: core and imgproc only' 'Version: 4' \
        "Cflags: -I$shim -I/usr/include/opencv4" 'Libs: -lopencv_imgproc -lopencv_core' > "$shim/opencv4.pc"
    export PKG_CONFIG_PATH="$shim${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
}
