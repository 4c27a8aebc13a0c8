# The stages of the kotoba-whisper recipes, as functions; sourced by one recipe per released model.
#
# Flags are those of the published commands; where those name Hub repositories, folders under $WORK
# stand in, and `--push_to_hub` uploads the student alone. Wants: NAME, TARGET, HF_ORG, WORK.

: "${HF_ORG:?set HF_ORG to your organisation or user name on the Hub}"
WORK=${WORK:-runs/$NAME}
TEACHER=openai/whisper-large-v3

. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt

# download [flags]: ReazonSpeech's archives
download() {
  python reazonspeech_manual_downloader.py --target "$TARGET" --pool 10 "$@"
}

# label_and_filter FOLDER [flags]: the archives' clips to FOLDER.wer_10.0
#
# The filter's limits are read as kotoba-whisper reads them, and its texts keep their spaces, so that
# it keeps little but exact matches. ReazonSpeech names neither speakers nor recordings: no row has a
# window before it, and no label begins with one.
label_and_filter() {
  local folder=$1
  shift
  accelerate launch run_pseudo_labelling.py \
    --model_name_or_path "$TEACHER" \
    --dataset_name "$PWD/reazonspeech_manual_dataloader.py" \
    --dataset_config_name "$TARGET" \
    --dataset_split_name train \
    --text_column_name transcription \
    --id_column_name name \
    --per_device_eval_batch_size 64 \
    --dataloader_num_workers 8 \
    --max_label_length 128 \
    --language ja \
    --return_timestamps \
    --attn_type flash_attn \
    --generation_num_beams 1 \
    --decode_token_ids False \
    --dtype bfloat16 \
    --output_dir "$folder" \
    "$@"
  python run_data_filtering.py \
    --dataset_name "$folder" \
    --wer_threshold 10 \
    --normalizer kotoba \
    --strict_limits \
    --min_duration_in_seconds 0 \
    --max_duration_in_seconds 30 \
    --text_column_name transcription \
    --preprocessing_num_workers 8 \
    --max_label_length 128
}

# distil DATASETS: a 32 + 2 layer student, trained on the datasets (joined with +)
distil() {
  python create_student_model.py \
    --teacher_checkpoint "$TEACHER" \
    --encoder_layers 32 \
    --decoder_layers 2 \
    --save_dir "$WORK/init"
  accelerate launch run_distillation.py \
    --model_name_or_path "$WORK/init" \
    --teacher_model_name_or_path "$TEACHER" \
    --train_dataset_name "$1" \
    --train_split_name train \
    --language ja \
    --max_label_length 128 \
    --save_steps 2500 \
    --warmup_steps 50 \
    --learning_rate 0.0001 \
    --lr_scheduler_type constant_with_warmup \
    --logging_steps 50 \
    --save_total_limit 1 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 2 \
    --dataloader_num_workers 8 \
    --dtype bfloat16 \
    --gradient_checkpointing \
    --freeze_encoder \
    --do_train \
    --num_train_epochs 8 \
    --push_to_hub \
    --hub_model_id "$HF_ORG/$NAME" \
    --output_dir "$WORK/model"
}

# evaluate: the student on the three public test sets
evaluate() {
  local sets=japanese-asr/ja_asr
  accelerate launch run_short_form_eval.py \
    -m "$WORK/model" \
    -d "$sets.common_voice_8_0+$sets.jsut_basic5000+$sets.reazonspeech_test" \
    --dataset_split_name test \
    --text_column_name transcription \
    --language ja \
    --dtype bfloat16 \
    -b 64 \
    -o "$WORK/eval"
}
