#!/usr/bin/env bash
# distil-large-v3: whisper-large-v3 distilled into 32 + 2 layers on English, in packed windows.
#
#   ./scripts/distil_whisper_large_v3.sh    # SCALE=tiny for a first try; variables: scripts/recipe.sh
#
# Plan: 19,550 h of speech; 2.51 TB of disk; 513 to 705 GPU hours (A100, published speeds), 64 to
# 88 h on 8.
# Published WER: 16.7 % on AMI, 9.7 % over four short-form sets, 10.8 % on long recordings (sequential).
# The authors had 21,770 h; Fisher and Switchboard (2,220 h), which the LDC sells, are left out here.
# Needs GPUs, and access to the datasets (`hf auth login`). We have not run it at this size.
set -euo pipefail

NAME=distil-large-v3
HOURS=19550 CLIP_S=30 GPUS=8 # rows are windows of up to 30 s
GIGABYTES=1250               # FLAC of 64 MB an hour

# shellcheck source=scripts/recipe.sh
. "$(dirname "$0")/recipe.sh"

TEACHER=${TEACHER:-openai/whisper-large-v3}

# label NAME DATASET CONFIGURATION SPLITS TEXT ID [SPEAKER [RECORDING]]: the last four are columns
#
# Clips of one speaker and recording share windows of 30 s; the window before is stored as the prompt of
# the next. Without such columns a clip is a window. Audio stays in the source.
label() {
  launch run_pseudo_labelling.py \
    --model_name_or_path "$TEACHER" \
    --dataset_name "$2" \
    --dataset_config_name "$3" \
    --dataset_split_name "$4" \
    --text_column_name "$5" \
    --id_column_name "$6" \
    ${7:+--speaker_id_column_name "$7"} \
    ${8:+--recording_id_column_name "$8"} \
    --concatenate_audio \
    --output_format labels \
    --per_device_eval_batch_size 64 \
    --dataloader_num_workers 16 \
    --max_label_length 256 \
    --language en \
    --return_timestamps \
    --attn_type flash_attn \
    --generation_num_beams 1 \
    --decode_token_ids False \
    --dtype bfloat16 \
    --output_dir "$WORK/labels/$1"
}

# keep NAME …: what is within a WER of 10 %; timestamps in a fifth of the labels, prompts in a fifth
keep() {
  run run_data_filtering.py \
    --dataset_name "$WORK/labels/$1" \
    --wer_threshold "${WER_THRESHOLD:-10}" \
    --strict_limits \
    --drop_all_capitals \
    --timestamp_probability 0.2 \
    --condition_on_prev_probability 0.2 \
    --preprocessing_num_workers 16 \
    --output_dir "$WORK/kept/$1"
}

# folder NAME …: of the rows to learn from
folder() {
  echo "$WORK/kept/$1"
}

# for_each FUNCTION: calls it with each dataset, as `label` describes them
for_each() {
  if [ -n "${TALKS:-}" ]; then
    "$1" talks "$TALKS" default train text id speaker_id recording_id
    return
  fi
  "$1" people MLCommons/peoples_speech clean train text id
  "$1" common_voice mozilla-foundation/common_voice_13_0 en train sentence path client_id
  "$1" gigaspeech speechcolab/gigaspeech l train text segment_id speaker audio_id
  local name=openslr/librispeech_asr columns=(text id speaker_id chapter_id)
  "$1" librispeech_100 "$name" all train.clean.100 "${columns[@]}"
  "$1" librispeech_360 "$name" all train.clean.360 "${columns[@]}"
  "$1" librispeech_500 "$name" all train.other.500 "${columns[@]}"
  "$1" voxpopuli facebook/voxpopuli en train raw_text audio_id speaker_id
  "$1" tedlium LIUM/tedlium release3 train text id speaker_id
  "$1" ami edinburghcstr/ami ihm train text audio_id speaker_id meeting_id
}

if stage 1 "label all datasets"; then
  for_each label
fi
if stage 2 "filter"; then
  for_each keep
fi

if stage 3 "make the student"; then
  run create_student_model.py \
    --teacher_checkpoint "$TEACHER" \
    --encoder_layers "${ENCODER_LAYERS:-32}" \
    --decoder_layers "${DECODER_LAYERS:-2}" \
    --save_dir "$WORK/init"
fi

if stage 4 "distil, in batches of 256 on 8 GPUs"; then
  launch run_distillation.py \
    --model_name_or_path "$WORK/init" \
    --teacher_model_name_or_path "$TEACHER" \
    --train_dataset_name "$(for_each folder | paste -sd+)" \
    --language en \
    --max_steps 80000 \
    --learning_rate 0.0001 \
    --lr_scheduler_type linear \
    --warmup_steps 500 \
    --per_device_train_batch_size 32 \
    --dataloader_num_workers 16 \
    --dtype bfloat16 \
    --gradient_checkpointing \
    --freeze_encoder \
    --do_train \
    --logging_steps 50 \
    --save_steps 2500 \
    --save_total_limit 1 \
    --output_dir "$WORK/model" \
    "${push[@]}"
fi

if stage 5 "evaluate on clips and on talks"; then
  launch run_short_form_eval.py \
    --model_name_or_path "$WORK/model" \
    --dataset_name "${TEST_SETS:-edinburghcstr/ami}" \
    --dataset_config_name ihm \
    --dataset_split_name test \
    --text_column_name "${TEST_TEXT:-text}" \
    --language en \
    --dtype bfloat16 \
    --per_device_eval_batch_size 64 \
    --output_dir "$WORK/eval"
  launch run_long_form_eval.py \
    --model_name_or_path "$WORK/model" \
    --dataset_name "${LONG_FORM:-distil-whisper/tedlium-long-form}" \
    --segment none \
    --algorithm sequential+chunked \
    --chunk_length_s 25 \
    --language en \
    --dtype bfloat16 \
    --per_device_eval_batch_size 64 \
    --output_dir "$WORK/eval" \
    --dataset_split_name test
fi

if stage 6 "put the results into the card of the model"; then
  publish
fi
finish
