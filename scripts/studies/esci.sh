#!/usr/bin/env bash
# The study docs/studies/esci.md: recipes on real judgements, from real weights, and the order of label and reasoning.
#
#   scripts/studies/esci.sh ENCODER [FOLDER]          some two hours on two cores; resumes
#
# ENCODER is a folder of BERT-family weights in the Hugging Face form (the study: all-MiniLM-L6-v2). Writes to FOLDER (by
# default studies/esci) and prints every table. Needs `jax-rele` on the path.
set -euo pipefail
encoder=$(cd "$1" && pwd)
folder=${2:-studies/esci}
config=$(cd "$(dirname "$0")/../.." && pwd)/configs/esci_minilm.yaml
mkdir -p "$folder"
cd "$folder"

jax-rele compare "$config" --name recipes --student.init "$encoder" --seeds 3
# The teacher alone: its row in the table of a comparison of students that are hardly trained.
for order in rationale_first label_first label_only; do
  jax-rele compare "$config" --name "$order" --teacher.order "$order" --seeds 1 \
    --students two_tower --recipes label_only --distill.optimization.steps 1
done
