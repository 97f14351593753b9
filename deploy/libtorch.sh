#!/usr/bin/env bash
# Fills .libtorch/ with what the build needs: libtorch 2.13 (headers and libraries) and CMake.
#
# DEVICE is `cpu`, `cuda`, or empty: then a GPU that is seen decides, unless a device was asked for before. Where `python3`
# already has PyTorch 2.13 (for `cuda` one with CUDA), that one is used. Elsewhere its wheel is fetched: for `cpu` with the
# two libraries of CUDA that it does not load without, for `cuda` with all of them. Running it again does nothing.
set -euo pipefail

TORCH_VERSION=2.13.0
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

sees_gpu() {
    [ -e /dev/nvidiactl ] || { [ -e /dev/dxg ] && [ -e /usr/lib/wsl/lib/libcuda.so.1 ]; } || nvidia-smi -L >/dev/null 2>&1
}

asked=${DEVICE:-}
case "$asked" in
    cpu | cuda) device=$asked ;;
    "") if sees_gpu; then device=cuda; else device=cpu; fi ;;
    *) fail "DEVICE is \`$asked\`; write \`cpu\` or \`cuda\`, or leave it out" ;;
esac
stamp="libtorch $TORCH_VERSION $device${asked:+, as asked}"

# Whether what is there will do: what was asked for stays until the other is, and CUDA's libtorch serves a CPU, too, as
# where a program is built on a machine without the GPU.
will_do() { # will_do STAMP
    case "$1" in
        "libtorch $TORCH_VERSION cuda"*) [ "$asked" != cpu ] ;;
        "libtorch $TORCH_VERSION cpu, as asked") [ "$asked" != cuda ] ;;
        "libtorch $TORCH_VERSION cpu" | "libtorch $TORCH_VERSION") [ "$device" = cpu ] ;;
        *) false ;;
    esac
}

if [ -f "$dest/stamp" ] && [ -e "$dest/lib/libtorch_cpu.so" ] && will_do "$(cat "$dest/stamp")"; then
    [ -z "$asked" ] || printf '%s' "$stamp" > "$dest/stamp"
    exit 0
fi

rm -rf "$dest.tmp" && mkdir -p "$dest.tmp/bin"
pip_install() { python3 -m pip install --quiet --disable-pip-version-check --target "$dest.tmp/site" "$@"; }

needed=libtorch_cpu.so
[ "$device" = cpu ] || needed=libtorch_cuda.so
installed=$(python3 - "$needed" <<'PY' 2>/dev/null || true
import importlib.util, pathlib, sys
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    here = pathlib.Path(spec.origin).parent
    if (here / "version.py").read_text().find("2.13.0") >= 0 and (here / "lib" / sys.argv[1]).exists():
        print(here)
PY
)

# What the wheel says that it needs of NVIDIA's libraries; the rest is for Python.
cuda_requirements() {
    sed -n 's/^Requires-Dist: \(\(cuda-toolkit\|nvidia-\)[^;]*\).*/\1/p' "$dest.tmp"/site/torch-*.dist-info/METADATA | tr -d ' '
}

if [ -n "$installed" ]; then
    echo "setup: using the installed PyTorch at $installed ($device)"
    ln -s "$installed/lib" "$dest.tmp/lib"
    ln -s "$installed/include" "$dest.tmp/include"
elif [ "$device" = cuda ]; then
    reason="as asked"
    [ -n "$asked" ] || reason="a GPU is seen; \`make setup DEVICE=cpu\` fetches 545 MB for the CPU alone"
    echo "setup: fetching libtorch $TORCH_VERSION with its CUDA libraries (2.5 GB, once; $reason)"
    pip_install --no-deps "torch==$TORCH_VERSION"
    requirements=$(cuda_requirements)
    [ -n "$requirements" ] || fail "the wheel of PyTorch $TORCH_VERSION names no CUDA libraries; use \`make setup DEVICE=cpu\`"
    # They need each other only, and in one call: a second one would pass over the folder that they share.
    # shellcheck disable=SC2086
    pip_install $requirements
    # One link, so that the libraries find those of CUDA by the path from their own folder.
    ln -s site/torch/lib "$dest.tmp/lib"
    ln -s site/torch/include "$dest.tmp/include"
else
    echo "setup: fetching libtorch $TORCH_VERSION (545 MB, once; without CUDA, \`make setup DEVICE=cuda\` fetches it with)"
    pip_install --no-deps "torch==$TORCH_VERSION" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
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

pip_install --no-deps cmake==4.1.2
ln -s ../site/cmake/data/bin/cmake "$dest.tmp/bin/cmake"

printf '%s' "$stamp" > "$dest.tmp/stamp"
rm -rf "$dest" && mv "$dest.tmp" "$dest"
echo "setup: libtorch ($device) is in $dest"
