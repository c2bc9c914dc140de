#!/bin/sh
# Everything about cost that needs a GPU, in one command from a clean checkout and at most 8 minutes:
#
#     bench/gpu.sh                    # Stable Diffusion 1.4's architecture on CUDA
#     DEVICE=cpu bench/gpu.sh         # the same steps at tiny sizes, to try the script
#
# fp16 and bf16, with and without torch.compile, with and without SDPA, batch 1, 4 and 8; AP (ours and
# the authors'), ESD, UCE for 1, 10 and 100 concepts; diffusers' LoRA step and ESD's published loop
# beside them; memory against the plan; a short training against the CPU's in fp32; whole trainings of
# AP and ESD, and the exact search over 1,000 nouns; SDXL at 1,024 pixels. One JSON each in $OUT; a step
# that fails or runs out of time is said, and the others go on. SKIP=NAME leaves one out.
set -u
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda}
OUT=${OUT:-bench/size/gpu}
LIMIT=${LIMIT:-480}
PYTHON=${PYTHON:-}
if [ -z "$PYTHON" ]; then
    PYTHON=.venv/bin/python
    if [ ! -x "$PYTHON" ]; then
        python3 -m venv --system-site-packages .venv &&
            $PYTHON -m pip install -q -e . peft || exit 1
    fi
fi
if [ "$DEVICE" = cpu ]; then
    ARCH=tiny SIZE=16 BATCHES="1 2" DTYPES="bf16" UPDATES=1 WHOLE=4 SEARCHED=62 LARGE=tiny LARGE_SIZE=32
else
    ARCH=sd14 SIZE=512 BATCHES="1 4 8" DTYPES="fp16 bf16" UPDATES=5 WHOLE=200 SEARCHED=122 LARGE=sdxl LARGE_SIZE=1024
fi
START=$(date +%s)
FAILED=0

step() { # NAME OPTIONS…
    name=$1
    shift
    [ "$name" = "${SKIP:-}" ] && return
    left=$((LIMIT - $(date +%s) + START))
    if [ "$left" -lt 5 ]; then
        echo "$name: left out, the time is over" >&2
        FAILED=1
        return
    fi
    echo "== $name ($left s left)"
    timeout "$left" "$PYTHON" bench/size.py --arch "$ARCH" --device "$DEVICE" --size "$SIZE" \
        --updates "$UPDATES" --rounds 1 --out "$OUT/$name.json" "$@" ||
        { echo "$name: failed" >&2; FAILED=1; }
}

MAIN="--only ap --only esd"
step parity --parity
for dtype in $DTYPES; do
    step "$dtype" --dtype "$dtype" --batch $BATCHES $MAIN --only "diffusers' LoRA step" --only "ap, checkpointing"
done
step "methods" --dtype bf16 --only "ap official" --only "ESD's published loop" --only uce --only speed
step "search" --dtype bf16 --whole --updates "$SEARCHED" \
    --only "ap exact, whole" --only "ap exact, among 64, whole"
step "sdxl" --arch "$LARGE" --size "$LARGE_SIZE" --dtype bf16 $MAIN --only "diffusers' LoRA step" --only uce
step "no-sdpa" --dtype bf16 --attention plain $MAIN
step "fp32" $MAIN --only "diffusers' LoRA step"
step "whole" --dtype bf16 --whole --updates "$WHOLE" --only "ap, whole" --only "esd, whole"
step "compiled" --dtype bf16 --compile $MAIN # last: compiling may take all the time that is left
echo "took $(($(date +%s) - START)) s; the results are in $OUT"
exit $FAILED
