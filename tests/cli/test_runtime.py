import json
import logging
import os
import random
import signal
import subprocess
import sys
from dataclasses import fields, make_dataclass, replace

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_lines import SCRIPTS, groups_of
from launching import environment

from distillery.cli import runtime
from distillery.cli.arguments import ModelArguments, RunArguments
from distillery.cli.flags import flag
from distillery.cli.runtime import hold_folder, make_accelerator, open_run, stage_run
from distillery.storage.files import temporary_path
from distillery.storage.outputs import JOURNALS
from distillery.storage.ownership import LOCK
from distillery.storage.provenance import versions
from distillery.storage.stops import stop_request
from distillery.training.seeding import seed_everything
from distillery.whisper.compute import resolved_dtype

RESUMABLE = [
    "auto_batch_size",
    "cache_dir",
    "compile",  # equal but for rounding
    "dataloader_num_workers",
    "dataset_cache_dir",
    "ddp_timeout",
    "dry_run",
    "gradient_accumulation_steps",  # of a batch's parts, only the product counts
    "hub_model_id",
    "hub_private_repo",
    "hub_public",
    "license",
    "logging_steps",
    "max_bad_fraction",
    "num_shards",
    "output_dir",
    "output_formats",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",
    "preprocessing_num_workers",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",  # where a run begins: it is not read again
    "retry_quarantined",
    "save_dir",
    "save_steps",
    "save_total_limit",
    "shard_index",
    "verify",
    "wandb_project",
]
ARGUMENTS = {"seed": 1, "language": "ja", "output_dir": "x", "save_steps": 5, "joined": None}


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def start(accelerator, tmp_path, monkeypatch):
    """Return a function that opens a run in one folder; the Hub takes everything."""
    monkeypatch.setattr("distillery.cli.hub.check", lambda run: None)

    def start(overwrite=False, stage="stage", inputs=None, owned=("*.parquet", "work"), **changed):
        flags = {**ARGUMENTS, **changed}
        group = make_dataclass(
            "Flags",
            [(name, object, flag(None, "?", resumable=name in RESUMABLE)) for name in flags],
        )
        inputs = {"corpus train": "sum"} if inputs is None else inputs
        run = stage_run(stage, [group(**flags)], tmp_path / "out", inputs, owned=owned)
        return open_run(accelerator, run, overwrite)

    return start


def leave(run, name, content="old"):
    """Write a file as a stage does."""
    with run.outputs.replacing(run.folder / name) as temporary:
        temporary.write_text(content)


def record_of(run):
    return json.loads(run.record_path.read_text(encoding="utf-8"))


# --- seeds ---------------------------------------------------------------------------------------


def drawn():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_seeds_give_the_same_numbers():
    seed_everything(1, 2, 3)
    first = drawn()
    second = drawn()
    seed_everything(1, 2, 3)
    assert drawn() == first
    assert drawn() == second != first


def test_every_part_of_a_seed_counts():
    found = set()
    for parts in [(1,), (2,), (1, 1), (1, 2), (1, 2, 3), (2, 1), (1, 2, 4)]:
        seed_everything(*parts)
        found.update(drawn())
    assert len(found) == 21


# --- runs ----------------------------------------------------------------------------------------


def test_a_new_run_leaves_its_record(start):
    run = start()
    assert not run.is_complete
    record = record_of(run)
    assert record["status"] == "started"
    assert record["stage"] == "stage"
    assert record["arguments"] == ARGUMENTS
    assert record["inputs"] == {"corpus train": "sum"}
    assert record["versions"] == versions()


def test_the_same_run_goes_on_and_when_complete_has_nothing_to_do(start):
    start()
    run = start()
    assert not run.is_complete
    run.finish(rows=3)
    assert start().is_complete
    record = record_of(run)
    assert (record["status"], record["rows"]) == ("complete", 3)
    assert record["seconds"] >= 0


def test_a_start_that_failed_before_any_work_does_not_hold_the_folder(start):
    start(language="jp")
    run = start()
    assert record_of(run)["arguments"] == ARGUMENTS
    assert run.resume_status() == "nothing is there of an earlier run"
    leave(run, "work/shard")
    with pytest.raises(ValueError, match="another configuration"):
        start(language="jp")
    with pytest.raises(ValueError, match="another configuration"):
        replace(run, inputs={"corpus train": "another sum"}).resume_status()


def test_changed_flags_are_all_named(start):
    leave(start(), "work/shard")
    with pytest.raises(ValueError) as error:
        start(language="ko", seed=2, added=True)
    assert str(error.value).splitlines()[1:] == [
        "  --added: None then, True now",
        "  --language: 'ja' then, 'ko' now",
        "  --seed: 1 then, 2 now",
        "name another folder, or start over with --overwrite_output_dir",
    ]


def test_changed_input_is_named(start):
    start().finish()
    with pytest.raises(ValueError, match="corpus train: its content has changed"):
        start(inputs={"corpus train": "another sum"})


def test_another_stages_folder_is_refused(start):
    start(stage="run_distillation")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds a run of run_distillation"):
            start(overwrite)


def test_overwriting_does_not_delete_another_stages_files(start, tmp_path):
    start(stage="run_pseudo_labelling").finish()
    (tmp_path / "out" / "labels.parquet").write_text("hours of work")
    with pytest.raises(ValueError):
        start(overwrite=True)
    assert (tmp_path / "out" / "labels.parquet").exists()


@pytest.mark.parametrize("name", RESUMABLE)
def test_flags_that_do_not_change_the_result_may_change(start, name):
    start(**{name: "before"})
    start(**{name: "after"})


def test_a_flag_is_resumable_in_every_stage_or_in_none():
    kinds = {}
    for script in SCRIPTS:
        for group in groups_of(script):
            for each in fields(group):
                kinds.setdefault(each.name, set()).add(each.metadata.get("resumable", False))
    assert not [name for name, found in kinds.items() if len(found) > 1]
    assert sorted(name for name, found in kinds.items() if True in found) == RESUMABLE


def test_overwriting_deletes_what_the_stage_wrote_and_nothing_else(start, tmp_path, caplog):
    folder = tmp_path / "out"
    run = start()
    leave(run, "a.parquet")
    leave(run, "work/shard")
    run.finish()
    (folder / "notes.txt").write_text("mine")
    (folder / "mine").mkdir()
    (folder / "mine" / "b.parquet").write_text("mine")
    run = start(overwrite=True, language="ko")
    assert not run.is_complete
    assert record_of(run)["arguments"]["language"] == "ko"
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    names.remove(LOCK)  # the run is there still
    names = [name for name in names if not name.startswith(JOURNALS)]
    assert names == ["config.yaml", "mine/b.parquet", "notes.txt", "run.json"]
    assert "left alone: mine/b.parquet, notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", "OLD"), ("a.parquet", "mine"), ("config.yaml", "mine"), ("work/mine", "mine")],
)
def test_what_the_user_changed_or_put_in_the_way_is_not_overwritten(start, tmp_path, name, content):
    run = start()
    leave(run, "a.parquet")
    leave(run, "b.parquet")
    leave(run, "work/shard")
    run.finish()
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(ValueError, match=f"--overwrite_output_dir: .* holds {name}: not, or no"):
        start(overwrite=True, language="ko")
    assert (tmp_path / "out" / name).read_text() == content
    assert (tmp_path / "out" / "b.parquet").exists()  # all or nothing


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_of_an_older_version_is_not_touched(start, tmp_path, overwrite):
    run = start()
    leave(run, "a.parquet")
    run.finish()
    record = record_of(run)
    del record["files"]
    run.record_path.write_text(json.dumps(record))
    if not overwrite:
        assert start().is_complete
        run.record_path.write_text(json.dumps({**record, "status": "started"}))
    with pytest.raises(ValueError, match=r"older version, whose record does not list its files"):
        start(overwrite=overwrite)
    assert (tmp_path / "out" / "a.parquet").exists()


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "verify", "fault"),
    [
        (lambda path: path.write_text("ol"), False, "it has 2 bytes; 3 were written"),
        (lambda path: path.unlink(), False, "it is missing"),
        (lambda path: path.write_text("0ld"), True, "its content is not what was written"),
    ],
)
def test_a_damaged_file_is_named_and_is_all_that_is_left_to_make(
    start, caplog, damage, verify, fault
):
    run = start()
    for name in ("a.parquet", "b.parquet"):
        leave(run, name)
    run.finish(ledger={"in": 1})
    damage(run.folder / "a.parquet")
    asked = replace(run, arguments={**run.arguments, "verify": verify}, may_change={"verify"})
    assert (
        asked.resume_status()
        == f"complete but for damage, which would be made again: a.parquet ({fault})"
    )
    run = start(verify=verify)
    assert not run.is_complete
    assert f"a.parquet is damaged: {fault}; it is made again" in caplog.text
    assert not (run.folder / "a.parquet").exists()
    assert (run.folder / "b.parquet").exists()
    leave(run, "a.parquet")
    run.finish()
    assert start(verify=True).is_complete


def test_a_flipped_byte_is_found_only_with_verify(start):
    run = start()
    leave(run, "a.parquet")
    run.finish()
    (run.folder / "a.parquet").write_text("0ld")
    assert start().is_complete
    assert not start(verify=True).is_complete


def test_a_killed_run_makes_damaged_files_again_and_does_not_miss_others(start, caplog):
    run = start()
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        leave(run, name)
    (run.folder / "a.parquet").write_text("ol")
    (run.folder / "b.parquet").unlink()
    run = start()
    assert "a.parquet is damaged" in caplog.text and "b.parquet" not in caplog.text
    assert [name for name in run.outputs.to_dict() if name != "config.yaml"] == ["c.parquet"]


def test_damaged_input_is_refused_by_name(start, tmp_path, accelerator):
    made = start(stage="labelling")
    leave(made, "a.parquet")
    leave(made, "README.md")
    made.finish()

    def read(overwrite=False, **flags):
        run = stage_run("filtering", [], tmp_path / "next", {}, owned=())
        run = replace(run, reads=[str(made.folder), "org/name"], arguments=flags)
        return open_run(accelerator, run, overwrite)

    (made.folder / "README.md").write_text("my own words")
    (made.folder / "a.parquet").write_text("0ld")
    assert read() is not None
    with pytest.raises(ValueError, match=r"a.parquet is damaged: its content .* labelling.py"):
        read(verify=True)
    (made.folder / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"a.parquet is damaged: it is missing; .* labelling.py"):
        read()
    earlier = stage_run("filtering", [], tmp_path / "next", {}, owned=())
    leave(earlier, "precious.parquet")
    with pytest.raises(ValueError, match=r"a.parquet is damaged"):
        read(overwrite=True)
    assert (tmp_path / "next" / "precious.parquet").exists()
    record = record_of(made)
    del record["files"]  # as an older version wrote it
    made.record_path.write_text(json.dumps(record))
    assert read() is not None


# --- what is not ours ----------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["mine.parquet", "config.yaml", "work/notes"])
def test_a_folder_with_files_under_our_names_and_no_run_is_refused(
    start, tmp_path, overwrite, name
):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name}, which this stage would"):
        start(overwrite)
    assert path.read_text() == "mine"
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("name", ["linked.parquet", "work"])
def test_overwriting_deletes_nothing_through_a_link(start, tmp_path, name):
    start().finish()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    (tmp_path / "out" / name).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"holds {name}: .*symbolic link"):
        start(overwrite=True, language="ko")
    assert (elsewhere / "precious").exists()
    assert (tmp_path / "out" / "config.yaml").exists()  # all or nothing


def test_a_kill_while_overwriting_does_not_lose_the_record(start, tmp_path, monkeypatch):
    run = start()
    leave(run, "a.parquet")
    run.finish()

    def killed(path, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            start(overwrite=True, language="ko")
    with pytest.raises(ValueError, match="--language"):
        start(language="ko")


# --- stopping ------------------------------------------------------------------------------------


def test_sigterm_becomes_a_request():
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as request:
        assert not request.is_set
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.is_set
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_itself_again_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_request():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


# --- what surrounds a run ------------------------------------------------------------------------


def test_the_accelerator_is_seeded_and_has_no_tracker(tmp_path):
    made = make_accelerator(RunArguments(seed=7), str(tmp_path), "float32")
    first = drawn()
    seed_everything(7)
    assert drawn() == first
    assert made.log_with == []
    assert made.device.type in ("cpu", "cuda")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "launched", "made", "warns"),
    [
        ("auto", "no", "no", False),
        ("auto", "bf16", "bf16", False),
        ("bfloat16", "no", "bf16", False),
        ("bfloat16", "bf16", "bf16", False),
        ("float32", "bf16", "no", True),
    ],
)
def test_what_the_launch_computes_in_is_not_overridden_silently(
    tmp_path, monkeypatch, capfd, dtype, launched, made, warns
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    AcceleratorState._reset_state()  # it takes one precision in a process
    precision = make_accelerator(RunArguments(), str(tmp_path), dtype).mixed_precision
    AcceleratorState._reset_state()
    assert precision == made
    told = "--dtype float32 wins over accelerate's --mixed_precision bf16"
    assert (told in capfd.readouterr().err) is warns


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_computes_in_bfloat16_where_it_has_it(monkeypatch, has_bfloat16, dtype):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert resolved_dtype("auto") == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert resolved_dtype("auto") == dtype
    assert resolved_dtype("float16") == "float16"


def test_a_run_keeps_the_dtype_that_it_really_computes_in(tmp_path, monkeypatch):
    groups = (ModelArguments("model"), RunArguments())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert stage_run("run_it", groups, tmp_path, {}).arguments["dtype"] == "bfloat16"


def test_the_main_process_speaks_and_the_others_do_not(capfd):
    runtime.set_up_logging(speaks=False)
    logging.getLogger("distillery.x").info("quiet")
    logging.getLogger("distillery.x").error("emergency")
    runtime.set_up_logging()
    logging.getLogger("distillery.x").info("spoken")
    err = capfd.readouterr().err
    assert "quiet" not in err
    assert "emergency" in err
    assert "INFO distillery.x: spoken" in err


def test_a_scripts_lines_carry_its_name(capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/here/run_distillation.py"])
    runtime.set_up_logging()
    logging.getLogger("__main__").info("spoken")
    assert "INFO run_distillation: spoken" in capfd.readouterr().err


THREADS = """
from distillery.cli import runtime
from distillery.cli.arguments import ModelArguments, RunArguments
import torch
runtime.num_cores_each = lambda: 3
runtime.make_accelerator(RunArguments(), "x", "float32")
print(torch.get_num_threads())
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="threads are left alone with a GPU")
@pytest.mark.parametrize(
    ("launcher", "chosen", "threads"),
    [
        (["accelerate.commands.launch"], {}, 3),
        (["accelerate.commands.launch"], {"OMP_NUM_THREADS": "1"}, 1),
        (["accelerate.commands.launch", "--num_cpu_threads_per_process", "1"], {}, 1),
    ],
)
def test_threads_that_only_the_launcher_chose_are_chosen_again(tmp_path, launcher, chosen, threads):
    (tmp_path / "stage.py").write_text(THREADS)
    base = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, "-m", *launcher, str(tmp_path / "stage.py")]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**base, **chosen}, cwd=tmp_path
    )
    assert done.stdout.split() == [str(threads)]


def test_cores_are_shared_by_the_local_processes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert runtime.num_cores_each() == 8
    for num_processes, cores in ((3, 2), (8, 1), (9, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
        assert runtime.num_cores_each() == cores


def test_importing_a_module_changes_nothing_around_it():
    program = (
        "import logging, os, signal\n"
        "before = dict(os.environ), signal.getsignal(signal.SIGTERM)\n"
        "import distillery.training, distillery.evaluation\n"
        "assert signal.getsignal(signal.SIGTERM) is before[1]\n"
        "changed = {name for name, _ in os.environ.items() ^ before[0].items()}\n"
        "assert not [n for n in changed if not n.startswith(('KMP', 'TORCH'))], changed\n"
        "assert not [h for h in logging.getLogger().handlers]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tiny.REPOSITORY)


def test_what_killed_writers_left_goes_when_the_folder_is_taken(tmp_path):
    leftover = temporary_path(tmp_path / "predictions" / "a.csv")
    leftover.parent.mkdir()
    leftover.write_text("half of it")
    (tmp_path / ".mine.tmp").write_text("of the user's")
    run = stage_run("run_short_form_eval", (), tmp_path, {})
    hold_folder(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, ".mine.tmp", "predictions"]
    assert not list(leftover.parent.iterdir())
