#!/usr/bin/env bash
# Builds, proves and times on a machine with a GPU and no network, in one go: what it needs is there or is carried.
#
#   bash benchmarks/gpu/lent.sh [arguments of python3 -m benchmarks.gpu]
#
# Results go to $OUT where that is set (gpu.json, gpu.md, build.log, and the built extension, which a later call may bring
# back in built/ to save the build), else to benchmarks/results/<gpu>. Architectures: FASTCONV_CUDA_ARCHS, default 90a.
set -uo pipefail
cd "$(dirname "$0")/../.."
started=$SECONDS
python=${PYTHON:-python3}
PATH="$(dirname "$(command -v "$python")"):$PATH" # ninja lies beside the interpreter of a virtual environment
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
output=${OUT:-}
log=${output:-/tmp}/build.log

sources=$(find csrc cmake CMakeLists.txt -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
if [ "$(cat built/digest 2>/dev/null)" = "$sources" ]; then
  cp built/_C*.so built/_build.py fastconv/
  echo "The extension was brought along."
else
  # One instruction set for the CPU and one architecture: the build shall take a minute on 16 cores.
  if ! { "$python" -m cmake -S . -B build/gpu -G Ninja -DPython_EXECUTABLE="$(command -v "$python")" -DFASTCONV_CUDA=on \
    -DFASTCONV_CUDA_ARCHS="${FASTCONV_CUDA_ARCHS:-90a}" -DFASTCONV_ISAS="${FASTCONV_ISAS:-scalar}" &&
    "$python" -m cmake --build build/gpu --parallel "$(nproc)"; } >"$log" 2>&1; then
    echo "The build failed; what it said last:"
    tail -n 40 "$log"
    for program in "$python" nvcc c++ cmake ninja; do echo "$program: $(command -v "$program" || echo missing)"; done
    exit 3
  fi
  rm -f fastconv/_C*.so
  cp build/gpu/_C*.so build/gpu/_build.py fastconv/
  strip --strip-debug fastconv/_C*.so 2>/dev/null
  if [ -n "$output" ]; then
    mkdir -p "$output/built"
    cp fastconv/_C*.so fastconv/_build.py "$output/built/"
    echo "$sources" >"$output/built/digest"
  fi
fi
echo "Ready after $((SECONDS - started)) s."
limit=${LIMIT:-600}  # seconds of the whole call
exec "$python" -m benchmarks.gpu --seconds $((limit - (SECONDS - started) - 30)) ${output:+--output "$output"} "$@"
