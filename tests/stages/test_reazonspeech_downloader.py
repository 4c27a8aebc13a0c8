"""The downloader and the data loader as users start them, against a server that fails."""

import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_lines import groups_of
from filelock import FileLock
from loopback import HTML, FaultServer, clip_name, corpus, flac, tar
from stage_runs import run as run_stage
from stage_runs import split_rows, talkative_model_folder
from tiny import REPOSITORY, load_script

from distillery.cli.arguments import DataArguments
from distillery.cli.flags import parse
from distillery.cli.train_data_arguments import TrainDataArguments
from distillery.ingest.downloads import CHUNK, Download, ask_sizes
from distillery.ingest.sources import load
from distillery.storage.ownership import LOCK

downloader = load_script("reazonspeech_manual_downloader.py")
SCRIPT = REPOSITORY / "reazonspeech_manual_downloader.py"
FILES, TEXTS = corpus("small", num_archives=3, num_clips=4)
TAR = "/data/001.tar"


@pytest.fixture
def server():
    with FaultServer(FILES) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "small_0_3"


@pytest.fixture
def run(server, folder):
    def run(*flags):
        always = ["-t", "small", "-s", "0", "-e", "3", "--timeout", "1"]
        places = ["--output_dir", str(folder), "--base_url", server.url]
        return downloader.main(*parse(downloader.GROUPS, [*always, *places, *flags]))

    return run


def contents(folder):
    """Return what is published, under the server's paths."""
    found = {f"/data/{path.name[6:]}": path.read_bytes() for path in folder.glob("*.tar")}
    return found | {f"/tsv/{path.name[6:]}": path.read_bytes() for path in folder.glob("*.tsv")}


def test_a_download_is_whole_accounted_for_and_not_repeated(run, server, folder, caplog):
    caplog.set_level(logging.INFO)
    server.faults = {TAR: [503, "short"], "/data/002.tar": ["reset"], "/tsv/small.tsv": [500]}
    assert run() == 0
    assert contents(folder) == FILES
    assert "texts: 12 in = 12 out + 0 dropped + 0 quarantined; clips: 12 in = 12 out" in caplog.text
    assert json.loads((folder / "small.ledger.json").read_text())["clips"]["out"] == 12
    sums = subprocess.run(
        ["sha256sum", "--check", *(path.name for path in folder.glob("*.sha256"))],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sums.stdout.count(": OK") == 4
    assert server.counts() == {"/data/000.tar": 1, TAR: 3, "/data/002.tar": 2, "/tsv/small.tsv": 2}
    server.requests.clear()
    assert run() == 0
    assert run("--health_check", "--deep") == 0
    assert server.requests == []


def test_a_dry_run_asks_for_sizes_alone_and_writes_nothing(run, server, folder, capsys):
    total = sum(map(len, FILES.values()))
    assert run("--dry_run") == 0
    told = capsys.readouterr().out
    assert "files   4 to fetch, 0 are there\n" in told
    assert f"bytes   {total / 1e9:.3f} GB to come\n" in told
    assert f"free for {folder}" in told
    assert (server.requests, sorted(server.heads)) == ([], sorted(FILES))
    assert not folder.exists()


def test_a_dry_run_counts_what_is_there(run, server, folder, capsys):
    assert run() == 0
    (folder / "small.002.tar.sha256").unlink()
    part = folder / "small.001.tar"
    part.with_name("small.001.tar.part").write_bytes(part.read_bytes()[:3000])
    state = {"url": server.url + TAR, "size": len(FILES[TAR]), "validator": '"x"'}
    (folder / "small.001.tar.part.json").write_text(json.dumps(state))
    part.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run("--dry_run") == 0
    assert "files   1 to fetch, 3 are there, 1 of them unchecked\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    sizes, _ = ask_sizes(
        [Download((server.url + TAR,), part, downloader.reazonspeech.check_archive)]
    )
    assert sizes == {part: len(FILES[TAR]) - 3000}


def test_a_dry_run_asks_the_next_mirror_and_names_what_nobody_has(run, server, caplog, capsys):
    del server.files[TAR]
    with FaultServer(FILES) as mirror:
        assert run("--dry_run", "--base_url", mirror.url) == 0
        assert mirror.heads == [TAR]
        capsys.readouterr()
        del mirror.files[TAR]
        assert run("--dry_run", "--base_url", mirror.url) == 1
    assert "GB to come, and 1 files whose size is not known" in capsys.readouterr().out
    assert "not to be had: small.001.tar: http://" in caplog.text
    assert "HTTP 404" in caplog.text
    assert server.requests == []


def test_a_download_leaves_its_configuration(run, server, folder):
    assert run() == 0
    (arguments,) = parse(downloader.GROUPS, [str(folder / "config.yaml")])
    assert arguments.base_url == [server.url]
    assert (arguments.indices, arguments.folder) == (range(3), folder)
    server.requests.clear()
    assert downloader.main(arguments) == 0
    assert server.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        HTML,
        FILES[TAR][: len(FILES[TAR]) // 2],
        FILES[TAR].rstrip(b"\0").ljust(5120, b"\0")[: FILES[TAR].index(b"./001/0010000000002")],
    ],
    ids=["404", "html", "half", "cut between members"],
)
def test_what_cannot_be_had_is_named_and_fetched_by_the_next_run(
    run, server, folder, caplog, wrong
):
    server.files[TAR] = wrong
    if wrong is None:
        del server.files[TAR]
    assert run() == 1
    assert "not downloaded: small.001.tar" in caplog.text
    assert "1 of 4 files are missing" in caplog.text
    assert server.counts()[TAR] == 1
    assert contents(folder) == {path: FILES[path] for path in FILES if path != TAR}
    assert (folder / "small.001.tar.damaged").exists() == (wrong is not None)
    server.files[TAR] = FILES[TAR]
    assert run() == 0
    assert contents(folder) == FILES


def test_a_page_in_place_of_the_transcripts_is_refused(run, server, folder):
    server.faults["/tsv/small.tsv"] = ["html"]
    assert run() == 1
    assert not (folder / "small.small.tsv").exists()
    assert run() == 0


def test_health_check_finds_damage_and_removes_nothing(run, folder, caplog):
    assert run() == 0
    archive, texts = folder / "small.002.tar", folder / "small.small.tsv"
    flipped = bytearray(archive.read_bytes())
    flipped[-1] ^= 1  # in the padding, where only the sum tells
    archive.write_bytes(flipped)
    texts.write_bytes(texts.read_bytes()[:-1])
    (folder / "small.000.tar").unlink()
    assert run("--health_check") == 1
    assert "damaged: small.002.tar, now small.002.tar.damaged: it differs" in caplog.text
    assert "damaged: small.small.tsv" in caplog.text
    assert "missing: small.000.tar" in caplog.text
    assert (folder / "small.002.tar.damaged").read_bytes() == flipped
    assert contents(folder) == {TAR: FILES[TAR]}
    assert run() == 0
    assert contents(folder) == FILES


def test_deep_health_check_decodes_what_no_sum_vouches_for(run, server, folder, caplog):
    clip = flac(5)  # the second of the second archive
    broken = FILES[TAR].replace(clip, clip[: len(clip) // 2] + b"#" + clip[len(clip) // 2 + 1 :])
    server.files[TAR] = broken
    assert run() == 0
    assert run("--health_check") == 0
    assert run("--health_check", "--deep") == 1
    assert f"1 clips do not decode, such as {clip_name(1, 1)}" in caplog.text
    server.files[TAR] = FILES[TAR]
    assert run() == 0
    assert run("--health_check", "--deep") == 0
    assert contents(folder) == FILES


def test_files_of_the_seeds_downloader_are_taken_over(run, server, folder):
    folder.mkdir()
    (folder / "small.001.tar").write_bytes(FILES[TAR])
    (folder / "small.002.tar").write_bytes(FILES["/data/002.tar"][:3000])
    assert run() == 0
    assert contents(folder) == FILES
    assert server.counts() == {"/data/000.tar": 1, "/data/002.tar": 1, "/tsv/small.tsv": 1}


def test_the_next_mirror_has_what_the_first_lacks(run, server, folder):
    lacking = {path: FILES[path] for path in FILES if path != TAR}
    with FaultServer(FILES) as mirror:
        server.files = lacking
        assert run("--base_url", mirror.url + "/") == 0
        assert mirror.counts() == {TAR: 1}
    assert contents(folder) == FILES


def test_two_downloads_into_one_folder_do_not_mix(run, server, folder, caplog):
    folder.mkdir()
    with FileLock(folder / LOCK):
        assert run() == 1
    assert f"--output_dir {folder} is in use by another process" in caplog.text
    assert server.requests == []


def test_unpaired_clips_and_texts_are_reported(run, server, folder, caplog):
    lines = FILES["/tsv/small.tsv"].splitlines(keepends=True)
    server.files["/tsv/small.tsv"] = b"".join(lines[1:]) + b"002/gone.flac\tx\n"
    caplog.set_level(logging.INFO)
    assert run() == 0
    assert "texts: 12 in = 11 out + 0 dropped + 1 quarantined (without audio: 1 [" in caplog.text
    assert "clips: 12 in = 11 out + 0 dropped + 1 quarantined (without text: 1 [" in caplog.text
    server.files["/tsv/small.tsv"] = b"zzz/a.flac\tx\n"
    (folder / "small.small.tsv").unlink()
    assert run() == 1
    assert "no clip has a text" in caplog.text


def test_all_wrong_flags_are_told_together(capsys):
    flags = "-t huge -p 0 --start 3 --deep --timeout soon --max_attempts 0 --base_url ftp://x --up"
    flags += " --base_url https://me:secret@x"
    with pytest.raises(SystemExit) as exit_info:
        parse(downloader.GROUPS, flags.split())
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    for part in (
        "unknown flag --up",
        "--target must be one of tiny, small, medium, large, all; got 'huge'",
        "--pool must be >= 1, got 0",
        "--start_que and --end_que go together",
        "--deep needs --health_check",
        "--timeout: invalid float value: 'soon'",
        "--max_attempts must be >= 1, got 0",
        "--base_url must begin with https:// or http://, got 'ftp://x'",
        "--base_url must not hold a password",
    ):
        assert part in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("flags", "folder", "indices"),
    [
        ("", "tiny", range(1)),
        ("--target all --pool 100 -s 0 -e 50", "all_0_50", range(50)),
        ("-t all --start 4050 --end 4095", "all_4050_4095", range(4050, 4095)),
        ("-t all", "all", range(4095)),
        ("-t large", "large", range(579)),
        ("-t medium", "medium", range(116)),
        ("-t small", "small", range(12)),
    ],
)
def test_the_seeds_commands_mean_what_they_did(flags, folder, indices):
    (arguments,) = parse(downloader.GROUPS, flags.split())
    assert arguments.folder == Path.home() / ".cache" / "reazon_manual_download" / folder
    assert arguments.indices == indices


def test_a_variable_names_the_folder_of_all_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("REAZONSPEECH_HOME", str(tmp_path))
    (arguments,) = parse(downloader.GROUPS, ["-t", "all", "-s", "0", "-e", "50"])
    assert arguments.folder == tmp_path / "all_0_50"


def test_the_held_out_archive_is_out_of_reach(capsys):
    with pytest.raises(SystemExit):
        parse(downloader.GROUPS, ["-t", "all", "-s", "4000", "-e", "4096"])
    assert "--end_que must be at most 4095" in capsys.readouterr().err


LARGE, _ = corpus("small", num_archives=3, num_clips=12, num_samples=48_000)


def start(server, folder, *flags, preexec=None):
    command = [sys.executable, str(SCRIPT), "-t", "small", "-s", "0", "-e", "3", "-p", "2"]
    command += ["--output_dir", str(folder), "--base_url", server.url, *flags]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=preexec,
    )


def wait_for_requests(server, number, process):
    while len(server.requests) < number and process.poll() is None:
        time.sleep(0.005)


def parts_of(folder):
    """Return what is under way, under the server's paths."""
    return {
        f"/data/{path.name[6:-5]}": path.read_bytes()
        for path in folder.glob("*.tar.part")
        if path.with_name(path.name + ".json").exists()
    }


def test_twenty_kills_at_random_lose_at_most_a_chunk_each(folder):
    chooser = random.Random(3)
    files = dict(FILES)
    for index in range(8):
        clips = {clip_name(index, number): chooser.randbytes(1 << 20) for number in range(5)}
        files[f"/data/{index:03x}.tar"] = tar(clips)
    with FaultServer(files) as server:
        server.delay_s = 0.004  # so that the kills together take about as long as the download
        parts = {}
        for _ in range(20):
            num_requests = len(server.requests)
            process = start(server, folder, "-e", "8")
            wait_for_requests(server, num_requests + 2, process)
            time.sleep(chooser.uniform(0, 0.5))
            process.kill()
            process.communicate()
            asked = dict(server.requests[num_requests:])
            for path in asked.keys() & parts.keys():  # every byte on the disk was built upon
                assert asked[path] == (f"bytes={len(parts[path])}-" if parts[path] else None)
            assert contents(folder).items() <= files.items()
            parts = parts_of(folder)
            assert all(files[path].startswith(part) for path, part in parts.items())
        server.delay_s = 0
        process = start(server, folder, "-e", "8")
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert contents(folder) == files
    assert not list(folder.glob("*.part*"))
    num_twice = server.sent.total() - sum(map(len, files.values()))
    assert num_twice <= 20 * 2 * (CHUNK + (1 << 18))  # the rest was on its way through the sockets


def test_the_second_of_two_processes_keeps_out(folder):
    with FaultServer(LARGE) as server:
        server.delay_s = 0.02
        first = start(server, folder)
        wait_for_requests(server, 2, first)
        second = start(server, folder)
        output, _ = second.communicate()
        assert first.poll() is None
        assert second.returncode == 1
        assert f"is in use by process {first.pid} on" in output
        server.delay_s = 0
        output, _ = first.communicate()
    assert first.returncode == 0, output
    assert server.counts() == dict.fromkeys(LARGE, 1)
    assert contents(folder) == LARGE
    assert not (folder / LOCK).exists()


def test_a_disk_that_takes_no_more_ends_it_and_the_next_run_goes_on(folder):
    size = 300_000

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    with FaultServer(LARGE) as server:
        process = start(server, folder, "-p", "1", preexec=limit_files)
        output, _ = process.communicate()
        assert process.returncode == 1
        assert "File too large" in output
        assert server.counts() == {"/tsv/small.tsv": 1, "/data/000.tar": 1}
        assert parts_of(folder) == {"/data/000.tar": LARGE["/data/000.tar"][:size]}
        process = start(server, folder)
        output, _ = process.communicate()
        assert ("/data/000.tar", f"bytes={size}-") in server.requests
    assert process.returncode == 0, output
    assert contents(folder) == LARGE


def test_sigterm_stops_at_once_and_the_same_command_goes_on(folder):
    with FaultServer(LARGE) as server:
        server.faults["/data/000.tar"] = ["stall"]
        server.delay_s = 0.005
        process = start(server, folder)
        wait_for_requests(server, 3, process)
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "the same command goes on from here" in output
        server.delay_s = 0
        process = start(server, folder)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert contents(folder) == LARGE


@pytest.fixture
def downloaded(tmp_path):
    """Lay a corpus out as the downloader does, with one clip and one line that match nothing."""
    folder = tmp_path / ".cache" / "reazon_manual_download" / "small_0_3"
    folder.mkdir(parents=True)
    for index in range(3):
        (folder / f"small.{index:03x}.tar").write_bytes(FILES[f"/data/{index:03x}.tar"])
    lines = FILES["/tsv/small.tsv"].splitlines(keepends=True)
    (folder / "small.small.tsv").write_bytes(b"".join(lines[1:]) + b"00f/x.flac\tother\nbroken\n")
    return folder


@pytest.fixture
def loader(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    script = load_script("reazonspeech_manual_dataloader.py")

    def make(name="small", **options):
        return script.ReazonSpeech(config_name=name, cache_dir=str(tmp_path / "cache"), **options)

    return make


EXPECTED = [
    {
        "name": clip_name(index, number),
        "audio": {"bytes": flac(4 * index + number), "path": clip_name(index, number)},
        "transcription": TEXTS[clip_name(index, number)],
    }
    for index in range(3)
    for number in range(4)
][1:]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_download_loads_in_order(loader, downloaded, num_proc):
    builder = loader(dataset_dir_suffix="0_3")
    builder.download_and_prepare(num_proc=num_proc)
    rows = builder.as_dataset(split="train")
    assert list(rows) == EXPECTED


def test_a_download_streams_with_one_shard_per_archive(loader, downloaded, caplog):
    rows = loader(data_dir=str(downloaded)).as_streaming_dataset(split="train")
    assert rows.num_shards == 3
    assert list(rows) == EXPECTED
    assert [row["name"] for row in rows.shard(3, 1)] == [clip_name(1, i) for i in range(4)]
    assert "texts: 14 in" not in caplog.text
    assert "texts: 13 in = 11 out + 1 dropped (of other archives: 1)" in caplog.text
    assert "quarantined (1 column: 1 [small.small.tsv:13]); clips: 12 in = 11 out" in caplog.text


def test_the_cache_knows_when_archives_were_added(loader, downloaded, caplog):
    last = downloaded / "small.002.tar"
    content = last.read_bytes()
    last.unlink()
    for num_rows in (7, 11):
        builder = loader(dataset_dir_suffix="0_3")
        builder.download_and_prepare()
        assert builder.as_dataset(split="train").num_rows == num_rows
        assert ("lacks 1 archives, such as small.002.tar" in caplog.text) == (num_rows == 7)
        caplog.clear()
        last.write_bytes(content)


def test_a_damaged_or_absent_download_is_named(loader, downloaded):
    stream = loader(dataset_dir_suffix="0_3").as_streaming_dataset
    archive = downloaded / "small.001.tar"
    archive.write_bytes(archive.read_bytes()[:2048])
    with pytest.raises(Exception, match=r"small\.001\.tar: not a whole tar archive.*health_check"):
        stream(split="train")
    archive.write_bytes(tar({"other/a.flac": b"x"}))
    assert len(list(stream(split="train"))) == 7
    (downloaded / "small.small.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="holds no transcripts"):
        stream(split="train")
    with pytest.raises(FileNotFoundError, match=r"small_5_9 holds no archives .*--target small"):
        loader(dataset_dir_suffix="5_9").as_streaming_dataset(split="train")
    with pytest.raises(ValueError, match="leave out dataset_dir_suffix 0_3"):
        loader(dataset_dir_suffix="0_3", data_dir=str(downloaded))


READ_IT = [
    *("-d", str(REPOSITORY / "reazonspeech_manual_dataloader.py"), "--dataset_dir_suffix", "0_3"),
    *("--id_column_name", "name", "--text_column_name", "transcription"),
]
TRAINING = "-m m -o o --train_dataset_config_name small --max_steps 1"
STAGES = {
    "run_pseudo_labelling.py": "-m m -o o --dataset_config_name small",
    "run_data_filtering.py": "-o o --dataset_config_name small",
    "run_distillation.py": f"{TRAINING} --teacher_model_name_or_path t",
    "run_finetuning.py": TRAINING,
    "run_short_form_eval.py": "-m m -o o --dataset_config_name small",
    "run_long_form_eval.py": "-m m -o o --dataset_config_name small",
}


def in_our_names(rows):
    return [{"id": r["name"], "audio": r["audio"], "text": r["transcription"]} for r in rows]


@pytest.mark.parametrize("streaming", ["False", "True"])
@pytest.mark.parametrize("script", STAGES)
def test_the_flags_of_every_stage_lead_to_the_folder(loader, downloaded, script, streaming):
    words = [*READ_IT, *STAGES[script].split(), "--streaming", streaming]
    groups = parse(groups_of(script), words)
    data = next(g for g in groups if isinstance(g, (DataArguments, TrainDataArguments)))
    (spec,) = data.specs() if isinstance(data, DataArguments) else data.train_specs()
    rows = [{name: row[name] for name in ("id", "audio", "text")} for row in load(spec)]
    assert rows == in_our_names(EXPECTED)


def test_a_download_is_labelled(loader, downloaded, tmp_path):
    teacher, output = talkative_model_folder(tmp_path / "teacher"), tmp_path / "labelled"
    flags = ["--dataset_config_name", "small", "-l", "ja", "--max_label_length", "24"]
    run_stage("run_pseudo_labelling.py", "-m", teacher, "-o", output, *READ_IT, *flags)
    rows = split_rows(output, config="small")
    found = [(row["id"], row["audio"]["bytes"], row["text"]) for row in rows]
    expected = in_our_names(EXPECTED)
    assert found == [(row["id"], row["audio"]["bytes"], row["text"]) for row in expected]
    assert all(row["whisper_transcript"] for row in rows)
