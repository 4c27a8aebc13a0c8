#!/usr/bin/env bash
# kotoba-whisper-v1.0: whisper-large-v3 distilled into 32 + 2 layers on ReazonSpeech `large`.
#
#   HF_ORG=my-org ./scripts/kotoba_whisper_v1.0.sh        # TARGET=tiny for a first try
#
# Published CER (Common Voice 8 / JSUT / ReazonSpeech test): 9.4 / 8.5 / 12.2. Needs a GPU, a Hub
# login (`hf auth login`), and disk for 579 archives. We have not run it: hours are not known.
set -euo pipefail

NAME=kotoba-whisper-v1.0
TARGET=${TARGET:-large}
. "$(dirname "$0")/kotoba_whisper.sh"

download
label_and_filter "$WORK/labelled"
distil "$WORK/labelled.wer_10.0"
evaluate
