# shellcheck shell=bash
# What the kotoba-whisper recipes share: recipe.sh, and their stages as functions.
#
# Flags are those of the published commands; where those name Hub repositories, folders of $WORK
# stand in. Wants NAME, and of the recipes that train TARGET and ARCHIVES, its number of archives.

# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

TEACHER=${TEACHER:-openai/whisper-large-v3} ENCODER_LAYERS=${ENCODER_LAYERS:-32}
DECODER_LAYERS=${DECODER_LAYERS:-2}
PART=${PART:-50} # archives that are on the disk at a time, as the authors had it
[ -z "${ARCHIVES:-}" ] || PARTS=$(((ARCHIVES + PART - 1) / PART))
sets=japanese-asr/ja_asr
TEST_SETS=${TEST_SETS:-$sets.common_voice_8_0+$sets.jsut_basic5000+$sets.reazonspeech_test}
export REAZONSPEECH_HOME=$WORK/archives

# in_parts FUNCTION: calls it for each part, with its first archive and the one after its last
in_parts() {
  local first last
  for ((first = 0; first < ARCHIVES; first += PART)); do
    last=$((first + PART < ARCHIVES ? first + PART : ARCHIVES))
    "$1" "$first" "$last"
    [ -z "$DRY_RUN" ] || break # the others are alike
  done
}

# filtered FIRST LAST: the folder of a part's rows to learn from
filtered() {
  echo "$WORK/labelled_$1_$2.wer_10.0"
}

# prepare FIRST LAST: from the archives of a part to its rows to learn from. The archives and their
# labels are deleted then: the disk holds what passes the filter, and one part of the corpus.
#
# The filter's limits are read as kotoba-whisper reads them, and its texts keep their spaces, so that
# it keeps little but exact matches. ReazonSpeech names neither speakers nor recordings: nothing is
# packed, no row has a window before it, and no label begins with one.
prepare() {
  local part=$1_$2
  if ! is_complete "$(filtered "$@")"; then
    start "${DOWNLOAD:-python}" reazonspeech_manual_downloader.py \
      --target "$TARGET" \
      --pool 10 \
      --start_que "$1" \
      --end_que "$2"
    launch run_pseudo_labelling.py \
      --model_name_or_path "$TEACHER" \
      --dataset_name "$PWD/reazonspeech_manual_dataloader.py" \
      --dataset_config_name "$TARGET" \
      --dataset_dir_suffix "$part" \
      --dataset_split_name train \
      --streaming \
      --text_column_name transcription \
      --id_column_name name \
      --concatenate_audio False \
      --per_device_eval_batch_size 64 \
      --dataloader_num_workers 8 \
      --max_label_length 128 \
      --language ja \
      --return_timestamps \
      --attn_type flash_attn \
      --generation_num_beams 1 \
      --decode_token_ids False \
      --dtype bfloat16 \
      --output_dir "$WORK/labelled_$part"
    run run_data_filtering.py \
      --dataset_name "$WORK/labelled_$part" \
      --wer_threshold 10 \
      --normalizer kotoba \
      --strict_limits \
      --min_duration_in_seconds 0 \
      --max_duration_in_seconds 30 \
      --text_column_name transcription \
      --preprocessing_num_workers 8 \
      --max_label_length 128 \
      --timestamp_probability 0.2 \
      --output_dir "$(filtered "$@")"
  fi
  [ -n "$DRY_RUN" ] || rm -rf "$REAZONSPEECH_HOME/${TARGET}_$part" "$WORK/labelled_$part"
}

# make_student: the teacher's encoder, and 2 of its 32 decoder layers
make_student() {
  run create_student_model.py \
    --teacher_checkpoint "$TEACHER" \
    --encoder_layers "$ENCODER_LAYERS" \
    --decoder_layers "$DECODER_LAYERS" \
    --save_dir "$WORK/init"
}

# distil: trains the student on all parts, and uploads it; batches of 256 on 8 GPUs
distil() {
  local datasets
  datasets=$(in_parts filtered | paste -sd+)
  launch run_distillation.py \
    --model_name_or_path "$WORK/init" \
    --teacher_model_name_or_path "$TEACHER" \
    --train_dataset_name "$datasets" \
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
    --output_dir "$WORK/model" \
    "${push[@]}"
}

# evaluate MODEL [flags]: on the three public test sets; clips of more than 15 s in chunks, as there
evaluate() {
  local model=$1
  shift
  launch run_short_form_eval.py \
    --model_name_or_path "$model" \
    --dataset_name "$TEST_SETS" \
    --dataset_split_name test \
    --text_column_name transcription \
    --language ja \
    --dtype bfloat16 \
    --per_device_eval_batch_size 64 \
    --chunk_length_s 15 \
    --output_dir "$WORK/eval" \
    "$@"
}

# make_base: the model BASE that a pipeline is added to, by its own recipe beside this one's folder;
# nothing is made where MODEL names one, or it is there
make_base() {
  local folder
  folder=$(dirname "$WORK")/$BASE
  if [ -z "${MODEL:-}" ] && ! is_complete "$folder/model"; then
    WORK=$folder STAGE=1 STOP_STAGE=99 "scripts/${BASE//-/_}.sh"
  fi
}

# add_pipeline: a copy of the model with a pipeline that punctuates and moves timestamps out of silence
add_pipeline() {
  run scripts/push_pipeline.py \
    --model_name_or_path "${MODEL:-$(dirname "$WORK")/$BASE/model}" \
    --output_dir "$WORK/model" \
    "${push[@]}"
}

# evaluate_variants: without post-processing, with punctuation, with stable-ts, and with both
evaluate_variants() {
  local punctuator=${PUNCTUATOR:-1-800-BAD-CODE/xlm-roberta_punctuation_fullstop_truecase}
  evaluate "$WORK/model"
  evaluate "$WORK/model" --punctuator "$punctuator"
  evaluate "$WORK/model" --stable_ts
  evaluate "$WORK/model" --punctuator "$punctuator" --stable_ts
}
