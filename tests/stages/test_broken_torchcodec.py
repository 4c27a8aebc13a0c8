"""Every stage with a torchcodec that is installed and does not load, as on a machine without CUDA.

Libraries look once whether it is there, so that only a process of its own shows what they do.
"""

import subprocess
import sys

import soundfile
from launching import environment
from stage_runs import record, talkative_model_folder, write_manifest
from tiny import REPOSITORY, broken_torchcodec, tone_manifest

STAGES = """
import sys
from stage_runs import run
from datasets.config import TORCHCODEC_AVAILABLE
assert TORCHCODEC_AVAILABLE
root = sys.argv[1]
model, clips = ("-m", f"{root}/teacher"), ("-d", f"{root}/clips/clips.jsonl")
spoken = ("--language", "ja")
run("run_pseudo_labelling.py", *model, *clips, *spoken, "--max_label_length", 24,
    "--return_timestamps", "--decode_token_ids", "False", "-o", f"{root}/labelled")
run("run_data_filtering.py", "-d", f"{root}/labelled", "--keep_truncated", "-o", f"{root}/filtered")
run("create_student_model.py", "--teacher_checkpoint", f"{root}/teacher", "--decoder_layers", 1,
    "--save_dir", f"{root}/init")
run("run_distillation.py", "--model_name_or_path", f"{root}/init",
    "--teacher_model_name_or_path", f"{root}/teacher", "--train_dataset_name", f"{root}/filtered",
    *spoken, "--max_steps", 1, "--per_device_train_batch_size", 2, "-o", f"{root}/student")
run("run_finetuning.py", "--model_name_or_path", f"{root}/init", "--train_dataset_name",
    f"{root}/clips/clips.jsonl", *spoken, "--max_steps", 1, "--per_device_train_batch_size", 2,
    "-o", f"{root}/tuned")
run("run_short_form_eval.py", *model, *clips, *spoken, "--generation_max_length", 24,
    "-o", f"{root}/eval")
for chunked in ((), ("--chunk_length_s", 4)):
    run("run_long_form_eval.py", *model, "-d", f"{root}/clips/long.jsonl", *spoken, *chunked,
        "--generation_max_length", 24, "-o", f"{root}/eval")
assert "torchcodec" not in sys.modules
print("all stages are done")
"""


def test_all_stages_run(tmp_path):
    talkative_model_folder(tmp_path / "teacher")
    clips = tone_manifest(tmp_path / "clips" / "clips.jsonl", 4)
    samples, rate = soundfile.read(clips.parent / "clips-0000.flac")
    soundfile.write(clips.parent / "long.flac", [*samples] * 6, rate)
    write_manifest(clips.parent / "long.jsonl", [{"audio": "long.flac", "text": "ねこ"}])
    broken = broken_torchcodec(tmp_path, "__init__", "OSError('libtorch_cuda.so is missing')")
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=environment({"PYTHONPATH": f"{broken}:{REPOSITORY}:{REPOSITORY / 'tests'}"}),
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    assert "all stages are done" in done.stdout
    assert record(tmp_path / "filtered")["ledger"]["out"] == 4
