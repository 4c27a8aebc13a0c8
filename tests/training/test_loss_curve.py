import importlib.util
import json

import pytest
from matplotlib.axes import Axes

from distillery.storage.outputs import Outputs
from distillery.training.loss_curve import FIGURE, draw, read_log

ROWS = [
    {"step": 1, "kind": "train", "loss": 3.0, "ce": 2.0, "kl": 1.4},
    {"step": 2, "kind": "train", "loss": 2.0, "ce": 1.5, "kl": None},
    {"step": 2, "kind": "eval test", "loss": 2.5},
]


@pytest.fixture
def folder(tmp_path):
    """Return a run's folder, whose log a kill has cut."""
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    (tmp_path / "train_log.jsonl").write_text(f"{lines}{lines[:20]}", "utf-8")
    return tmp_path


def test_the_losses_of_a_run_are_drawn_again_and_again(folder):
    assert read_log(folder / "train_log.jsonl") == ROWS
    assert draw(folder) and draw(folder)
    assert (folder / FIGURE).read_bytes().startswith(b"\x89PNG")
    assert FIGURE in Outputs(folder).written()
    assert Outputs(folder).damage() == {}


def test_the_figure_names_no_folder_of_this_machine(folder, monkeypatch):
    rows = [{**ROWS[2], "kind": "eval /home/me/canary/test.jsonl default test"}, *ROWS]
    (folder / "train_log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    plotted = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda *args, **how: plotted.append(how["label"]) or plot(*args, **how)
    )
    assert draw(folder)
    assert plotted == ["loss, test.jsonl default test", "loss", "ce", "kl", "loss, eval test"]


def test_a_run_without_a_log_has_no_figure(tmp_path):
    assert not draw(tmp_path)
    assert not (tmp_path / FIGURE).exists()


def test_without_matplotlib_there_is_no_figure_and_a_word_in_the_log(folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not draw(folder)
    assert "loss.png is not drawn: pip install matplotlib" in caplog.text


def test_a_picture_of_the_users_is_left_alone(folder):
    (folder / FIGURE).write_bytes(b"mine")
    with pytest.raises(ValueError, match="this run did not leave it there"):
        draw(folder)
    assert (folder / FIGURE).read_bytes() == b"mine"
