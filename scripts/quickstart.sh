#!/usr/bin/env bash
# The whole pipeline on one laptop, without any download but Python packages: Japanese speech made
# with espeak-ng, a small teacher trained from scratch, and a student distilled from it.
#
#   ./scripts/quickstart.sh
#
# Takes 5 minutes on 2 CPU cores after installation, and prints a table of results, which is also in
# runs/quickstart/results.md. A second start skips what is finished; a killed one goes on.
#
# These variables change it: OUTPUT_DIR NUM_TRAIN NUM_WINDOWS NUM_TEST NUM_LONG TEACHER_STEPS
# STUDENT_STEPS FILTER; EVALUATE_ON=dev measures on the development set, which what is written here
# was chosen on, and prints that table.
set -euo pipefail

out=${OUTPUT_DIR:-runs/quickstart}
case $out in /*) ;; *) out="$PWD/$out" ;; esac

. "$(dirname "$0")/environment.sh" requirements.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Threads that wait do not spin: beside one other busy process an update took 0.4 s, and 2.4 without.
export OMP_WAIT_POLICY=PASSIVE

corpus=$out/corpus
teacher_init=$out/teacher-init
teacher=$out/teacher
labelled=$out/labelled
filtered=$out/filtered
student_init=$out/student-init
student=$out/student

case ${EVALUATE_ON:-test} in
  test) clips=test long=long evals=$out/eval results=$out ;;
  dev) clips=dev long=dev_long evals=$out/eval-dev results=$out/eval-dev ;;
  *) echo "EVALUATE_ON must be test or dev, got $EVALUATE_ON" >&2 && exit 2 ;;
esac

started=$SECONDS
stage() {
  echo
  echo "== $1 ($((SECONDS - started)) s since the start)"
}

# Two processes, each on half of the cores: threads cannot share so small an update well, and a GPU is
# not needed. Without Linux, one process.
export CUDA_VISIBLE_DEVICES=
processes=1 launch=python
if [ "$(uname)" = Linux ]; then
  processes=2
  launch="accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0
    --mixed_precision no --dynamo_backend no"
fi
batch=$((16 / processes)) # rows of one process

# Waits for what was started with "&", and fails where one of these did.
wait_for_all() { for job in $(jobs -p); do wait "$job"; done; }
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

stage "corpus: speech by espeak-ng"
python scripts/demo/make_corpus.py --output_dir "$corpus" \
  --num_train "${NUM_TRAIN:-2000}" --num_windows "${NUM_WINDOWS:-1500}" \
  --num_test "${NUM_TEST:-150}" --num_long "${NUM_LONG:-40}"

stage "teacher: from random weights, by run_finetuning.py"
python scripts/demo/make_teacher.py --corpus "$corpus" --output_dir "$teacher_init"
$launch run_finetuning.py \
  --model_name_or_path "$teacher_init" \
  --train_dataset_name "$corpus/train.jsonl+$corpus/windows.jsonl" \
  --text_column_name timestamped_text \
  --language ja \
  --timestamp_probability 0.5 \
  --pack True \
  --max_steps "${TEACHER_STEPS:-1000}" \
  --per_device_train_batch_size "$batch" \
  --learning_rate 2e-3 \
  --adam_beta2 0.98 \
  --lr_scheduler_type cosine \
  --warmup_steps 50 \
  --save_steps 500 \
  --save_total_limit 1 \
  --output_dir "$teacher"

stage "labels: what the teacher hears; and the student: the first of its 3 decoder layers"
python create_student_model.py \
  --teacher_checkpoint "$teacher" \
  --decoder_layers_numbers 0 \
  --save_dir "$student_init" &
$launch run_pseudo_labelling.py \
  --model_name_or_path "$teacher" \
  --dataset_name "$corpus/train.jsonl+$corpus/windows.jsonl" \
  --dataset_split_name "train+windows" \
  --language ja \
  --return_timestamps \
  --concatenate_audio False \
  --decode_token_ids False \
  --per_device_eval_batch_size 64 \
  --max_label_length 64 \
  --output_dir "$labelled"
wait_for_all

stage "filter: transcripts with more than 10 % of their characters wrong are dropped"
python run_data_filtering.py \
  --dataset_name "$labelled" \
  --dataset_split_name "train+windows" \
  ${FILTER:---cer_threshold 10} \
  --timestamp_probability 0.5 \
  --output_dir "$filtered"

stage "distillation: the student follows the teacher"
$launch run_distillation.py \
  --model_name_or_path "$student_init" \
  --teacher_model_name_or_path "$teacher" \
  --train_dataset_name "$filtered+$filtered" \
  --train_split_name "train+windows" \
  --language ja \
  --freeze_encoder \
  --pack True \
  --max_steps "${STUDENT_STEPS:-720}" \
  --per_device_train_batch_size "$batch" \
  --learning_rate 4e-3 \
  --adam_beta2 0.98 \
  --lr_scheduler_type cosine \
  --warmup_steps 50 \
  --save_steps 360 \
  --save_total_limit 1 \
  --output_dir "$student"

stage "evaluation: clips, and recordings of 20 to 40 s, also cut at their utterances"
export OMP_NUM_THREADS=1 # three programs side by side
python run_short_form_eval.py -m "$student" --baseline "$teacher+$student_init" \
  -d "$corpus/$clips.jsonl+$corpus/${long}_clips.jsonl" --language ja \
  --generation_max_length 64 --per_device_eval_batch_size 64 -o "$evals/clips" &
for model in teacher student; do
  python run_long_form_eval.py -m "$out/$model" -d "$corpus/$long.jsonl" --language ja \
    --algorithm sequential+chunked --chunk_length_s 2.5 --stride_length_s 1 \
    --generation_max_length 64 --per_device_eval_batch_size 64 -o "$evals/long-$model" &
done
wait_for_all

stage "results"
python scripts/demo/report.py --eval_dir "$evals" --output_dir "$results" \
  --role "teacher=$teacher" --role "student_init=$student_init" --role "student=$student"
echo "done in $((SECONDS - started)) s"
