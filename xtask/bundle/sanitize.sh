#!/bin/sh
# Runs a part of the tests of the GPU kernels under compute-sanitizer: sh sanitize.sh [RESULTS]
#
# Beside run.sh, which says what the machine needs; compute-sanitizer comes with the CUDA toolkit. memcheck looks for
# accesses outside of allocations, initcheck for memory that is read before anything wrote it, synccheck for barriers that
# not all threads reach. A tool that takes longer than SECONDS_EACH is stopped, which is no failure: what it ran until then
# had none. The exit code is the number of tools that found something, 100 without compute-sanitizer.
set -u
here=$(cd "$(dirname "$0")" && pwd)
results=${1:-results}
mkdir -p "$results" || exit 100
results=$(cd "$results" && pwd)
scratch=$(mktemp -d) || exit 100
trap 'rm -rf "$scratch"' EXIT

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /usr/local/cuda*/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1)
if [ -z "$sanitizer" ]; then
    echo "compute-sanitizer is not here"
    exit 100
fi
if [ -z "${EINFALL_NVRTC:-}" ]; then
    EINFALL_NVRTC=$(python3 - <<'PYTHON'
import pathlib, sys
folders = (pathlib.Path(path) / part for path in sys.path for part in ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"))
print(next((str(folder) for folder in folders if folder.is_dir()), ""))
PYTHON
    )
    if [ -n "$EINFALL_NVRTC" ]; then export EINFALL_NVRTC; else unset EINFALL_NVRTC; fi
fi
cp "$here/cuda_tests" "$scratch" && chmod +x "$scratch/cuda_tests"
# Few problems of each kind, the same for every tool; the first of them compiles for all.
EINFALL_CASES=${EINFALL_CASES:-12}
EINFALL_CACHE=$scratch/kernels
export EINFALL_CASES EINFALL_CACHE

failed=0
for tool in memcheck initcheck synccheck; do
    log=$results/$tool.log
    # Without cuBLASLt, whose kernels are not ours: so the loader's path is left as it is.
    timeout "${SECONDS_EACH:-75}" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 \
        "$scratch/cuda_tests" --ignored --test-threads 1 every_kernel_matches random_problems slices >"$log" 2>&1
    code=$?
    errors=$(grep -c '^========= \(Invalid\|Uninitialized\|Barrier\|Program hit\|Race\)' "$log")
    summary=$(grep 'ERROR SUMMARY' "$log" | tail -n 1)
    case $code in
        0) verdict=passed ;;
        124) if [ "$errors" -eq 0 ]; then verdict='stopped, nothing found until then'; else verdict=FAILED; fi ;;
        *) verdict="FAILED with exit code $code" ;;
    esac
    printf '== %s: %s %s\n' "$tool" "$verdict" "$summary"
    case $verdict in
        FAILED*)
            failed=$((failed + 1))
            grep -v '^=========     Host Frame' "$log" | head -n 40
            ;;
    esac
done
exit "$failed"
