"""Flags of distil-whisper's and kotoba-whisper's scripts that are something else here, or nothing.

`SEED_FLAGS` has those that are not taken, by stage and name: what a message says behind the flag,
once somebody types it. `OTHER_MEANINGS` has those that are taken, but do or default to something
else than there. The documents list both.
"""

_HUB = {
    "token": "log in with `hf auth login`, or set HF_TOKEN",
    "hub_token": "log in with `hf auth login`, or set HF_TOKEN",
    "subfolder": "fetch the model first, and give the folder to --model_name_or_path",
    "overwrite_cache": "name a fresh folder: --dataset_cache_dir",
}
_MODEL_PARTS = {
    name: "all parts of a model come from --model_name_or_path"
    for name in (
        *("config_name", "tokenizer_name", "feature_extractor_name", "processor_name"),
        "use_fast_tokenizer",
    )
}
_PREPROCESSING = {
    name: "rows are prepared while the stage runs, and not before: leave it out"
    for name in ("preprocessing_only", "preprocessing_batch_size")
}
_WANDB = {
    "wandb_name": "set the environment variable WANDB_NAME",
    "wandb_dir": "set the environment variable WANDB_DIR",
    "wandb_job_type": "set the environment variable WANDB_JOB_TYPE",
    "save_code_to_wandb": "the commit is in run.json: leave it out",
}
_DTYPE = {
    "fp16": "use --dtype float16",
    "bf16": "use --dtype bfloat16",
}
_SAMPLING_RATE = "recordings have the sampling rate of the model: leave it out"
_TRANSLATION = {
    "translation_model": "no second model translates; for one that does itself: --task translate",
}

LABELLING = {
    **_HUB,
    **_MODEL_PARTS,
    **_PREPROCESSING,
    **_DTYPE,
    **_WANDB,
    "gradient_accumulation_steps": "nothing is trained here: leave it out",
    "num_chunks": "rows are written in shards, and a killed run goes on: see --rows_per_shard",
}

FILTERING = {
    **_HUB,
    **_MODEL_PARTS,
    **_PREPROCESSING,
    "skip_filtering": "nothing is compared without --wer_threshold and --cer_threshold",
    "skip_logmel": "features are stored with --vectorize only",
    "is_english_model": "the model says it itself: --model_name_or_path",
    "task_filtering": "use --task",
    "language_filtering": "use --language",
    "text_column_label": "use --text_column_name",
    "text_column_prediction": "transcripts are read from the column that labelling writes",
}

STUDENT = {
    "subfolder": "fetch the teacher first, and give the folder to --teacher_checkpoint",
    "token": _HUB["token"],
}

# Settings of transformers' trainer, which the seeds' training scripts take, too.
_OF_TRAINER = """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs
    average_tokens_across_devices batch_eval_metrics bf16_full_eval
    data_seed dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context
    dataloader_persistent_workers ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
    ddp_find_unused_parameters ddp_static_graph debug disable_tqdm do_predict
    enable_jit_checkpoint eval_accumulation_steps eval_delay eval_do_concat_batches
    eval_on_start eval_use_gather_object fp16_full_eval full_determinism generation_config
    gradient_checkpointing_kwargs hub_always_push hub_revision hub_strategy ignore_data_skip
    include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor
    liger_kernel_config local_rank log_level log_level_replica log_on_each_node logging_dir
    logging_first_step logging_nan_inf_filter logging_strategy lr_scheduler_kwargs
    neftune_noise_alpha optim_args optim_target_modules parallelism_config prediction_loss_only
    project remove_unused_columns restore_callback_states_from_checkpoint save_on_each_node
    save_only_model save_safetensors skip_memory_metrics sortish_sampler tf32
    torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
    trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu
    use_liger_kernel
"""
_LAUNCHED = "leave it out, and launch with accelerate and scripts/launch/{}.yaml"
_TRAINER = {
    **dict.fromkeys(
        _OF_TRAINER.split(),
        "a setting of transformers' trainer, which is not used here: leave it out",
    ),
    **dict.fromkeys(("fsdp", "fsdp_config"), _LAUNCHED.format("fsdp2")),
    "deepspeed": _LAUNCHED.format("deepspeed_zero2"),
    "run_name": "set the environment variable WANDB_NAME",
}

TRAINING = {
    **_TRAINER,
    **_HUB,
    **_MODEL_PARTS,
    **_PREPROCESSING,
    **_WANDB,
    "dataloader_prefetch_factor": "it has torch's default: leave it out",
    "dataloader_pin_memory": "memory is pinned where there is a GPU: leave it out",
    "pad_target_to_multiple_of": "labels are padded to the longest of a batch: leave it out",
    **{
        f"dataset_{part}_{number}": f"datasets are joined with '+': {instead}"
        for number in (1, 2)
        for part, instead in {
            "name": "--train_dataset_name a+b",
            "config_name": "--train_dataset_config_name a+b",
            "split_name": "--train_split_name a+b",
            "feature": "--train_dataset_name a+a --text_column_name text+translation",
            "language": "--language ja+en",
            "task": "--task transcribe+translate",
            "timestamp": "for all, --timestamp_probability",
            "kl": "--kl_weight 1+0",
        }.items()
    },
    "num_workers": "use --dataloader_num_workers",
}

FINETUNING = {
    **{name: advice for name, advice in TRAINING.items() if name != "config_name"},
    **dict.fromkeys(("dataset_kl_1", "dataset_kl_2"), "no teacher is followed here: leave it out"),
}

EVALUATION = {
    **_HUB,
    **_MODEL_PARTS,
    **_PREPROCESSING,
    **_WANDB,
    "batch_size": "use --per_device_eval_batch_size",
    "max_eval_samples": "use --max_samples",
    "samples_per_dataset": "use --max_samples",
    "assistant_model_name_or_path": "use --assistant_model",
    "log_predictions": "predictions are always written beside the metrics: leave it out",
    "prompt_text": "decoding starts without a prompt: leave it out",
    "use_pipeline": "windows are decoded without transformers' pipeline: leave it out",
    "model_variant": "every model is run by transformers: leave it out",
    "precise_tok_generation": "speed is measured by run_speed_eval.py",
    "num_batches": "speed is measured by run_speed_eval.py",
    "logprob_threshold": "it has OpenAI's value: leave it out",
    "no_speech_threshold": "it has OpenAI's value: leave it out",
    "compression_ratio_threshold": "it has OpenAI's value: leave it out",
}

SHORT_FORM = {
    **EVALUATION,
    **_TRANSLATION,
    "only_short_form": "this stage does nothing else: leave it out",
    "only_long_form": "recordings longer than a window: run_long_form_eval.py",
    "condition_on_prev_tokens": "for long recordings: run_long_form_eval.py",
}

LONG_FORM = {
    **EVALUATION,
    "only_long_form": "this stage does nothing else: leave it out",
    "only_short_form": "clips that fit into a window: run_short_form_eval.py",
}

SPEED = {
    **_TRANSLATION,
    "n": "use --num_runs",
    "n_trial": "use --num_runs",
    "s": _SAMPLING_RATE,
    "sampling_rate": _SAMPLING_RATE,
    "duration": "use --lengths_s, joined with '+'",
    "output": "use --output_dir",
    "pretty_table": "the table is always printed: leave it out",
}

SEED_FLAGS: dict[str, dict[str, str]] = {
    "reazonspeech_manual_downloader": {},
    "run_pseudo_labelling": LABELLING,
    "run_data_filtering": FILTERING,
    "create_student_model": STUDENT,
    "run_distillation": TRAINING,
    "run_finetuning": FINETUNING,
    "run_short_form_eval": SHORT_FORM,
    "run_long_form_eval": LONG_FORM,
    "run_speed_eval": SPEED,
}

_ONE = "one, not several with commas as in the bilingual scripts: run the stage once for each"
_AT_LIMIT = "what is just at it is kept, unless --strict_limits (there: dropped)"
_TAKEN_BY_ALL = {
    "private_dataset": "True changes nothing, because repositories are private unless --hub_public "
    "is given (there: public); False is refused",
    "report_to": "no tracker unless given, several joined with '+'",
    "wandb_project": "the stage's name unless given; holds for every tracker, and switches none on",
}

_ONLY_SPLIT = "the only split"
_FIRST_NAME = "the first usual name there is"
_DTYPE_HERE = "`auto`: bfloat16 on a GPU that has it, else float32"
_NO_DECODERS = "changes nothing: clips are decoded in --dataloader_num_workers"

_TRAINING_HERE = {
    **_TAKEN_BY_ALL,
    "dtype": f"{_DTYPE_HERE} (there: float32)",
    "streaming": "off (there: on)",
    "hub_model_id": "uploads by itself (there: with --push_to_hub alone)",
    "train_split_name": f"{_ONLY_SPLIT} (there: train)",
    "language": "as columns of the rows, or their stored labels, say (there: the tokenizer's); "
    "several are joined with '+'",
    "text_column_name": f"{_FIRST_NAME} (there: none)",
    "train_dataset_samples": "weighs rows that are not streamed, too, until every dataset is "
    "exhausted (there: streams alone, until the first is)",
    "eval_dataset_name": "none (there: --train_dataset_name)",
    "eval_split_name": f"{_ONLY_SPLIT} (there: validation)",
    "eval_text_column_name": f"{_FIRST_NAME} (there: text)",
    "eval_steps": "none: at the end only (there: after each epoch)",
    "min_duration_in_seconds": "none (there: 0); what is just at it is kept (there: dropped)",
    "max_duration_in_seconds": "none (there: 30); what is just at it is kept (there: dropped)",
    "resume_from_checkpoint": "of another run, where this one has none of its own: with those, it "
    "goes on from the newest (there: from what is named, always)",
    "learning_rate": "1e-4 (there: 5e-5)",
    "per_device_train_batch_size": "16 (there: 8)",
    "per_device_eval_batch_size": "16 (there: 8)",
    "logging_steps": "50 (there: 500, of distil-whisper 25 in its commands)",
    "preprocessing_num_workers": _NO_DECODERS,
    "dataloader_num_workers": "decode alone: a stream itself is read between two updates",
}

_EVALUATION_HERE = {
    **{name: _TAKEN_BY_ALL[name] for name in ("report_to", "wandb_project")},
    "dtype": f"{_DTYPE_HERE} (distil-whisper: float16, kotoba-whisper: bfloat16 on a GPU)",
    "model": "no default (there: kotoba-tech/kotoba-whisper-v1.1)",
    "dataset": "no default (there: japanese-asr/ja_asr.jsut_basic5000)",
    "dataset_name": "a name without a slash is one of the Hub's (distil-whisper's script puts "
    "distil-whisper/ before it)",
    "dataset_split_name": f"{_ONLY_SPLIT} (there: test)",
    "text_column_name": f"{_FIRST_NAME} (kotoba-whisper: transcription, distil-whisper: text)",
    "language": "none, for English-only models; required of others (kotoba-whisper: ja)",
    "streaming": "off (there: on)",
    "return_timestamps": "off (there: on)",
    "generation_max_length": "225 (there: 256)",
    "preprocessing_num_workers": _NO_DECODERS,
}

OTHER_MEANINGS = {
    "reazonspeech_manual_downloader": {
        "health_check": "what is damaged is renamed, and fetched by the next download (there: "
        "deleted)",
        "start_que": "needs --end_que, as there; the folder is named after both",
    },
    "create_student_model": {
        "push_to_hub": "private unless --hub_public is given (there: public)",
    },
    "run_distillation": _TRAINING_HERE,
    "run_finetuning": _TRAINING_HERE,
    "run_short_form_eval": {
        **_EVALUATION_HERE,
        "chunk_length": "none: a clip must fit into the model's window (kotoba-whisper: 15 s)",
        "punctuator": "with any model, and another punctuator by its name (there: with "
        "kotoba-whisper v1.1 and v2.1 alone)",
        "stable_ts": "with any model (there: with kotoba-whisper v1.1 and v2.1 alone)",
        "pretty_table": "beside a model, the table of all results; without one it only prints "
        "(there always)",
    },
    "run_long_form_eval": {
        **_EVALUATION_HERE,
        "preprocessing_num_workers": "changes nothing: recordings are decoded as they are read",
        "dataloader_num_workers": "changes nothing: recordings are decoded as they are read",
        "chunk_length_s": "none, which decodes window after window (there: 30, with a pipeline)",
        "temperature_fallback": "off (there: on); a window is decoded again above a compression "
        "ratio of 2.4 (there: 1.35)",
    },
    "run_speed_eval": {
        "model": "several are joined with '+'; no default (there: kotoba-tech/kotoba-whisper-v1.0)",
        "d": "datasets whose recordings are laid end to end (there: seconds, here --lengths_s)",
        "o": "a folder (there: a file)",
        "language": "none (there: en)",
    },
    "run_pseudo_labelling": {
        **_TAKEN_BY_ALL,
        "concatenate_audio": "on, where a column of recordings or speakers is there, with a pause "
        "between clips. Clips are not sorted: neighbours of one recording and speaker share a "
        "window",
        "dataset_split_name": "the only split (there: train+validation+test)",
        "dtype": "`auto` (there: float32, of kotoba-whisper bfloat16): bfloat16 on a GPU that has "
        "it, else float32",
        "language": f"detected where it is not given; {_ONE}, or name a column: "
        "--language_column_name",
        "task": f"{_ONE}, or name a column: --task_column_name",
        "text_column_name": f"the first usual name there is (there: `text`); {_ONE}",
        "logging_steps": "after so many batches a line, and figures for the trackers; transcripts "
        "are in the dataset alone",
        "max_duration_in_seconds": "none (there: 30); without it, what is longer than the model's "
        "window is quarantined",
        "max_label_length": "256, as in distil-whisper (kotoba-whisper: 128)",
        "preprocessing_num_workers": "decode audio where --dataloader_num_workers is not given",
        "return_timestamps": "off, as in distil-whisper (kotoba-whisper: on)",
    },
    "run_data_filtering": {
        **_TAKEN_BY_ALL,
        "dataset_split_name": "the only split (there: train)",
        "language": "as the dataset was labelled (there: ja)",
        "model_name_or_path": "the model that labelled the dataset, where it lies in a folder with "
        "its record, else openai/whisper-large-v3 (there always)",
        "wer_threshold": f"none (there: 10); {_AT_LIMIT}",
        "max_label_length": "448 (there: 128)",
        "min_duration_in_seconds": f"none (there: 0); {_AT_LIMIT}",
        "max_duration_in_seconds": f"none (there: 30); {_AT_LIMIT}",
        "dataloader_num_workers": "the same as --preprocessing_num_workers; the larger one holds",
        "logging_steps": "changes nothing: progress is a bar, or a line every 30 s",
    },
}
