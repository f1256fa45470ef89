#!/usr/bin/env bash
# The study docs/studies/esci_open_llm.md on any file of pairs: an open LLM as the teacher, students from real weights.
#
#   scripts/studies/open_llm.sh TEACHER ENCODER PAIRS OUT [OPTION...]       resumes where it was interrupted
#
# TEACHER: gguf:FILE, hf:ORG/NAME or a folder (teacher.init); ENCODER likewise (student.init); PAIRS: a file in the format
# of docs/data.md; OUT: the folder of everything that is written, with every table in OUT/tables. OPTION: any of the
# config's, e.g. --data.fields "{item: product}" --finetune.optimization.steps 300. In the environment:
#
#   LABELS            labels, best first; those of ESCI and WANDS and numbers are known
#   FOLDS=5 SEEDS=1   folds of queries, and training seeds
#   LABELLED="300 1000"  TEACHER_LABELLED="0 5000 20000"      points of the two curves; what a fold lacks is left out
#   TABLES="all labels teacher_labelled cross_encoder orders"  which tables; there are also samples (P(label) as the mean
#                     over several rationales), prefer and reinforce (the teacher trained on preferences or rewards), for
#                     which it draws some, and perspectives (one teacher of several kinds of answer)
#   ORDERS="rationale_first label_first label_only"           values of teacher.order that are compared
#   PERSPECTIVES="{intent: {dimensions: [category]}, label: {order: label_only}}"     value of teacher.perspectives
#   SAMPLES=5         rationales that are drawn for each pair where P(label) is averaged over them
#
# Needs `jax-rele` on the path, and its extra `gguf` for gguf:FILE.
set -euo pipefail
if (($# < 4)); then
  echo "usage: open_llm.sh TEACHER ENCODER PAIRS OUT [OPTION...]" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
variables=$(python "$here/open_llm_config.py" "$1" "$2" "$3" "$4")
eval "$variables"
cd "$4"
shift 4
read -ra labelled <<<"$labelled"
read -ra teacher_labelled <<<"$teacher_labelled"
folds=${FOLDS:-5}

# table TABLE NAME OPTION...: a comparison by cross-validation in the run NAME, kept in tables/TABLE.
table() {
  local to=tables/$1 name=$2
  shift 2
  jax-rele compare open_llm.yaml --name "$name" --folds "$folds" --seeds "${SEEDS:-1}" "$@"
  rm -rf "$to"
  mkdir -p "$to"
  cp -r "runs/$name/compare/${folds}_folds/"{comparison.md,comparison.json,comparison.html,figures} "$to/"
}

# teacher_table TABLE NAME OPTION...: the teacher alone, its row in a comparison of students that are hardly trained.
teacher_table() {
  table "$@" --distill.students two_tower --distill.recipes label_only --distill.optimization.steps 1 \
    --distill.optimization.checkpoint_every 1 --distill.optimization.log_every 1
}

for part in ${TABLES:-all labels teacher_labelled cross_encoder orders}; do
  case $part in
    all) table all main "$@" ;;
    labels)
      ((${#labelled[@]} == 0)) ||
        table labels main --recipes label_only score_kd mkd --labelled "${labelled[@]}" "$@"
      ;;
    teacher_labelled)
      ((${#teacher_labelled[@]} == 0)) ||
        table teacher_labelled main --recipes label_only score_kd mkd --teacher-labelled "${teacher_labelled[@]}" "$@"
      ;;
    cross_encoder)
      # Recipes that read heads which only the cross-encoder has.
      table cross_encoder main "$@" --distill.students cross_encoder \
        --distill.recipes label_only mkd crsd rationale_guided
      ;;
    orders)
      for order in ${ORDERS:-rationale_first label_first label_only}; do
        teacher_table "order_$order" "$order" "$@" --teacher.order "$order"
      done
      ;;
    samples | prefer | reinforce)
      # Of the teacher that writes its rationale first, from `orders` where it is trained there.
      for fold in runs/rationale_first/compare/"${folds}_folds"/fold_*; do
        to=runs/$part/compare/${folds}_folds/$(basename "$fold")
        [[ -d $to || ! -f $fold/finetune/manifest.json ]] || {
          rm -rf "$to.part"
          mkdir -p "$to.part"
          cp -r "$fold"/{prepare,annotate,adapt,finetune} "$to.part"
          mv "$to.part" "$to"
        }
      done
      change=("--$part.enabled" true)
      [[ $part != samples ]] || change=(--score.samples "${SAMPLES:-5}")
      teacher_table "$part" "$part" "$@" --teacher.order rationale_first "${change[@]}"
      ;;
    perspectives)
      intent_and_label='{intent: {dimensions: [category]}, label: {order: label_only}}'
      teacher_table perspectives perspectives "$@" --teacher.order rationale_first \
        --teacher.perspectives "${PERSPECTIVES:-$intent_and_label}"
      ;;
    *)
      echo "TABLES: there is no table $part; there are all labels teacher_labelled cross_encoder orders samples prefer" \
        "reinforce perspectives" >&2
      exit 2
      ;;
  esac
done
# The teachers side by side, and the mean of those that write label and rationale in another order.
teachers=() orders=()
for name in rationale_first label_first label_only prefer reinforce samples perspectives; do
  predictions=("runs/$name/compare/${folds}_folds"/fold_*/compare/teacher/predictions.parquet)
  if ((${#predictions[@]} != folds)) || [[ ! -f ${predictions[0]} ]]; then continue; fi
  teachers+=("$name=runs/$name/compare/${folds}_folds")
  [[ $name != *_first && $name != label_only ]] || orders+=("$name")
done
if ((${#teachers[@]} > 1)); then
  mean=()
  ((${#orders[@]} < 2)) || mean=(--mean "${orders[@]}")
  python "$here/teachers.py" "${teachers[@]}" "${mean[@]}" --baselines token_overlap gradient_boosting |
    tee tables/teachers.md
fi
echo "$PWD/tables holds every table and figure"
