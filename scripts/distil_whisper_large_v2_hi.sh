#!/usr/bin/env bash
# distil-large-v2 for Hindi: whisper-large-v2 distilled into 32 + 2 layers on Common Voice 13.
#
#   ./scripts/distil_whisper_large_v2_hi.sh
#
# Published: 20 h of audio labelled in about 20 min and 1,000 updates in about 1 h on one A100,
# ending at a WER of 31 % (without marks: see docs/differences.md). Needs a GPU, a Hub login
# (`hf auth login`) and access to the dataset. We have not run it.
set -euo pipefail

WORK=${WORK:-runs/distil-large-v2-hi}
TEACHER=openai/whisper-large-v2
. "$(dirname "$0")/environment.sh" requirements.txt

accelerate launch run_pseudo_labelling.py \
  --model_name_or_path "$TEACHER" \
  --dataset_name mozilla-foundation/common_voice_13_0 \
  --dataset_config_name hi \
  --dataset_split_name train+validation+test \
  --text_column_name sentence \
  --id_column_name path \
  --output_dir "$WORK/labelled" \
  --per_device_eval_batch_size 64 \
  --dtype bfloat16 \
  --dataloader_num_workers 16 \
  --logging_steps 500 \
  --max_label_length 128 \
  --language hi \
  --task transcribe \
  --return_timestamps \
  --attn_type flash_attn \
  --generation_num_beams 1 \
  --decode_token_ids False

python create_student_model.py \
  --teacher_checkpoint "$TEACHER" \
  --encoder_layers 32 \
  --decoder_layers 2 \
  --save_dir "$WORK/init"

accelerate launch run_distillation.py \
  --model_name_or_path "$WORK/init" \
  --teacher_model_name_or_path "$TEACHER" \
  --train_dataset_name "$WORK/labelled+$WORK/labelled" \
  --train_dataset_config_name hi+hi \
  --train_split_name train+validation \
  --text_column_name sentence+sentence \
  --train_dataset_samples 10+5 \
  --eval_dataset_name "$WORK/labelled" \
  --eval_dataset_config_name hi \
  --eval_split_name test \
  --eval_text_column_name sentence \
  --eval_steps 1000 \
  --save_steps 1000 \
  --warmup_steps 50 \
  --learning_rate 0.0001 \
  --lr_scheduler_type constant_with_warmup \
  --logging_steps 25 \
  --save_total_limit 1 \
  --max_steps 5000 \
  --wer_threshold 10 \
  --per_device_train_batch_size 64 \
  --per_device_eval_batch_size 64 \
  --dataloader_num_workers 16 \
  --dtype bfloat16 \
  --output_dir "$WORK/model" \
  --do_train \
  --do_eval \
  --gradient_checkpointing \
  --predict_with_generate \
  --freeze_encoder \
  --language hi

accelerate launch run_short_form_eval.py \
  --model_name_or_path "$WORK/model" \
  --dataset_name "$WORK/labelled+google/fleurs" \
  --dataset_config_name hi+hi_in \
  --dataset_split_name test+test \
  --text_column_name sentence+transcription \
  --id_column_name path \
  --output_dir "$WORK/eval" \
  --per_device_eval_batch_size 64 \
  --dtype bfloat16 \
  --dataloader_num_workers 16 \
  --generation_max_length 128 \
  --language hi \
  --attn_type flash_attn \
  --streaming
