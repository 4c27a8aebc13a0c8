"""What the flags of the training stages come down to; whole runs are in tests/stages."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from command_lines import complaints, groups_of, parsed
from tiny import tiny_model_folder

from distillery.cli import training
from distillery.cli.arguments import (
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.device_arguments import DeviceArguments
from distillery.cli.prompt_arguments import PromptArguments
from distillery.cli.train_data_arguments import TrainDataArguments
from distillery.cli.training_arguments import (
    TRAINING_GROUPS,
    TrainingArguments,
    TrainingFlags,
    check,
)
from distillery.data.collators import SpeechCollator
from distillery.storage import checkpoints
from distillery.training import resume
from distillery.training.loop import Progress
from distillery.training.rows import BatchLoader
from distillery.training.settings import ADAMW_8BIT, Evaluation, Length, Optimization
from distillery.whisper import checkpoint

# --- plain values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [({}, Length(None, 3.0)), ({"max_steps": 5, "num_train_epochs": 9.0}, Length(5, 9.0))],
)
def test_updates_go_before_epochs(flags, wanted):
    assert training.length(TrainingArguments(**flags)) == wanted


def test_every_flag_finds_its_setting():
    args = TrainingArguments(
        learning_rate=0.5,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        weight_decay=0.25,
        adam_beta1=0.1,
        adam_beta2=0.2,
        max_grad_norm=7.0,
        adam_epsilon=1e-5,
        warmup_ratio=0.5,
        optim="adamw_bnb_8bit",
    )
    assert training.optimization(args) == Optimization(
        0.5, "cosine", 3, 0.25, (0.1, 0.2), 7.0, 1e-5, 0.5, ADAMW_8BIT
    )


def test_a_dtype_in_the_trainers_words_is_the_dtype():
    words = ["-m", "model", "-d", "data", "-o", "out"]
    for more, wanted in ((["--bf16"], "bfloat16"), (["--fp16"], "float16"), ([], "auto")):
        groups = parsed("run_finetuning.py", words + more)
        assert TrainingFlags.of(*groups[-len(TRAINING_GROUPS) :]).model.dtype == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bf16", "--fp16"], "--bf16 and --fp16: give one of them"),
        (["--bf16", "--dtype", "float32"], "--dtype float32 and --bf16: give one"),
        (["--eval_strategy", "epoch"], "--eval_strategy must be steps, got 'epoch'"),
        (["--save_strategy", "no"], "--save_strategy must be steps, got 'no'"),
        (["--greater_is_better"], "--greater_is_better must be False"),
        (["--do_normalize_eval", "False"], "--do_normalize_eval must be True"),
        (["--warmup_steps", "1", "--warmup_ratio", "0.1"], "--warmup_steps and --warmup_ratio"),
        (["--early_stopping_patience", "2", "--do_eval"], "--early_stopping_patience needs"),
        (["--load_best_model_at_end"], "--load_best_model_at_end needs --do_eval"),
        (["--optim", "sgd"], "--optim must be one of adamw_torch,"),
        (
            ["--min_duration_in_seconds", "3", "--max_duration_in_seconds", "2"],
            "--max_duration_in_seconds must be >= 3, got 2.0",
        ),
    ],
)
def test_words_of_the_trainer_that_ask_for_something_else_are_answered(capsys, words, message):
    always = ["-m", "model", "-d", "data", "-o", "out", *words]
    said = complaints(capsys, *always, groups=groups_of("run_finetuning.py"), check=check)
    assert any(line.startswith(message) for line in said), said


def test_evaluation_is_on_a_split_of_the_training_data_where_no_data_are_named():
    args = TrainDataArguments(
        train_dataset_name="a",
        train_dataset_config_name="hi",
        train_split_name="train+validation",
        text_column_name="sentence",
        eval_split_name="test",
    )
    (spec,) = args.eval_specs()
    assert (str(spec), spec.text_column) == ("a hi test", "sentence")
    assert [str(spec) for spec in args.train_specs()] == ["a hi train", "a hi validation"]
    assert TrainDataArguments(train_dataset_name="a").eval_specs() == []


@pytest.mark.parametrize(
    ("flags", "metric"),
    [
        ({}, "loss"),
        ({"predict_with_generate": True}, "cer"),
        ({"predict_with_generate": True, "metric_for_best_model": "wer"}, "wer"),
    ],
)
def test_what_the_best_model_is_best_in(flags, metric):
    args = TrainingArguments(
        eval_steps=4, per_device_eval_batch_size=5, generation_max_length=9, **flags
    )
    decoding_args = PromptArguments(
        return_timestamps=True, generation_num_beams=6, temperature_fallback=True
    )
    transcribe = args.predict_with_generate
    assert training.evaluation(decoding_args, args) == Evaluation(
        4,
        5,
        metric,
        transcribe,
        timestamps=True,
        num_beams=6,
        max_length=9,
        temperature_fallback=True,
    )


def test_a_session_saves_as_its_flags_say(monkeypatch, tmp_path):
    stand_ins = {
        "training_data": SimpleNamespace(num_updates=9, rows=None),
        "LossMonitor": SimpleNamespace(window=None),
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(training, name, lambda *_, value=value: value)
    monkeypatch.setattr(training.loop, "make_trainer", lambda *_: None)
    monkeypatch.setattr(training.resume, "resume", lambda *_: Progress())
    flags = TrainingFlags(
        ModelArguments(model_name_or_path="model"),
        TrainDataArguments(train_dataset_name="data"),
        PromptArguments(),
        TrainingArguments(save_steps=11, save_total_limit=2),
        OutputArguments(output_dir="out"),
        RunArguments(),
    )
    evaluator = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1),
        learner=SimpleNamespace(student=None),
        folder=tmp_path,
        loader=BatchLoader(SpeechCollator(None, None), 0, pin_memory=False),
    )
    session = training.begin_session(evaluator, None, flags)
    assert (session.saver.every, session.saver.keep) == (11, 2)


@pytest.mark.parametrize(
    ("kind", "version", "optimizer", "lora_rank", "refusal"),
    [
        (
            DistributedType.DEEPSPEED,
            0,
            ADAMW_8BIT,
            None,
            "not go with DeepSpeed.*--optim adamw_torch",
        ),
        (
            DistributedType.DEEPSPEED,
            0,
            "adamw",
            8,
            "not go with DeepSpeed.*scripts/launch/8_gpus.yaml",
        ),
        (DistributedType.DEEPSPEED, 0, "adamw", None, None),
        (DistributedType.FSDP, 1, "adamw", None, "first version: use .* scripts/launch/fsdp2.yaml"),
        (DistributedType.FSDP, 2, ADAMW_8BIT, None, "--optim adamw_8bit .* --optim adamw_torch"),
        (DistributedType.FSDP, 2, "adamw", 8, "--lora_rank .* scripts/launch/8_gpus.yaml"),
        (DistributedType.FSDP, 2, "adamw", None, None),
        (DistributedType.MULTI_GPU, 0, ADAMW_8BIT, 8, None),
    ],
)
def test_launches_that_training_cannot_be_spread_by_are_refused(
    kind, version, optimizer, lora_rank, refusal
):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2}})
    launch = SimpleNamespace(
        distributed_type=kind,
        is_fsdp2=version == 2,
        deepspeed_plugin=plugin,
        mixed_precision="bf16",
    )
    with nullcontext() if refusal is None else pytest.raises(ValueError, match=refusal):
        training.refuse_sharding(launch, optimizer, lora_rank)


@pytest.mark.parametrize(
    ("flags", "device", "kind", "refusal"),
    [
        ({"auto_batch_size": True}, "cpu", "NO", r"^--auto_batch_size needs a GPU"),
        ({"auto_batch_size": True}, "cuda", "FSDP", r"^--auto_batch_size does not go with FSDP2"),
        ({"auto_batch_size": True}, "cuda", "DEEPSPEED", r"^--auto_.* does not go with DeepSpeed"),
        ({"compile": True}, "cuda", "FSDP", r"^--compile does not go with FSDP2"),
        ({"compile": True}, "cuda", "DEEPSPEED", r"^--compile does not go with DeepSpeed"),
        ({"compile": True}, "cpu", None, r"^--compile does not go with --mse_weight"),
        ({"auto_batch_size": True, "compile": True}, "cuda", "NO", None),
        ({"compile": True}, "cpu", "NO", None),
    ],
)
def test_flags_that_a_device_cannot_follow_are_refused(flags, device, kind, refusal):
    """Where there is no kind, layers are compared."""
    launch = SimpleNamespace(
        device=torch.device(device),
        distributed_type=kind and DistributedType(kind),
        is_fsdp2=kind == "FSDP",
    )
    with nullcontext() if refusal is None else pytest.raises(ValueError, match=refusal):
        training.refuse_device_flags(launch, DeviceArguments(**flags), kind is None)


# --- the model to be trained ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def student_of(
    folder, run_folder, freeze_encoder=True, gradient_checkpointing=False, num_processes=1
):
    flags = TrainingFlags(
        ModelArguments(model_name_or_path=str(folder)),
        TrainDataArguments(train_dataset_name="data"),
        PromptArguments(language="Japanese"),
        TrainingArguments(
            freeze_encoder=freeze_encoder, gradient_checkpointing=gradient_checkpointing
        ),
        OutputArguments(output_dir="out"),
        RunArguments(),
    )
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=num_processes)
    newest = resume.newest_checkpoint(Accelerator(cpu=True), run_folder)
    return training.load_student(accelerator, newest, flags)


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_student_is_widened_and_its_encoder_frozen(folder, tmp_path):
    half = checkpoint.load(str(folder), "bfloat16")
    checkpoint.save(half.model, half.tokenizer, half.feature_extractor, tmp_path / "half")
    student = student_of(tmp_path / "half", tmp_path)
    assert {p.dtype for p in student.model.parameters()} == {torch.float32}
    names = trainable(student.model)
    assert names == {n for n, _ in student.model.named_parameters() if ".encoder." not in n}
    assert "model.decoder.embed_tokens.weight" in names


def test_the_encoder_is_trained_too(folder, tmp_path):
    student = student_of(folder, tmp_path, freeze_encoder=False)
    everything = {name for name, _ in student.model.named_parameters()}
    # Whisper's own: the encoder's positions are sinusoids.
    assert everything - trainable(student.model) <= {"model.encoder.embed_positions.weight"}
    assert not student.model.model.decoder.gradient_checkpointing


def test_the_student_goes_on_from_a_checkpoint(folder, tmp_path):
    other = checkpoint.load(str(folder))
    with torch.no_grad():
        other.model.model.decoder.layer_norm.weight.fill_(7)
    with checkpoints.sealed_folder(checkpoints.checkpoint_path(tmp_path, 3)) as temporary:
        checkpoint.save(other.model, other.tokenizer, other.feature_extractor, temporary)
    student = student_of(folder, tmp_path)
    assert float(student.model.model.decoder.layer_norm.weight.detach().mean()) == 7


@pytest.mark.filterwarnings("error")  # transformers has another name for it, which is no news
def test_gradient_checkpointing(folder, tmp_path):
    student = student_of(folder, tmp_path, gradient_checkpointing=True)
    assert student.model.model.decoder.gradient_checkpointing


def test_nothing_is_computed_twice_of_a_frozen_encoder(folder, tmp_path):
    def recomputed(freeze_encoder):
        model = student_of(
            folder, tmp_path, freeze_encoder, gradient_checkpointing=True
        ).model.model
        return [
            {layer.gradient_checkpointing for layer in stack.layers}
            for stack in (model.encoder, model.decoder)
        ]

    assert recomputed(freeze_encoder=True) == [{False}, {True}]
    assert recomputed(freeze_encoder=False) == [{True}, {True}]


@pytest.mark.parametrize(("device", "is_on_gpu"), [("cuda", True), ("cpu", False)])
def test_a_gpu_makes_the_features_of_what_workers_decode(folder, device, is_on_gpu):
    accelerator = SimpleNamespace(device=torch.device(device))
    args = RunArguments(dataloader_num_workers=3)
    loader = training.batch_loader(accelerator, checkpoint.load_processor(str(folder)), args)
    assert loader.collate.makes_features is not is_on_gpu
    assert (loader.pin_memory, loader.num_workers) == (is_on_gpu, 3)


def test_the_student_will_write_the_language_that_it_is_trained_on(folder, tmp_path):
    settings = student_of(folder, tmp_path).model.generation_config
    assert (settings.language, settings.task) == ("ja", "transcribe")


@pytest.mark.parametrize("name", ["encoder_layerdrop", "decoder_layerdrop"])
def test_layers_are_not_dropped_in_several_processes(folder, tmp_path, name):
    model = checkpoint.load(str(folder))
    setattr(model.model.config, name, 0.25)
    checkpoint.save(model.model, model.tokenizer, model.feature_extractor, tmp_path / "dropping")
    student_of(tmp_path / "dropping", tmp_path)
    student_of(folder, tmp_path, num_processes=2)
    with pytest.raises(ValueError, match=f"{name} is 0.25 .* 2 processes .* set it to 0"):
        student_of(tmp_path / "dropping", tmp_path, num_processes=2)
