# shellcheck shell=bash disable=SC2034 # the recipes use what is set here
# Sourced by a recipe with SCALE=tiny: a few dozen clips spoken by espeak-ng, a teacher that learns
# them in seconds, and flags for few updates on a CPU. Everything else is the recipe's own.
#
# The corpus and the teacher are made once, for all recipes, in TINY (runs/tiny). It speaks Japanese,
# whatever the recipe's language is. Nothing is uploaded, unless HF_ORG is set and HF_HUB_OFFLINE=0.

TINY=${TINY:-runs/tiny}
case $TINY in /*) ;; *) TINY=$PWD/$TINY ;; esac
corpus=$TINY/corpus
WORK=${WORK:-$TINY/${NAME:?}}
LAUNCH=${LAUNCH:-python}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false
# Threads that wait do not spin.
export OMP_WAIT_POLICY=PASSIVE

# What stands for the models and data of the recipes.
TEACHER=${TEACHER:-$TINY/teacher} ENCODER_LAYERS=1 DECODER_LAYERS=1
ARCHIVES=4 PART=2
DOWNLOAD="python scripts/demo/reazonspeech_server.py --corpus $corpus --target ${TARGET:-tiny}
  --archives $ARCHIVES -- python"
COMMON_VOICE=$corpus/common_voice.jsonl
FLEURS=$corpus/test_set.jsonl TEST_SETS=$corpus/test_set.jsonl TEST_TEXT=transcription
TALKS=$corpus/talks.jsonl LONG_FORM=$corpus/long.jsonl
WER_THRESHOLD=100000 # of packed windows, which the teacher has not learnt
PUNCTUATOR=rules
HOURS=0.02 CLIP_S=2 GIGABYTES=0.002

# Behind a recipe's flags, and before the user's own.
everywhere="--language ja --dtype float32 --dataloader_num_workers 0"
training="$everywhere --max_steps 6 --save_steps 2 --logging_steps 1 --warmup_steps 1
  --per_device_train_batch_size 4 --gradient_accumulation_steps 1"
run_pseudo_labelling_flags="$everywhere --per_device_eval_batch_size 8 --rows_per_shard 4
  ${run_pseudo_labelling_flags:-}"
run_data_filtering_flags="--preprocessing_num_workers 1 ${run_data_filtering_flags:-}"
run_distillation_flags="$training ${run_distillation_flags:-}"
run_finetuning_flags="$training --eval_steps 3 ${run_finetuning_flags:-}"
run_short_form_eval_flags="$everywhere --per_device_eval_batch_size 8 --chunk_length_s 5
  ${run_short_form_eval_flags:-}"
run_long_form_eval_flags="$everywhere --per_device_eval_batch_size 8 --chunk_length_s 4
  --stride_length_s 1 ${run_long_form_eval_flags:-}"

if [ -z "${DRY_RUN:-}" ] && ! grep -qs '"status": "complete"' "$TINY/teacher/run.json"; then
  echo "== the tiny corpus and its teacher, once for all recipes: $TINY"
  python scripts/demo/make_corpus.py --output_dir "$corpus" \
    --num_train 24 --num_windows 0 --num_test 6 --num_long 1
  python scripts/demo/tiny_sets.py --corpus "$corpus"
  # As many positions as Whisper has, for the recipes' lengths of labels.
  python scripts/demo/make_teacher.py --corpus "$corpus" --output_dir "$TINY/teacher-init" \
    --encoder_layers 1 --decoder_layers 2 --d_model 64 --window_s 5 --max_target_positions 448
  python run_finetuning.py \
    --model_name_or_path "$TINY/teacher-init" \
    --train_dataset_name "$corpus/train.jsonl" \
    --text_column_name timestamped_text \
    --language ja \
    --timestamp_probability 0.7 \
    --max_steps 240 \
    --per_device_train_batch_size 12 \
    --learning_rate 4e-3 \
    --adam_beta2 0.98 \
    --lr_scheduler_type cosine \
    --warmup_steps 10 \
    --logging_steps 50 \
    --save_steps 240 \
    --save_total_limit 1 \
    --output_dir "$TINY/teacher"
fi
