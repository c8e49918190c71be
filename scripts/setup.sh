#!/usr/bin/env bash
# Sets up a virtual environment with kdtool and everything it needs: scripts/setup.sh VENV
set -euo pipefail

venv=${1:?usage: scripts/setup.sh VENV}
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/system.sh"

system_packages() {
    build_packages
    # the opencv-python wheel, which ffcv imports, loads these two
    local libraries
    libraries=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)  # whole: grep -q would end it by a broken pipe
    grep -q 'libGL\.so\.1' <<<"$libraries" || echo libgl1
    grep -q 'libgthread-2\.0\.so' <<<"$libraries" || echo libglib2.0-0
}

stamp="$venv/.kdtool-setup"
want=$(cat "$root/pyproject.toml" "$root"/scripts/*.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want $root" ] && "$venv/bin/kdtool" --version >/dev/null 2>&1; then
    exit 0
fi

find_python setup
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
check_python setup

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"  # half-made ones too
"$venv/bin/python" -c "from importlib.metadata import version; assert version('ffcv') == '$FFCV_VERSION'" 2>/dev/null \
    || show_small_opencv

say "installing kdtool into $venv (the first time fetches about 3 GB, 6 GB on disk, and compiles ffcv)"
quiet=--quiet
[ ! -t 1 ] || quiet=--progress-bar=on  # minutes of silence are for logs alone
"$venv/bin/python" -m pip install "$quiet" --use-pep517 --disable-pip-version-check -e "$root[dev]"
printf '%s %s' "$want" "$root" > "$stamp"
say "done: $venv/bin/kdtool"
