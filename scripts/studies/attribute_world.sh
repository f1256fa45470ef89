#!/usr/bin/env bash
# The study docs/studies/attribute_world.md: what each kind of a teacher's knowledge adds where labels are few.
#
#   scripts/studies/attribute_world.sh [FOLDER]       about an hour on two cores; goes on where it was
#
# Writes runs and generated data to FOLDER (by default studies/attribute_world) and prints every table. Needs `jax-rele`
# on the path.
set -euo pipefail
folder=${1:-studies/attribute_world}
config=$(cd "$(dirname "$0")/../.." && pwd)/configs/attribute_world.yaml
mkdir -p "$folder"
cd "$folder"

# make NAME NOISE, then compare NAME OPTIONS...
make() {
  [[ -e worlds/$1/signals.jsonl ]] ||
    python -m jax_rele.data.attribute_world "worlds/$1" --labels 10000 --unlabelled 8000 --noise "$2"
}
compare() {
  local name=$1
  shift
  jax-rele compare "$config" --name "$name" --data.path "worlds/$name/pairs.jsonl" \
    --score.signals "worlds/$name/signals.jsonl" "$@"
  # A comparison writes to the same place whatever it is asked for.
  mkdir -p "tables/$name"
  cp -r "runs/$name/compare/"{comparison.md,comparison.json,comparison.html,figures} "tables/$name/"
}

make attribute_world 0.05
compare attribute_world --labelled 1000 --seeds 5
mv tables/attribute_world tables/main
compare attribute_world --labelled 1000 --seeds 5 --recipes score_kd mkd --reference score_kd
mv tables/attribute_world tables/mkd_less_score_kd
compare attribute_world --recipes label_only score_kd mkd --labelled 100 1000 10000 --seeds 3
mv tables/attribute_world tables/labels

# A noisier teacher: every one of its six verdicts is wrong with this chance.
for noise in 0.2; do
  make "noise_$noise" "$noise"
  compare "noise_$noise" --recipes label_only score_kd mkd --labelled 1000 --seeds 3
done
echo "$folder/tables holds every table and figure"
