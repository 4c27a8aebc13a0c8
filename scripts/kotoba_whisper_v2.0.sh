#!/usr/bin/env bash
# kotoba-whisper-v2.0: whisper-large-v3 distilled into 32 + 2 layers on ReazonSpeech `all`.
#
#   HF_ORG=my-org ./scripts/kotoba_whisper_v2.0.sh
#
# Published CER (Common Voice 8 / JSUT / ReazonSpeech test): 9.2 / 8.4 / 11.6. The 4,095 archives
# are labelled 50 at a time, and each fifty is deleted when it is filtered, so that the disk never
# holds the whole corpus twice. Needs a GPU and a Hub login (`hf auth login`). We have not run it:
# hours are not known.
set -euo pipefail

NAME=kotoba-whisper-v2.0
TARGET=all
. "$(dirname "$0")/kotoba_whisper.sh"

parts=
for ((first = 0; first < 4095; first += 50)); do
  last=$((first + 50 < 4095 ? first + 50 : 4095))
  archives=$HOME/.cache/reazon_manual_download/${TARGET}_${first}_${last}
  part=$WORK/labelled_${first}_${last}
  if [ ! -f "$part.wer_10.0/.done" ]; then
    download --start_que "$first" --end_que "$last"
    label_and_filter "$part" --dataset_dir_suffix "${first}_${last}"
    touch "$part.wer_10.0/.done"
    rm -r "$archives" "$part"
  fi
  parts=${parts:+$parts+}$part.wer_10.0
done
distil "$parts"
evaluate
