"""What `scripts/launch/` has for accelerate and Slurm; no GPU is needed to read it."""

import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from launching import shell_environment
from tiny import REPOSITORY

FOLDER = REPOSITORY / "scripts" / "launch"
# File: kind, machines, processes.
CONFIGS = {
    "1_gpu": ("NO", 1, 1),
    "8_gpus": ("MULTI_GPU", 1, 8),
    "2x8_gpus": ("MULTI_GPU", 2, 16),
    "fsdp2": ("FSDP", 1, 8),
    "deepspeed_zero2": ("DEEPSPEED", 1, 8),
}
TRAINING = ["run_finetuning.py", "-o", "model"]


def launched(name: str) -> Namespace:
    """Return what accelerate would launch a training with, by its own reader."""
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), *TRAINING]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return args


def test_every_file_is_looked_at():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == CONFIGS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_a_file_as_it_is_meant(name):
    kind, machines, processes = CONFIGS[name]
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines) == (kind, machines)
    args = launched(name)
    assert (args.num_machines, args.num_processes) == (machines, processes)
    assert args.mixed_precision == "bf16"
    launchers = {
        "MULTI_GPU": args.multi_gpu,
        "FSDP": args.use_fsdp,
        "DEEPSPEED": args.use_deepspeed,
    }
    assert {name for name, is_used in launchers.items() if is_used} == {kind} - {"NO"}
    assert [args.training_script, *args.training_script_args] == TRAINING


def test_what_is_spread_over_gpus():
    fsdp = launched("fsdp2")
    assert int(fsdp.fsdp_version) == 2
    layers = fsdp.fsdp_transformer_layer_cls_to_wrap.split(",")
    assert layers == ["WhisperEncoderLayer", "WhisperDecoderLayer"]
    deepspeed = launched("deepspeed_zero2")
    assert int(deepspeed.zero_stage) == 2
    # Each machine is told to start, as Slurm does; DeepSpeed would begin with ssh.
    assert deepspeed.deepspeed_multinode_launcher == "standard"


def slurm_job(folder: Path, nodes: int, gpus: int, **more: str) -> list[str]:
    """Run the Slurm script where Slurm is pretended; return what each machine would launch."""
    programs = {
        "scontrol": 'printf "%s\\n" first second',
        "srun": 'for SLURM_NODEID in $(seq 0 $((SLURM_NNODES - 1))); do export SLURM_NODEID; "$@"; '
        "done",
        "accelerate": 'echo "$*"',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = shell_environment(
        SLURM_SUBMIT_DIR=str(REPOSITORY),
        SLURM_JOB_NODELIST="first,second",
        SLURM_NNODES=str(nodes),
        SLURM_GPUS_ON_NODE=str(gpus),
        **more,
    )
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "scripts/launch/slurm_stage.sh", *TRAINING],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_slurm_job_launches_on_each_machine_what_accelerate_reads(tmp_path):
    for rank, line in enumerate(slurm_job(tmp_path, nodes=2, gpus=8)):
        launch, *words = line.split()
        assert launch == "launch"
        args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, rank)
        assert (args.main_process_ip, args.main_process_port) == ("first", 29500)
        assert args.multi_gpu
        assert [args.training_script, *args.training_script_args] == TRAINING


def test_a_slurm_job_of_one_gpu_is_one_process(tmp_path):
    (line,) = slurm_job(tmp_path, nodes=1, gpus=1)
    assert "1_gpu.yaml --num_machines 1 --num_processes 1 run_finetuning.py" in line
    (line,) = slurm_job(tmp_path, nodes=1, gpus=8, CONFIG="fsdp2")
    assert "fsdp2.yaml --num_machines 1 --num_processes 8 run_finetuning.py" in line
