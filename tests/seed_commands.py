"""Commands of the documents of kotoba-whisper and distil-whisper, placeholders filled in."""

KOTOBA = {
    "run_pseudo_labelling.py": """
        --model_name_or_path openai/whisper-large-v3
        --dataset_name /work/reazonspeech_manual_dataloader.py
        --dataset_config_name tiny --dataset_split_name train
        --text_column_name transcription --id_column_name name
        --per_device_eval_batch_size 4 --dataloader_num_workers 32 --preprocessing_num_workers 32
        --logging_steps 100 --max_label_length 128 --language ja --return_timestamps
        --attn_type flash_attn --generation_num_beams 1 --decode_token_ids False
        --overwrite_output_dir --output_dir output --wandb_project wandb
        --hub_model_id my-org/my-dataset""",
    "run_data_filtering.py": """
        -d my-org/my-dataset --dataset_config_name tiny --wer_threshold 10
        --text_column_name transcription --preprocessing_num_workers 64 --max_label_length 128""",
    "create_student_model.py": """
        --teacher_checkpoint openai/whisper-large-v3 --encoder_layers 32 --decoder_layers 2
        --save_dir my-org/my-model-init""",
    "run_distillation.py": """
        --model_name_or_path my-org/my-model-init
        --teacher_model_name_or_path openai/whisper-large-v3
        --train_dataset_name my-org/my-dataset.wer_10.0.vectorized
        --train_dataset_config_name tiny --language ja --max_label_length 128
        --train_split_name train --save_steps 2500 --warmup_steps 50 --learning_rate 0.0001
        --lr_scheduler_type constant_with_warmup --logging_steps 50 --save_total_limit 1
        --per_device_train_batch_size 16 --gradient_accumulation_steps 2
        --preprocessing_num_workers 64 --dataloader_num_workers 1 --dtype bfloat16 --output_dir ./
        --wandb_project wandb --gradient_checkpointing --freeze_encoder --push_to_hub --do_train
        --overwrite_output_dir --num_train_epochs 8""",
    "run_short_form_eval.py": "-m my-org/my-model -d japanese-asr/ja_asr.reazonspeech_test",
}

# The flags of its evaluation script, all of them.
KOTOBA_EVALUATION = {
    "run_short_form_eval.py": """
        -m my-org/my-model -d japanese-asr/a+japanese-asr/b -l ja -t transcribe -b 16 -c 15 -a sdpa
        -o eval --dataset-split test --dataset-config default --column-audio sound
        --column-text transcription --pretty-table"""
}

DISTIL_WHISPER = {
    "run_pseudo_labelling.py": """
        --model_name_or_path openai/whisper-large-v2
        --dataset_name mozilla-foundation/common_voice_13_0 --dataset_config_name hi
        --dataset_split_name train+validation+test --text_column_name sentence
        --id_column_name path --output_dir ./common_voice_13_0_hi_pseudo_labelled
        --wandb_project distil-whisper-labelling --per_device_eval_batch_size 64 --dtype bfloat16
        --dataloader_num_workers 16 --preprocessing_num_workers 16 --logging_steps 500
        --max_label_length 128 --report_to wandb --language hi --task transcribe
        --return_timestamps --attn_type flash_attn --streaming False --generation_num_beams 1
        --decode_token_ids False --push_to_hub""",
    "create_student_model.py": """
        --teacher_checkpoint openai/whisper-large-v2 --encoder_layers 32 --decoder_layers 2
        --save_dir ./distil-large-v2-init""",
    "run_distillation.py": """
        --model_name_or_path ./distil-large-v2-init
        --teacher_model_name_or_path openai/whisper-large-v2
        --train_dataset_name ../cv_13_0_hi_pseudo_labelled+../cv_13_0_hi_pseudo_labelled
        --train_dataset_config_name hi+hi --train_split_name train+validation
        --text_column_name sentence+sentence --train_dataset_samples 10+5
        --eval_dataset_name ../cv_13_0_hi_pseudo_labelled --eval_dataset_config_name hi
        --eval_split_name test --eval_text_column_name sentence --eval_steps 1000
        --save_steps 1000 --warmup_steps 50 --learning_rate 0.0001
        --lr_scheduler_type constant_with_warmup --logging_steps 25 --save_total_limit 1
        --max_steps 5000 --wer_threshold 10 --per_device_train_batch_size 64
        --per_device_eval_batch_size 64 --dataloader_num_workers 16
        --preprocessing_num_workers 16 --ddp_timeout 7200 --dtype bfloat16 --output_dir ./
        --do_train --do_eval --gradient_checkpointing --overwrite_output_dir
        --predict_with_generate --freeze_encoder --streaming False --push_to_hub""",
    "run_short_form_eval.py": """
        --model_name_or_path ./ --dataset_name ../cv_13_0_hi_pseudo_labelled+google/fleurs
        --dataset_config_name hi+hi_in --dataset_split_name test+test
        --text_column_name sentence+transcription --output_dir ./
        --per_device_eval_batch_size 64 --dtype bfloat16 --dataloader_num_workers 16
        --report_to wandb --generation_max_length 128 --language hi --attn_type flash_attn
        --streaming""",
    "run_long_form_eval.py": """
        --model_name_or_path openai/whisper-large-v2 --dataset_name distil-whisper/tedlium-long-form
        --dataset_config_name all --dataset_split_name validation --text_column_name text
        --output_dir ./ --per_device_eval_batch_size 64 --chunk_length_s 30 --language en
        --return_timestamps --dtype bfloat16 --report_to wandb --streaming""",
}

# Plain files instead of the Hub, for the same two stages.
LOCAL_FILES = {
    "run_distillation.py": DISTIL_WHISPER["run_distillation.py"]
    .replace("../cv_13_0_hi_pseudo_labelled+../cv_13_0_hi_pseudo_labelled", "datasets/train.json")
    .replace("hi+hi", "zh")
    .replace("train+validation", "train")
    .replace("sentence+sentence", "sentence")
    .replace("10+5", "10")
    .replace("../cv_13_0_hi_pseudo_labelled", "datasets/dev.json"),
}

# Of Whisper's fine-tuning event.
FINE_TUNING_EVENT = {
    "run_finetuning.py": """
        --model_name_or_path=openai/whisper-small
        --dataset_name=mozilla-foundation/common_voice_11_0 --dataset_config_name=es
        --language=spanish --train_split_name=train+validation --eval_split_name=test
        --model_index_name=Whisper-Small-Spanish --max_steps=5000 --output_dir=./
        --per_device_train_batch_size=64 --per_device_eval_batch_size=32 --logging_steps=25
        --learning_rate=1e-5 --warmup_steps=500 --evaluation_strategy=steps --eval_steps=1000
        --save_strategy=steps --save_steps=1000 --generation_max_length=225
        --length_column_name=input_length --max_duration_in_seconds=30
        --text_column_name=sentence --freeze_feature_encoder=False --report_to=tensorboard
        --metric_for_best_model=wer --greater_is_better=False --load_best_model_at_end
        --gradient_checkpointing --fp16 --overwrite_output_dir --do_train --do_eval
        --predict_with_generate --do_normalize_eval --streaming --use_auth_token --push_to_hub"""
}

# The settings of the notebook that the document on Hindi describes.
HINDI = {
    "run_finetuning.py": """
        --model_name_or_path openai/whisper-small
        --dataset_name mozilla-foundation/common_voice_11_0 --dataset_config_name hi
        --text_column_name sentence --language Hindi --task transcribe
        --train_split_name train+validation --eval_split_name test --output_dir ./whisper-small-hi
        --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --learning_rate 1e-5
        --warmup_steps 500 --max_steps 4000 --gradient_checkpointing True --fp16 True
        --eval_strategy steps --do_eval --per_device_eval_batch_size 8 --predict_with_generate True
        --generation_max_length 225 --save_steps 1000 --eval_steps 1000 --logging_steps 25
        --report_to tensorboard --load_best_model_at_end True --metric_for_best_model wer
        --greater_is_better False --push_to_hub True"""
}
