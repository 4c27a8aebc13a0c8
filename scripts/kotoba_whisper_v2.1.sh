#!/usr/bin/env bash
# kotoba-whisper-v2.1: kotoba-whisper-v2.0 with a pipeline that punctuates and fits timestamps.
#
#   ./scripts/kotoba_whisper_v2.1.sh        # SCALE=tiny for a first try; variables: scripts/recipe.sh
#   MODEL=kotoba-tech/kotoba-whisper-v2.0 ./scripts/kotoba_whisper_v2.1.sh   # the authors' weights
#
# Without MODEL the recipe of v2.0 makes it first: see its plan. The four evaluations need a GPU,
# `pip install ".[postprocessing]"`, and access to the test sets (`hf auth login`).
# Published CER (Common Voice 8 / JSUT / ReazonSpeech test), the same for all four variants:
# 9.3 / 8.4 / 11.3; raw CER 15.5 / 15.4 / 17.0, with the punctuator 13.8 / 11.6 / 17.3, with both
# 13.7 / 11.4 / 17.0. We have not run it at this size.
set -euo pipefail

NAME=kotoba-whisper-v2.1 BASE=kotoba-whisper-v2.0

# shellcheck source=scripts/kotoba_whisper.sh
. "$(dirname "$0")/kotoba_whisper.sh"

if stage 1 "make kotoba-whisper-v2.0"; then
  make_base
fi
if stage 2 "add the pipeline"; then
  add_pipeline
fi
if stage 3 "evaluate its four variants"; then
  evaluate_variants
fi
if stage 4 "put the results into the card of the model"; then
  publish
fi
finish
