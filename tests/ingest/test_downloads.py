import errno
import json
import logging
import shutil
import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from hashlib import sha256
from types import SimpleNamespace

import pytest
from loopback import SELF_SIGNED, FaultServer

from distillery.ingest import downloads, responses
from distillery.ingest.download_progress import DownloadProgress
from distillery.ingest.downloads import (
    Download,
    DownloadError,
    Policy,
    download_all,
    is_confirmed_by_source,
    set_aside,
)
from distillery.storage.files import DamagedFileError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
OTHER = bytes(reversed(CONTENT))
PATIENT = Policy(max_attempts=4, timeout_s=0.4, backoff_s=0.01)
HALF = f"bytes={len(CONTENT) // 2}-"


def accept(path):
    pass


def refuse_other(path):
    if path.read_bytes() != CONTENT:
        raise DamagedFileError("not what was expected")


def fetch(server, path, check=accept, policy=PATIENT):
    wanted = [Download((f"{server.url}/a",), path, check)]
    return download_all(wanted, policy=policy, show_progress=False)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "CHUNK", 1 << 16)
    with FaultServer({"/a": CONTENT}) as server:
        yield server


def assert_published(path, content=CONTENT):
    assert path.read_bytes() == content
    digest = sha256(content).hexdigest()
    assert path.with_name("a.bin.sha256").read_text() == f"{digest}  a.bin\n"
    assert {file.name for file in path.parent.iterdir()} == {"a.bin", "a.bin.sha256"}


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([], [None]),
        ([500, 503, 429], [None] * 4),
        ([408, "short"], [None, None, HALF]),
        (["stall"], [None, HALF]),
        (["short"], [None, HALF]),
        (["short", "no_range"], [None, HALF]),
        (["short", "other_range"], [None, HALF, None]),
        (["short", 416], [None, HALF, None]),
        (["short", 503], [None, HALF, HALF]),
    ],
)
def test_a_fault_costs_a_request_and_never_a_byte(server, tmp_path, faults, ranges):
    server.faults["/a"] = list(faults)
    assert fetch(server, tmp_path / "a.bin") == {}
    assert_published(tmp_path / "a.bin")
    assert [asked for _, asked in server.requests] == ranges


def test_a_reset_connection_is_gone_on_from(server, tmp_path):
    server.faults["/a"] = ["reset", "reset"]
    assert fetch(server, tmp_path / "a.bin") == {}
    assert_published(tmp_path / "a.bin")
    starts = [int(asked[6:-1]) for _, asked in server.requests[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= len(CONTENT) // 2
    assert starts[0] < starts[1] <= len(CONTENT) * 3 // 4


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.faults["/a"], server.changed["/a"] = ["change"], OTHER
    assert fetch(server, tmp_path / "a.bin") == {}
    assert_published(tmp_path / "a.bin", OTHER)
    assert [asked for _, asked in server.requests] == [None, HALF]


def test_attempts_are_bounded_and_the_next_run_goes_on(server, tmp_path):
    path = tmp_path / "a.bin"
    server.faults["/a"] = ["short", 503, 503, 503, 503]
    assert "gave up after 4 attempts: HTTP 503" in fetch(server, path)[path]
    assert not path.exists()
    server.faults["/a"] = []
    assert fetch(server, path) == {}
    assert_published(path)
    assert server.requests[-1] == ("/a", HALF)


@pytest.mark.parametrize("status", [404, 403, 401])
def test_a_refusal_is_asked_once(server, tmp_path, status):
    path = tmp_path / "a.bin"
    server.faults["/a"] = [status] * 9
    assert f"HTTP {status}" in fetch(server, path)[path]
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def trust(certificate, monkeypatch):
    certificate.write_text(SELF_SIGNED)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))


def test_faults_under_tls_cost_a_request_as_well(tmp_path, monkeypatch):
    trust(tmp_path / "certificate.pem", monkeypatch)
    folder = tmp_path / "downloads"
    folder.mkdir()
    with FaultServer({"/a": CONTENT}, tmp_path / "certificate.pem") as server:
        server.faults["/a"] = ["short", "reset", 503]
        assert fetch(server, folder / "a.bin") == {}
        assert len(server.requests) == 4
    assert_published(folder / "a.bin")


def test_a_connection_closed_in_the_handshake_is_a_reset(tmp_path):
    num_calls = 0
    path = tmp_path / "a.bin"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            nonlocal num_calls
            while num_calls < PATIENT.max_attempts:
                connection, _ = listener.accept()
                num_calls += 1
                connection.recv(1 << 16)
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        server = SimpleNamespace(url=f"https://127.0.0.1:{listener.getsockname()[1]}")
        assert "gave up after 4 attempts" in fetch(server, path)[path]
        thread.join(5)
    assert num_calls == 4


@pytest.mark.parametrize("last", ["http", "https"])
def test_no_redirect_leads_out_of_tls(server, tmp_path, monkeypatch, last):
    trust(tmp_path / "certificate.pem", monkeypatch)
    path = tmp_path / "a.bin"
    with FaultServer({"/a": CONTENT}, tmp_path / "certificate.pem") as secure:
        secure.redirects["/a"] = f"{server.url}/b"
        server.files["/b"] = CONTENT
        if last == "https":
            server.redirects["/b"] = f"{secure.url}/c"
            secure.files["/c"] = CONTENT
        assert f"redirects to {server.url}/b, which has no TLS" in fetch(secure, path)[path]
    assert not path.exists()


def test_a_certificate_that_nobody_vouches_for_ends_it_at_once(tmp_path):
    (tmp_path / "certificate.pem").write_text(SELF_SIGNED)
    path = tmp_path / "a.bin"
    with FaultServer({"/a": CONTENT}, tmp_path / "certificate.pem") as server:
        assert "certificate verify failed" in fetch(server, path)[path]
        assert server.requests == []
    assert not path.exists()


def test_mirrors_are_tried_in_order_and_never_mixed(server, tmp_path):
    path = tmp_path / "a.bin"
    with FaultServer({"/a": OTHER}) as mirror:
        server.faults["/a"] = ["short", 404]
        wanted = [Download((f"{server.url}/a", f"{mirror.url}/a"), path, accept)]
        assert download_all(wanted, policy=PATIENT, show_progress=False) == {}
        assert mirror.requests == [("/a", None)]
    assert_published(path, OTHER)


def test_a_batch_that_ends_asks_no_other_mirror_and_keeps_its_bytes(server, tmp_path):
    stop = threading.Event()
    path = tmp_path / "a.bin"
    with FaultServer({"/a": OTHER}) as mirror:
        server.delay_s = 0.01
        wanted = Download((f"{server.url}/a", f"{mirror.url}/a"), path, accept)
        with DownloadProgress([path], show=False) as progress:
            batch = downloads._Batch(PATIENT, progress, stop)
            threading.Timer(0.2, stop.set).start()
            assert batch.fetch(wanted) == (path, "stopped")
        assert mirror.requests == []
    part = (tmp_path / "a.bin.part").read_bytes()
    assert 0 < len(part) < len(CONTENT)
    assert CONTENT.startswith(part)
    server.delay_s = 0
    assert fetch(server, path) == {}
    assert server.requests[-1] == ("/a", f"bytes={len(part)}-")


def test_damage_is_set_aside_and_not_asked_again(server, tmp_path):
    path = tmp_path / "a.bin"
    server.files["/a"] = OTHER
    assert "not what was expected" in fetch(server, path, refuse_other)[path]
    assert len(server.requests) == 1
    assert (tmp_path / "a.bin.damaged").read_bytes() == OTHER
    assert not path.exists()
    server.files["/a"] = CONTENT
    assert fetch(server, path, refuse_other) == {}
    assert path.read_bytes() == CONTENT


def test_the_same_damage_twice_is_the_sources_own(server, tmp_path):
    path = tmp_path / "a.bin"
    for expected in (False, True):
        fetch(server, path)
        assert is_confirmed_by_source(path) is expected
        set_aside(path)
    server.files["/a"] = OTHER
    fetch(server, path)
    assert not is_confirmed_by_source(path)


def test_another_programs_file_is_adopted_or_replaced(server, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    assert fetch(server, path, refuse_other) == {}
    assert_published(path)
    assert server.requests == []
    path.with_name("a.bin.sha256").unlink()
    path.write_bytes(OTHER)
    assert fetch(server, path, refuse_other) == {}
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "a.bin.damaged").read_bytes() == OTHER


def test_a_published_file_is_not_asked_for(server, tmp_path):
    assert fetch(server, tmp_path / "a.bin") == {}
    assert fetch(server, tmp_path / "a.bin") == {}
    assert len(server.requests) == 1


def test_a_kill_before_the_renaming_costs_no_request(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    state = {"url": f"{server.url}/a", "size": len(CONTENT), "validator": '"x"'}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(state))
    assert fetch(server, tmp_path / "a.bin") == {}
    assert_published(tmp_path / "a.bin")
    assert server.requests == []


def test_a_kill_after_the_renaming_leaves_nothing(server, tmp_path):
    assert fetch(server, tmp_path / "a.bin") == {}
    (tmp_path / "a.bin.part.json").write_text("{}")
    assert fetch(server, tmp_path / "a.bin") == {}
    assert_published(tmp_path / "a.bin")
    assert len(server.requests) == 1


@pytest.mark.parametrize("state", [None, "{", '{"url": "x", "size": 9, "validator": "y"}'])
def test_bytes_of_unknown_origin_are_not_built_upon(server, tmp_path, state):
    (tmp_path / "a.bin.part").write_bytes(b"wrong")
    if state is not None:
        (tmp_path / "a.bin.part.json").write_text(state)
    assert fetch(server, tmp_path / "a.bin") == {}
    assert_published(tmp_path / "a.bin")


def test_every_url_keeps_its_own_file(tmp_path):
    contents = {f"/{i}": bytes([i]) * (1000 + i) for i in range(40)}
    with FaultServer(contents) as server:
        for i, path in enumerate(contents):
            server.faults[path] = [["short"], [503], ["reset"], []][i % 4]
        wanted = [Download((server.url + path,), tmp_path / path[1:], accept) for path in contents]
        assert download_all(wanted, 8, PATIENT, show_progress=False) == {}
        assert server.counts() == {path: 1 + (i % 4 < 3) for i, path in enumerate(contents)}
    for path, content in contents.items():
        assert (tmp_path / path[1:]).read_bytes() == content


def test_one_failure_does_not_stop_the_others(server, tmp_path, caplog):
    wanted = [Download((f"{server.url}/{name}",), tmp_path / name, accept) for name in ("b", "a")]
    with caplog.at_level(logging.WARNING):
        failures = download_all(wanted, 1, PATIENT, show_progress=False)
    assert failures == {tmp_path / "b": f"{server.url}/b: HTTP 404 Not Found"}
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert "b failed" in caplog.text


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=len(CONTENT) * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    wanted = [Download((f"{server.url}/a",), tmp_path / f"{i}", accept) for i in range(3)]
    with pytest.raises(OSError, match="still to come: free some space"):
        download_all(wanted, 1, PATIENT, show_progress=False)
    assert (tmp_path / "0.part").stat().st_size == 0
    assert len(server.requests) == 1


def test_the_forecast_goes_by_kind_counts_what_is_there_and_becomes_exact(tmp_path):
    texts, *clips = (tmp_path / name for name in ("x.tsv", "a.tar", "b.tar", "c.tar", "d.tar"))
    with DownloadProgress([texts, *clips], show=False) as progress:
        progress.begin(texts, 0, 1000)
        assert progress._bar.total == 1000
        progress.begin(clips[0], 40, 100)
        assert progress._bar.total == 1400
        progress.advance(clips[0], 60)
        progress.begin(clips[1], 0, 50)
        assert progress._bar.total == 1300
        progress.give_up(clips[3])
        assert progress._bar.total == 1225
        progress.begin(clips[2], 0, 70)
        assert progress._bar.total == 1220


def test_the_rate_counts_only_bytes_that_came_now(tmp_path):
    with DownloadProgress([tmp_path / "a", tmp_path / "b"]) as progress:
        progress.begin(tmp_path / "a", 600, 1000)
        progress.advance(tmp_path / "a", 100)
        progress.begin(tmp_path / "b", 500, 1000)
        shown = progress._bar.format_dict
        assert (shown["n"], shown["total"], shown["n"] - shown["initial"]) == (1200, 2000, 100)
        progress.begin(tmp_path / "a", 0, 1000)  # it changed, and starts over
        progress.advance(tmp_path / "a", 1000)
        progress.give_up(tmp_path / "b")
        shown = progress._bar.format_dict
        assert (shown["n"], shown["total"], shown["n"] - shown["initial"]) == (1000, 1000, 1100)


def test_a_full_disk_ends_the_batch_and_keeps_what_is_there(server, tmp_path, monkeypatch):
    def no_space(self, path, num_bytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DownloadProgress, "advance", no_space)
    with pytest.raises(OSError, match="No space left"):
        fetch(server, tmp_path / "a.bin")
    assert len(server.requests) == 1
    monkeypatch.undo()
    assert fetch(server, tmp_path / "a.bin") == {}
    assert_published(tmp_path / "a.bin")


def test_no_space_left_is_told_as_such(server, tmp_path):
    """`/dev/full` answers every write as a full disk does."""
    path = tmp_path / "a.bin"
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*from here.*a\.bin") as e:
        fetch(server, path)
    assert e.value.errno == errno.ENOSPC
    assert len(server.requests) == 1
    assert not path.exists()


def test_a_file_has_a_deadline(server, tmp_path):
    server.delay_s = 0.05
    path = tmp_path / "a.bin"
    policy = Policy(max_attempts=4, timeout_s=5, backoff_s=0.01, deadline_s=0.3)
    assert "not done after" in fetch(server, path, policy=policy)[path]
    assert 0 < (tmp_path / "a.bin.part").stat().st_size < len(CONTENT)


def test_retry_after_is_seconds_or_a_date_and_is_bounded(server, tmp_path):
    def wait_s(**headers):
        return responses.retry_after_s(headers)

    assert wait_s(**{"Retry-After": "7"}) == 7
    assert wait_s() == wait_s(**{"Retry-After": "soon"}) == 0
    date = datetime.now(timezone.utc) + timedelta(seconds=100)
    assert 98 < wait_s(**{"Retry-After": format_datetime(date, usegmt=True)}) <= 100
    server.faults["/a"], server.retry_after = [429], "0.5"  # no whole number: not understood
    assert fetch(server, tmp_path / "a.bin") == {}


def test_waits_grow_follow_retry_after_and_are_bounded():
    waits = []
    stop = SimpleNamespace(wait=waits.append, is_set=lambda: False)
    policy = Policy(backoff_s=1, max_wait_s=50, deadline_s=1000)
    batch = downloads._Batch(policy, None, stop)
    for attempt, retry_after_s in [(1, 0), (3, 0), (9, 0), (1, 30), (1, 86400)]:
        batch._wait(attempt, retry_after_s, time.monotonic() + 1000)
    assert 0.5 <= waits[0] <= 1
    assert 2 <= waits[1] <= 4
    assert waits[2:] == [50, 30, 50]
    with pytest.raises(DownloadError, match="not done after 1000 s"):
        batch._wait(1, 30, time.monotonic() + 29)


def test_after_a_fault_of_the_disk_no_further_file_is_begun(tmp_path, monkeypatch):
    def no_space(self, download):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads._Batch, "_reason_against", no_space)
    batch = downloads._Batch(PATIENT, None, threading.Event())
    with pytest.raises(OSError, match="No space left"):
        batch.fetch(Download((), tmp_path / "a", accept))
    assert batch.fetch(Download((), tmp_path / "b", accept)) == (tmp_path / "b", "stopped")
