# shellcheck shell=bash
# Sourced by the recipes: runs their stages one after the other, as Kaldi and ESPnet do.
#
#   ./scripts/kotoba_whisper_v1.0.sh                        all stages; what is finished is skipped
#   STAGE=2 STOP_STAGE=3 ./scripts/kotoba_whisper_v1.0.sh   these alone
#   DRY_RUN=1 ./scripts/kotoba_whisper_v1.0.sh              checks all, and prints hours and terabytes
#   SCALE=tiny ./scripts/kotoba_whisper_v1.0.sh             all of it in a minute or two, on a laptop
#
# A recipe sets NAME, sources this file, sets what is its own, and is then a list of
#
#   if stage 1 "what it does"; then
#     launch SCRIPT --flag value …   # on the GPUs, by $LAUNCH
#     run SCRIPT --flag value …      # in one process
#   fi
#
# and `finish`. Variables of the environment that change it, beside the recipe's own:
#
#   WORK     folder of all that the recipe writes; nothing outside is deleted (runs/$NAME)
#   HF_ORG   your organisation or user name on the Hub: models go there, private; without it nothing
#            is uploaded
#   LAUNCH   starts a stage on the GPUs, such as
#            "accelerate launch --config_file scripts/launch/8_gpus.yaml" ("accelerate launch")
#   run_distillation_flags and the like, one for each script: more flags, which override the recipe's

STAGE=${STAGE:-1} STOP_STAGE=${STOP_STAGE:-99} DRY_RUN=${DRY_RUN:-} SCALE=${SCALE:-full}

# shellcheck source=scripts/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt

if [ "$SCALE" = tiny ]; then
  # shellcheck source=scripts/demo/tiny.sh
  . scripts/demo/tiny.sh
elif [ "$SCALE" != full ]; then
  echo "SCALE must be full or tiny, got '$SCALE'" >&2
  exit 2
fi

WORK=${WORK:-runs/${NAME:?}}
case $WORK in /*) ;; *) WORK=$PWD/$WORK ;; esac
LAUNCH=${LAUNCH:-accelerate launch}
push=()
# shellcheck disable=SC2034 # the recipes use it
[ -z "${HF_ORG:-}" ] || push=(--hub_model_id "$HF_ORG/$NAME")
if [ -n "$DRY_RUN" ]; then
  plan=$(mktemp)
  trap 'rm -f "$plan"' EXIT
fi

# stage NUMBER TITLE: whether this stage is wanted
stage() {
  (($1 >= STAGE && $1 <= STOP_STAGE)) || return 1
  title="stage $1: $2"
  [ -n "$DRY_RUN" ] || echo "== $NAME, $title"
}

# run SCRIPT FLAGS…: in one process
run() {
  start python "$@"
}

# launch SCRIPT FLAGS…: on the GPUs
launch() {
  start "$LAUNCH" "$@"
}

# start LAUNCHER SCRIPT FLAGS…: a dry run notes it instead
start() {
  local script=$2 of_user launcher more
  of_user=$(basename "$script" .py)_flags
  read -rd '' -a launcher <<<"$1" || true # at the end of the text there is no delimiter
  read -rd '' -a more <<<"${!of_user:-}" || true
  shift 2
  if [ -n "$DRY_RUN" ]; then
    printf '%s\037' "$title" "$script" "$@" "${more[@]}" >>"$plan"
    echo >>"$plan"
  else
    "${launcher[@]}" "$script" "$@" "${more[@]}"
  fi
}

# is_complete FOLDER: whether a stage finished it
is_complete() {
  grep -qs '"status": "complete"' "$1/run.json"
}

# publish: the results in $WORK/eval into the card of $WORK/model; with HF_ORG the model to the Hub
publish() {
  run scripts/publish.py \
    --folder "$WORK/model" \
    --eval_results "$WORK/eval" \
    "${push[@]}"
}

# finish: says what a dry run noted. What the plan is computed from, where the recipe knows it:
# HOURS of speech, clips of CLIP_S seconds, GIGABYTES; PARTS that are worked on one after the other;
# the share KEPT by the filter; GPUS that batches are meant for.
finish() {
  if [ -n "$DRY_RUN" ]; then
    python scripts/recipe_plan.py "$plan" --name "$NAME" --folder "$WORK" \
      ${HOURS:+--hours "$HOURS"} ${CLIP_S:+--clip_s "$CLIP_S"} ${PARTS:+--parts "$PARTS"} \
      ${GIGABYTES:+--gigabytes "$GIGABYTES"} ${KEPT:+--kept "$KEPT"} ${GPUS:+--gpus "$GPUS"}
  else
    echo "== $NAME is done: $WORK"
  fi
}
