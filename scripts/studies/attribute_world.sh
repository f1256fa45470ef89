#!/usr/bin/env bash
# The study docs/studies/attribute_world.md: what each kind of a teacher's knowledge adds where labels are few.
#
#   scripts/studies/attribute_world.sh [FOLDER]       about an hour and a half on two cores; goes on where it was
#
# Writes runs and generated data to FOLDER (by default studies/attribute_world) and prints every table. Needs `jax-rele`
# on the path.
set -euo pipefail
folder=${1:-studies/attribute_world}
config=$(cd "$(dirname "$0")/../.." && pwd)/configs/attribute_world.yaml
mkdir -p "$folder"
cd "$folder"

# world NAME NOISE, then table TABLE NAME OPTIONS...
world() {
  [[ -e worlds/$1/signals.jsonl ]] ||
    python -m jax_rele.data.synthetic.attribute_world "worlds/$1" --labels 10000 --unlabelled 8000 --noise "$2"
}
table() {
  local to=tables/$1 name=$2
  shift 2
  jax-rele compare "$config" --name "$name" --data.path "worlds/$name/pairs.jsonl" \
    --score.signals "worlds/$name/signals.jsonl" "$@"
  # A comparison writes to the same place whatever it is asked for.
  rm -rf "$to"
  mkdir -p "$to"
  cp -r "runs/$name/compare/"{comparison.md,comparison.json,comparison.html,figures} "$to/"
}

world attribute_world 0.05
table main attribute_world --labelled 1000 --seeds 5
table mkd_less_score_kd attribute_world --labelled 1000 --seeds 5 --recipes score_kd mkd --reference score_kd
table labels attribute_world --recipes label_only score_kd mkd --labelled 100 1000 10000 --seeds 5

# What the verdict's weight and what it is read from change: a constant weight, and the pooled vector alone.
weights='{constant: {base: mkd, terms: {verdict: {weight: 1}}},
  falling: {base: mkd, terms: {verdict: {weight: {start: 10, end: 1, steps: 1200}}}}}'
for pooling in tokens pooled; do
  ln -sfn attribute_world "worlds/$pooling"
  table "verdicts_$pooling" "$pooling" --student.verdict_pooling "$pooling" --distill.objectives "$weights" \
    --recipes falling constant --reference constant --labelled 1000 10000 --seeds 2
done

# A noisier teacher: every one of its six verdicts is wrong with this chance.
world noise_0.2 0.2
table noise_0.2 noise_0.2 --recipes label_only score_kd mkd --labelled 1000 --seeds 3
echo "$folder/tables holds every table and figure"
