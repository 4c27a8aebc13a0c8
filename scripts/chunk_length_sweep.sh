#!/usr/bin/env bash
# Which chunk length suits a model? Evaluates chunked long-form decoding with each, prints a table
# and the best one. Lengths are seconds; all other arguments go to run_long_form_eval.py.
#
#   CHUNK_LENGTHS="2 2.5 3" ./scripts/chunk_length_sweep.sh \
#     -m runs/quickstart/student -d runs/quickstart/corpus/dev_long.jsonl --language ja \
#     --generation_max_length 64
#
# An evaluation that is in OUTPUT_DIR (eval/chunk_length_sweep) already is not repeated, so that a
# killed sweep goes on, and further lengths are added to the table.
set -euo pipefail

out=${OUTPUT_DIR:-eval/chunk_length_sweep}
case $out in /*) ;; *) out="$PWD/$out" ;; esac
lengths=${CHUNK_LENGTHS:-10 15 20 25 30}

. "$(dirname "$0")/environment.sh" requirements.txt

for length in $lengths; do
  echo "== chunks of $length s"
  accelerate launch --num_processes "${NUM_PROCESSES:-1}" --num_machines 1 --mixed_precision no \
    --dynamo_backend no run_long_form_eval.py "$@" \
    --algorithm chunked --chunk_length_s "$length" -o "$out"
done

python scripts/chunk_length_table.py "$out"
