#!/bin/sh
# Runs the tests of the GPU kernels and the timings on a machine with an NVIDIA GPU: sh run.sh [RESULTS]
#
# Needs the driver, python3 with torch, and NVRTC, which comes with torch or with the CUDA toolkit (else EINFALL_NVRTC
# names its folder). Writes logs, time.json, keys/, dense/ and lookups/ to the folder RESULTS, ./results unless it is given. The exit code
# is the number of parts that failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
results=${1:-results}
mkdir -p "$results" || exit 1
results=$(cd "$results" && pwd)
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
failed=0

# part NAME COMMAND...: its output goes to RESULTS/NAME.log, the end of it to the terminal too.
part() {
    name=$1
    shift
    printf '== %s\n' "$name"
    "$@" >"$results/$name.log" 2>&1
    code=$?
    tail -n "${LINES_SHOWN:-12}" "$results/$name.log"
    if [ "$code" -ne 0 ]; then
        printf '== %s FAILED with exit code %s, see %s\n' "$name" "$code" "$results/$name.log"
        failed=$((failed + 1))
    fi
}

# What was compiled elsewhere may not be what this machine would compile.
EINFALL_CACHE=$scratch/kernels
export EINFALL_CACHE
if [ -z "${EINFALL_NVRTC:-}" ]; then
    EINFALL_NVRTC=$(python3 - <<'PYTHON'
import pathlib, sys
folders = (pathlib.Path(path) / part for path in sys.path for part in ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"))
print(next((str(folder) for folder in folders if folder.is_dir()), ""))
PYTHON
    )
    if [ -n "$EINFALL_NVRTC" ]; then export EINFALL_NVRTC; else unset EINFALL_NVRTC; fi
fi
cp "$here/einfall" "$here/cuda_tests" "$scratch" && chmod +x "$scratch/einfall" "$scratch/cuda_tests"
PYTHONPATH=$here/site${PYTHONPATH:+:$PYTHONPATH}
PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONDONTWRITEBYTECODE
if ! python3 -c 'import pytest' 2>/dev/null; then
    python3 -m pip install --quiet --no-index --no-deps --target "$scratch/pytest" "$here"/wheels/*.whl
    PYTHONPATH=$scratch/pytest:$PYTHONPATH
fi

# With torch comes cuBLASLt too, which Python's part finds by itself.
libraries=${EINFALL_NVRTC:-}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

part machine "$scratch/einfall" machine --device cuda
# That every kernel compiles for other GPUs too is tested where there is none.
part cuda_tests env LD_LIBRARY_PATH="$libraries" "$scratch/cuda_tests" --ignored --skip every_kernel_compiles
part pytest python3 -m pytest -q -p no:cacheprovider "$here/tests"
LINES_SHOWN=80
part time python3 "$here/time_gpu.py" --json "$results/time.json"
# Two k: compiling a peer anew for each takes longer than timing it.
part keys env LD_LIBRARY_PATH="$libraries" "$scratch/einfall" bench keys --device cuda --peers --k 10,100 --out "$results/keys"
# A short turn for each engine; of torch.compile only where it is the expert's way.
LINES_SHOWN=40
part dense env LD_LIBRARY_PATH="$libraries" "$scratch/einfall" bench dense --device cuda --peers --no-compile \
    --dtype f32,bf16 --budget 0.1 --out "$results/dense" --force
part lookups env LD_LIBRARY_PATH="$libraries" "$scratch/einfall" bench lookups --device cuda --peers \
    --only scores,values,spmm,moe --budget 0.1 --out "$results/lookups" --force
printf '== results are in %s, %s failed\n' "$results" "$failed"
exit "$failed"
