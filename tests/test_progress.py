"""A phase that takes long says so, and a short one nothing."""

import re
import time

from research import progress


def show(phase, seconds, monkeypatch, **options):
    monkeypatch.setattr(progress, "DELAY", 0.1)
    with progress.show_progress(phase, **options) as advance:
        time.sleep(seconds)
        advance(1)


def test_a_long_phase_has_a_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SHOWN", set())
    for _ in range(2):  # it is not repeated
        show("loading a/b", 0.2, monkeypatch)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "loading a/b ...\n")


def test_a_short_phase_has_none(monkeypatch, capsys):
    show("loading a/b", 0, monkeypatch)
    time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    show("tokenizing", 0.2, monkeypatch, total=2, unit="texts")
    err = capsys.readouterr().err
    assert "tokenizing:  50%" in err and "texts/s" in err and "..." not in err


def test_elsewhere_lines_tell_the_speed_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    with progress.show_progress("embedding 30 texts", 30, "texts") as advance:
        for _ in range(3):
            time.sleep(0.06)
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(
        r"embedding 30 texts: 10 done, \d+ texts/s, 00:00 left", lines[0]
    )
