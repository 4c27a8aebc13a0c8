from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from huggingface_hub.utils import filter_repo_objects

from distillery.cli import hub
from distillery.cli.runtime import open_run, set_up_logging
from distillery.data import hub_layout
from distillery.storage.ownership import LOCK
from distillery.storage.runs import Run
from distillery.whisper import checkpoint


class Recorder:
    """Stands in for the Hub's client and notes what it is asked to do."""

    calls: list

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}", url="https://hub/x")

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


@pytest.fixture
def calls(monkeypatch):
    Recorder.calls = []
    monkeypatch.setattr(hub, "HfApi", Recorder)
    return Recorder.calls


def uploaded(options, names):
    return sorted(
        filter_repo_objects(
            names,
            allow_patterns=options["allow_patterns"],
            ignore_patterns=options["ignore_patterns"],
        )
    )


def test_a_repository_is_private_unless_asked_otherwise(calls, tmp_path):
    hub.upload(tmp_path, "x", "model", hub.MODEL_FILES, False, "Model")
    hub.upload(tmp_path, "x", "dataset", hub.DATASET_FILES, True, "Labels")
    assert calls[0] == (
        "create_repo",
        "x",
        {"repo_type": "model", "private": True, "exist_ok": True},
    )
    assert calls[2][2] == {"repo_type": "dataset", "private": False, "exist_ok": True}
    options = calls[1][1]
    assert options["repo_id"] == "me/x"
    assert options["folder_path"] == tmp_path
    assert options["commit_message"] == "Model"


def test_only_a_models_own_files_leave_this_machine(calls, tmp_path):
    hub.upload(tmp_path, "x", "model", hub.MODEL_FILES, False, "Model")
    keep = [
        "README.md",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "normalizer.json",
        "preprocessor_config.json",
        "run.json",
        "tokenizer.json",
        "vocab.json",
    ]
    refuse = [
        ".env",
        ".git/config",
        "best/model.safetensors",
        "checkpoint-10/model.safetensors",
        "checkpoint-10/optimizer.pt",
        "config.yaml",
        "data/audio.wav",
        "notes.txt",
        "optimizer.pt",
        "train_log.jsonl",
        "wandb/run/config.json",
    ]
    assert uploaded(calls[1][1], keep + refuse) == keep


def test_only_a_datasets_own_files_leave_this_machine(calls, tmp_path):
    hub.upload(tmp_path, "x", "dataset", hub.DATASET_FILES, False, "Labels")
    keep = ["README.md", "default/train-00000-of-00001.parquet", "run.json"]
    refuse = [
        ".labels/default/train/00000.parquet",
        ".labels/default/train/00000.parquet.seal.json",
        "default/.train-00000-of-00001.parquet.0a.tmp",
        "config.yaml",
        "default/audio.wav",
        "token.txt",
    ]
    assert uploaded(calls[1][1], keep + refuse) == keep


def test_a_token_reaches_no_record_card_or_log(calls, tmp_path, monkeypatch, capfd):
    canary = "hf_canary0123456789"
    monkeypatch.setenv("HF_TOKEN", canary)
    monkeypatch.setenv("WANDB_API_KEY", canary)
    set_up_logging()
    run = Run(tmp_path, "stage", {}, {})
    open_run(Accelerator(cpu=True), run, False)
    run.finish(rows=1)
    hub_layout.write_card(tmp_path / "data", {"default": ["train"]}, "Title", "Body")
    checkpoint.write_card(tmp_path, "A model.")
    hub.upload(tmp_path, "x", "model", hub.MODEL_FILES, False, "Model")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix != ".journal"]
    assert {path.name for path in files} == {"run.json", "config.yaml", "README.md", LOCK}
    assert len(files) == 5
    texts = [path.read_text(encoding="utf-8") for path in files]
    texts += [str(calls), *capfd.readouterr()]
    assert "uploaded" in texts[-1]
    assert not [text for text in texts if canary in text]


@pytest.mark.parametrize(
    ("stage", "flags", "target"),
    [
        ("run_distillation", {"hub_model_id": "me/x"}, None),
        ("run_distillation", {"hub_model_id": "me/x", "push_to_hub": True}, "me/x"),
        ("run_distillation", {"push_to_hub": True}, "out"),
        ("run_data_filtering", {"hub_model_id": "me/x"}, "me/x"),
        ("run_data_filtering", {}, None),
        ("run_short_form_eval", {}, None),
    ],
)
def test_what_is_uploaded_is_what_was_said(calls, tmp_path, stage, flags, target):
    run = Run(tmp_path / "out", stage, flags, {})
    plan = hub.upload_plan(run)
    hub.publish(run)
    if target is None:
        assert plan.startswith("nothing is uploaded")
        assert calls == []
    else:
        assert plan == f"will be uploaded as {target}, private"
        assert calls[0][1] == target
        kind = "model" if stage == "run_distillation" else "dataset"
        assert calls[0][2]["repo_type"] == kind


def test_a_model_that_is_named_but_not_pushed_is_pointed_out(tmp_path):
    run = Run(tmp_path, "run_distillation", {"hub_model_id": "me/x"}, {})
    assert "--hub_model_id me/x wants --push_to_hub" in hub.upload_plan(run)
