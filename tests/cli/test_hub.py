import hashlib
import json
import multiprocessing

import pytest
from hub_server import HubServer
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import close_session
from launching import wait_until

from distillery.cli import hub
from distillery.cli.hub import HubError
from distillery.storage.runs import Run

CARD = b"---\ntags:\n- whisper\n---\n\n# out\n\nA model.\n"
MODEL = {
    "README.md": CARD,
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "config.yaml": b"a: b",
    "checkpoint-2/model.safetensors": b"older weights",
    "best/model.safetensors": b"better weights",
}


@pytest.fixture
def server(monkeypatch):
    with HubServer() as server:
        server.reach(monkeypatch)
        monkeypatch.setattr(hub, "FIRST_WAIT_S", 0.01)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        close_session()
        yield server
    close_session()


def finished(folder, files=MODEL, stage="run_distillation", **flags):
    """Return a complete run that lists some files, and write them and its record."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    arguments = {"output_dir": str(folder), "hub_public": False, **flags}
    record = {"stage": stage, "status": "complete", "arguments": arguments, "inputs": {}}
    (folder / "run.json").write_text(json.dumps({**record, "files": listed}), "utf-8")
    return Run(folder, stage, arguments, {})


@pytest.fixture
def run(tmp_path):
    return finished(tmp_path / "out", push_to_hub=True)


# --- what is uploaded -----------------------------------------------------------------------------


def test_what_the_record_lists_is_uploaded_and_nothing_of_the_users(server, run):
    for name in ("model_backup/private.safetensors", "notes.txt", "tokenizer.json", ".env"):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_text("secret of the user", "utf-8")
    hub.publish(run)
    names = ["README.md", "config.json", "model.safetensors", "run.json"]
    assert sorted(server.files("me/out")) == names
    assert not [sent for sent in server.received if b"secret of the user" in sent]
    assert server.repositories["models", "me/out"].is_private


def test_of_a_dataset_only_listed_shards_are_uploaded(server, tmp_path):
    listed = {"default/train-00000-of-00001.parquet": b"rows", ".labels/x.parquet": b"work"}
    run = finished(tmp_path / "out", listed, "run_data_filtering", hub_model_id="my-org/data")
    (run.folder / "sub" / ".hidden").mkdir(parents=True)
    (run.folder / "sub" / ".hidden" / "private.parquet").write_bytes(b"private")
    (run.folder / "default" / "train-00001-of-00002.parquet").write_bytes(b"older")
    hub.publish(run)
    names = ["default/train-00000-of-00001.parquet", "run.json"]
    assert sorted(server.files("my-org/data", "datasets")) == names


def test_a_public_repository_is_made_only_on_request(server, tmp_path):
    hub.publish(finished(tmp_path / "out", push_to_hub=True, hub_public=True))
    assert not server.repositories["models", "me/out"].is_private


def test_the_uploaded_record_lists_what_was_uploaded(server, run):
    hub.publish(run)
    files = server.files("me/out")
    listed = json.loads(files.pop("run.json"))["files"]
    assert listed == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }


def test_a_second_upload_sends_only_changes(server, run):
    hub.publish(run)
    sent = server.counts.copy()
    hub.publish(run)
    repository = server.repositories["models", "me/out"]
    assert len(repository.commits) == 1
    assert server.counts["put"] == sent["put"] == 1
    (run.folder / "config.json").write_text('{"a": 1}', "utf-8")
    hub.publish(run)
    assert repository.commits[1:] == [["config.json"]]


def test_what_an_earlier_upload_had_and_this_one_has_not_is_deleted(server, tmp_path):
    two = {f"default/train-{n:05d}-of-00002.parquet": b"rows" for n in range(2)}
    flags = {"stage": "run_data_filtering", "hub_model_id": "me/data"}
    hub.publish(finished(tmp_path / "one" / "out", two, **flags))
    server.files("me/data", "datasets")["mine.parquet"] = b"of the user"
    one = {"default/train-00000-of-00001.parquet": b"rows"}
    hub.publish(finished(tmp_path / "two" / "out", one, **flags))
    names = [*one, "mine.parquet", "run.json"]
    assert sorted(server.files("me/data", "datasets")) == names


def test_many_files_go_in_several_commits_with_the_record_in_the_last(server, run, monkeypatch):
    monkeypatch.setattr(hub, "FILES_PER_COMMIT", 2)
    hub.publish(run)
    commits = server.repositories["models", "me/out"].commits
    assert commits == [["config.json", "model.safetensors"], ["README.md", "run.json"]]


def test_a_run_that_lists_no_files_is_not_uploaded_by_guess(server, run):
    record = json.loads(run.record_path.read_text("utf-8"))
    del record["files"]
    run.record_path.write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match="was made by an older version"):
        hub.publish(run)
    assert not server.repositories


# --- faults ---------------------------------------------------------------------------------------

KINDS = ("create", "preupload", "batch", "put", "commit")


@pytest.mark.parametrize("fault", [408, 429, 500, 503, 504, "reset", "lost"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_passes_is_asked_again(server, run, kind, fault):
    server.faults[kind] = [fault, fault]
    server.retry_after = "0"
    hub.publish(run)
    names = ["README.md", "config.json", "model.safetensors", "run.json"]
    assert sorted(server.files("me/out")) == names
    assert snapshot_download("me/out")


@pytest.mark.parametrize("fault", [504, "reset"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_stays_is_given_up_after_bounded_attempts(server, run, kind, fault):
    server.faults[kind] = [fault] * 100
    with pytest.raises(HubError, match=r"out is complete, but was not uploaded as out: .*again"):
        hub.publish(run)
    assert 2 <= server.counts[kind] <= 6
    server.faults.clear()
    hub.publish(run)
    assert "model.safetensors" in server.files("me/out")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_is_told_at_once(server, run, kind, status):
    if kind != "create":
        hub.publish(finished(run.folder.with_name("other"), {"x.bin": b"x"}, push_to_hub=True))
        server.counts.clear()
    server.faults[kind] = [status] * 100
    with pytest.raises(HubError, match=str(status)) as told:
        hub.publish(run)
    assert server.counts[kind] == 1
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_anywhere_in_an_upload_and_a_second_one_complete_it(server, run, kind):
    server.faults[kind] = ["stall"]
    child = multiprocessing.get_context("fork").Process(target=hub.publish, args=(run,))
    child.start()
    try:
        wait_until(lambda: server.counts[kind] == 1, 30)
    finally:
        child.kill()
        child.join()
    before = server.repositories.get(("models", "me/out"))
    assert before is None or "run.json" not in before.files  # what says that it is whole
    close_session()
    hub.publish(run)
    assert "run.json" in server.files("me/out")
    assert len(server.repositories["models", "me/out"].commits) == 1
    assert snapshot_download("me/out")


@pytest.mark.parametrize("fault", [429, 504, "reset"])
@pytest.mark.parametrize("kind", ["info", "resolve"])
def test_a_fault_while_reading_passes(server, run, kind, fault, tmp_path):
    hub.publish(run)
    server.faults[kind] = [fault]
    server.retry_after = "0"
    folder = hub.download("me/out", hub.MODEL_FILES, cache_dir=str(tmp_path / "cache"))
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_server_that_is_silent_is_given_up(server, run, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    server.faults["create"] = ["stall"] * 100
    with pytest.raises(HubError, match="cannot be reached"):
        hub.publish(run)
    assert server.counts["create"] == hub.ATTEMPTS


@pytest.mark.parametrize("kind", ["create", "preupload"])
def test_nobody_waits_for_as_long_as_a_server_likes(server, run, kind):
    server.faults[kind] = [429]
    server.retry_after = "3600"
    with pytest.raises(HubError, match="asks to wait 3600 s"):
        hub.publish(run)
    assert server.counts[kind] == 1


def test_what_a_server_asks_to_wait_is_waited(server, run, monkeypatch):
    waits = []
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    server.faults["create"] = [429]
    server.retry_after = "7"
    hub.publish(run)
    assert waits == [7]


# --- before the work ------------------------------------------------------------------------------


def test_who_is_logged_in_is_told_before_the_work(server, run):
    assert hub.check(run) == "me"
    assert hub.upload_forecast(run) == "will be uploaded as out, private; logged in as me"
    assert not server.repositories  # asking makes nothing


def test_nothing_is_asked_where_nothing_is_uploaded(server, tmp_path):
    assert hub.check(Run(tmp_path, "run_distillation", {}, {})) is None
    assert not server.counts


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("other/x", "me may not upload to other: --hub_model_id must begin with me/ or my-org/"),
        ("me/a b", "a b"),
        ("me/open", "me/open is public: name another repository, or say --hub_public"),
    ],
)
def test_a_repository_that_cannot_take_it_is_refused_before_the_work(
    server, tmp_path, name, problem
):
    hub.publish(finished(tmp_path / "open", push_to_hub=True, hub_public=True))
    flags = {"hub_model_id": name, "push_to_hub": True}
    run = Run(tmp_path, "run_distillation", flags, {})
    with pytest.raises(HubError, match=problem) as told:
        hub.check(run)
    assert hub.upload_forecast(run).endswith(f"NOT POSSIBLE NOW: {told.value}")


def test_a_token_that_is_not_accepted_is_told_before_the_work(server, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(HubError, match=r"does not accept the token \(401\)") as told:
        hub.check(run)
    assert "hf_of_somebody_else" not in str(told.value)
    assert server.counts["whoami"] == 1
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="nobody is logged in to the Hub"):
        hub.check(run)


def test_a_hub_that_is_down_is_told_before_the_work(server, run, monkeypatch):
    server.faults["whoami"] = [503] * 100
    with pytest.raises(HubError, match="the Hub answers 503"):
        hub.check(run)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        hub.check(run)


@pytest.mark.parametrize(
    ("stage", "flags", "target"),
    [
        ("run_distillation", {}, None),
        ("run_distillation", {"hub_model_id": "me/x"}, "me/x"),
        ("run_distillation", {"hub_model_id": "me/x", "push_to_hub": True}, "me/x"),
        ("run_distillation", {"push_to_hub": True}, "me/out"),
        ("run_data_filtering", {"hub_model_id": "me/x"}, "me/x"),
        ("run_data_filtering", {}, None),
        ("run_short_form_eval", {}, None),
    ],
)
def test_what_is_uploaded_is_what_was_said(server, tmp_path, stage, flags, target):
    run = finished(tmp_path / "out", {"a.json": b"{}"}, stage, **flags)
    plan = hub.upload_plan(run)
    hub.publish(run)
    if target is None:
        assert plan.startswith("nothing is uploaded")
        assert not server.counts
    else:
        assert plan.startswith(f"will be uploaded as {target.removeprefix('me/')}, private") or (
            plan.startswith(f"will be uploaded as {target}, private")
        )
        kind = "models" if stage == "run_distillation" else "datasets"
        assert list(server.repositories) == [(kind, target)]


@pytest.mark.parametrize("stage", ["run_pseudo_labelling", "run_distillation"])
def test_what_is_named_is_uploaded_and_that_is_said(tmp_path, stage):
    run = Run(tmp_path, stage, {"hub_model_id": "me/x"}, {})
    assert hub.upload_plan(run) == (
        "will be uploaded as me/x, private, because --hub_model_id names a repository for it"
    )
