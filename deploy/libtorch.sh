#!/usr/bin/env bash
# Fills .libtorch/ with what the build needs: libtorch 2.11 (headers and libraries) and CMake.
#
# Where `python3` already has PyTorch 2.11, that one is used (so a GPU node gets CUDA). Elsewhere three wheels are
# fetched without their dependencies, which is enough to load libtorch on a CPU. Running it again does nothing.
set -euo pipefail

TORCH_VERSION=2.11.0
root=$(cd "$(dirname "$0")/.." && pwd)
dest=$root/.libtorch

fail() { printf 'setup: %s\n' "$*" >&2; exit 2; }

need() { # need COMMAND HOW-TO-INSTALL
    command -v "$1" >/dev/null 2>&1 || fail "\`$1\` is missing; install it with: $2"
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "only Linux on x86-64 is supported, this is $(uname -s) on $(uname -m)"
need cargo "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
need c++ "apt-get install g++   (or your distribution's C++ compiler)"
need python3 "apt-get install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip; install it with: apt-get install python3-pip"

stamp="libtorch $TORCH_VERSION"
if [ -f "$dest/stamp" ] && [ "$(cat "$dest/stamp")" = "$stamp" ] && [ -e "$dest/lib/libtorch_cpu.so" ]; then
    exit 0
fi

rm -rf "$dest.tmp" && mkdir -p "$dest.tmp/bin"
pip_install() { python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$dest.tmp/site" "$@"; }

installed=$(python3 - <<'PY' 2>/dev/null || true
import importlib.util, pathlib
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    here = pathlib.Path(spec.origin).parent
    if (here / "version.py").read_text().find("2.11.0") >= 0 and (here / "lib/libtorch_cpu.so").exists():
        print(here)
PY
)

if [ -n "$installed" ]; then
    echo "setup: using the installed PyTorch at $installed"
    ln -s "$installed/lib" "$dest.tmp/lib"
    ln -s "$installed/include" "$dest.tmp/include"
else
    echo "setup: fetching libtorch $TORCH_VERSION (545 MB, once)"
    pip_install "torch==$TORCH_VERSION" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
    mkdir "$dest.tmp/lib"
    ln -s site/torch/include "$dest.tmp/include"
    # A view of the CUDA wheel without its CUDA parts: those would ask for gigabytes of further libraries.
    for library in libtorch_cpu.so libc10.so; do
        ln -s "../site/torch/lib/$library" "$dest.tmp/lib/$library"
    done
    for library in libgomp.so.1 libcudart.so.13 libcupti.so.13; do
        found=$(cd "$dest.tmp" && find site -name "$library" -print -quit)
        [ -n "$found" ] || fail "the wheels hold no $library; remove $dest and run \`make setup\` again"
        ln -s "../$found" "$dest.tmp/lib/$library"
    done
    ln -s libtorch_cpu.so "$dest.tmp/lib/libtorch.so"
fi
printf '%s' "$TORCH_VERSION" > "$dest.tmp/build-version"

pip_install cmake==4.1.2
ln -s ../site/cmake/data/bin/cmake "$dest.tmp/bin/cmake"

printf '%s' "$stamp" > "$dest.tmp/stamp"
rm -rf "$dest" && mv "$dest.tmp" "$dest"
echo "setup: libtorch is in $dest"
