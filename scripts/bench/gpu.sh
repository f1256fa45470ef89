#!/usr/bin/env bash
# The benchmarks of the teacher and of the students on one GPU, beside transformers, peft and sentence-transformers:
# under nine minutes whatever hangs, and nothing is downloaded. Prints the page docs/benchmarks/gpu.md.
#
#   scripts/bench/gpu.sh [FOLDER]                 one GPU; random weights of Qwen3-8B's and of BERT-base's shape
#   SHAPES=tiny scripts/bench/gpu.sh [FOLDER]     whole on a CPU with tiny shapes, to check this script
#
# FOLDER (runs/gpu) gets device.json, teacher.json, students.json, the logs and the page, gpu.md. After a run on a GPU the
# page replaces docs/benchmarks/gpu.md too. A part that fails or does not end is named, and the next one goes on. Exits
# with 1 where something failed, or without a GPU.
#
#   PYTHON   python3 unless set: it has the packages; jax_rele itself is that of this clone
#   SHAPES   full unless set
#   ENDS     seconds from the start until which the device may be looked at, the teacher and the students measured and
#            the page written: 30 395 515 525 unless set, more with tiny shapes, as CPUs may be busy
set -uo pipefail

die() {
  echo "gpu.sh: $*" >&2
  exit 2
}

(($# <= 1)) || die "usage: gpu.sh [FOLDER]"
case ${SHAPES:=full} in
  full) device=gpu teacher_shape=8b students=(--shape bert_base) until="30 395 515 525" ;;
  tiny)
    device=cpu teacher_shape=tiny students=(--shape tiny --short) until="120 600 900 960"
    export JAX_PLATFORMS=cpu
    ;;
  *) die "SHAPES is '$SHAPES'; it must be full or tiny" ;;
esac
[[ ${ENDS:=$until} =~ ^[0-9]+\ [0-9]+\ [0-9]+\ [0-9]+$ ]] || die "ENDS is '$ENDS'; it must be four numbers"
python=${PYTHON:-python3}
command -v "$python" >/dev/null || die "no such command: $python"
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-runs/gpu}
mkdir -p "$folder" || die "cannot make $folder"
rm -f "$folder"/{device,teacher,students}.json "$folder"/{teacher,students}.log "$folder/gpu.md"
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$cache}

declare -A ends
read -r "ends[device]" "ends[teacher]" "ends[students]" "ends[page]" <<<"$ENDS"
failed=()
child=
# `timeout` passes it on to the part's processes, which no signal of the terminal reaches.
trap 'kill $child 2>/dev/null; exit 130' INT TERM

# run NAME COMMAND...: until the part's end, then it is killed with all that it started.
run() {
  local left=$((ends[$1] - SECONDS)) status=0
  timeout -k 5 "$((left > 1 ? left : 1))" "${@:2}" &
  child=$!
  wait "$child" || status=$?
  case $status in
    0) ;;
    124 | 137) failed+=("The part $1 was ended at its time limit.") ;;
    *) failed+=("The part $1 ended with status $status; its log says more.") ;;
  esac
  return "$status"
}

# sides NAME OVERHEAD PERCENT COMMAND...: of the part's time less OVERHEAD seconds our side gets PERCENT, the other the
# rest.
sides() {
  local left=$((ends[$1] - SECONDS - $2)) log=$folder/$1.log ours
  ((left > 1)) || left=2
  ours=$((left * $3 / 100))
  echo "gpu.sh: $1, until ${ends[$1]} s" >&2
  run "$1" "$python" "${@:4}" --device "$device" --apart "$ours,$((left - ours))" --json "$folder/$1.json" >"$log" 2>&1
}

bench=$root/scripts/bench
parts=$(run device "$python" "$bench/gpu_device.py" "$folder/device.json" --shapes "$SHAPES") || {
  (($? < 124)) || echo "gpu.sh: the device could not be looked at in time" >&2
  echo "gpu.sh: nothing was measured" >&2
  exit 1
}
if [[ $parts == *teacher* ]]; then
  sides teacher 10 66 "$bench/teacher.py" --shape "$teacher_shape" --parts sft,score,decode,attention,precision
fi
sides students 25 56 "$bench/students.py" "${students[@]}"

if run page "$python" "$bench/gpu_page.py" "$folder" --failed "${failed[@]}" >"$folder/gpu.md"; then
  cat "$folder/gpu.md"
  if [[ $SHAPES == full ]]; then cp "$folder/gpu.md" "$root/docs/benchmarks/gpu.md"; fi
fi
echo "gpu.sh: $SECONDS s" >&2
((${#failed[@]} == 0))
