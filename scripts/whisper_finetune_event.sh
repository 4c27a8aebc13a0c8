#!/usr/bin/env bash
# Whisper fine-tuning event: whisper-small fine-tuned on Common Voice 11, here for Hindi.
#
#   ./scripts/whisper_finetune_event.sh     # SCALE=tiny for a first try; variables: scripts/recipe.sh
#   LANGUAGE_CODE=cy ./scripts/whisper_finetune_event.sh    # Welsh
#
# Plan: 12 h of speech; 0.01 TB of disk; GPU hours are not known: no speed was published.
# Published for Hindi: a WER of 32.0 % with 8 h of training data (train and validation), in 5 to 10 h on
# the GPU of a Colab notebook, with 15.8 GB of its memory. Vowel signs are left out of it, as
# `--normalizer basic` does: see docs/differences.md. Needs a GPU, and access to the dataset
# (`hf auth login`). We have not run it at this size.
set -euo pipefail

NAME=whisper-small-finetuned
HOURS=12 GIGABYTES=0.4 CLIP_S=5

# shellcheck source=scripts/recipe.sh
. "$(dirname "$0")/recipe.sh"

MODEL=${TEACHER:-openai/whisper-small}
COMMON_VOICE=${COMMON_VOICE:-mozilla-foundation/common_voice_11_0}
LANGUAGE_CODE=${LANGUAGE_CODE:-hi}

if stage 1 "fine-tune on train and validation, and keep what is best on the test set"; then
  launch run_finetuning.py \
    --model_name_or_path "$MODEL" \
    --train_dataset_name "$COMMON_VOICE+$COMMON_VOICE" \
    --train_dataset_config_name "$LANGUAGE_CODE" \
    --train_split_name train+validation \
    --text_column_name sentence \
    --eval_dataset_name "$COMMON_VOICE" \
    --eval_dataset_config_name "$LANGUAGE_CODE" \
    --eval_split_name test \
    --eval_text_column_name sentence \
    --id_column_name path \
    --language "$LANGUAGE_CODE" \
    --task transcribe \
    --max_duration_in_seconds 30 \
    --max_steps 5000 \
    --learning_rate 1e-5 \
    --warmup_steps 500 \
    --per_device_train_batch_size 64 \
    --per_device_eval_batch_size 32 \
    --gradient_checkpointing \
    --dtype bfloat16 \
    --dataloader_num_workers 8 \
    --logging_steps 25 \
    --save_steps 1000 \
    --save_total_limit 2 \
    --eval_steps 1000 \
    --do_train \
    --do_eval \
    --predict_with_generate \
    --generation_max_length 225 \
    --metric_for_best_model wer \
    --load_best_model_at_end \
    --output_dir "$WORK/model" \
    "${push[@]}"
fi

if stage 2 "evaluate"; then
  launch run_short_form_eval.py \
    --model_name_or_path "$WORK/model" \
    --baseline "$MODEL" \
    --dataset_name "$COMMON_VOICE" \
    --dataset_config_name "$LANGUAGE_CODE" \
    --dataset_split_name test \
    --text_column_name sentence \
    --id_column_name path \
    --language "$LANGUAGE_CODE" \
    --normalizer basic \
    --dtype bfloat16 \
    --per_device_eval_batch_size 32 \
    --output_dir "$WORK/eval"
fi

if stage 3 "put the results into the card of the model"; then
  publish
fi
finish
