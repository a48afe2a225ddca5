import json
import sys
from types import SimpleNamespace

import pytest
import toy

from research.train import loop
from research.train.wandb_run import require_wandb


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match="--wandb_project=p needs .* pip install wandb"
    ):
        require_wandb("p")


def test_a_run_logs_there_and_goes_on_there(tmp_path, monkeypatch):
    calls, logged = [], []

    def init(**options):
        calls.append(options)
        return SimpleNamespace(
            log=lambda numbers, step: logged.append((step, numbers)),
            finish=lambda: logged.append("finished"),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    (tmp_path / "config.json").write_text('{"steps": 2}')
    for steps in (2, 4):
        loop.train(toy.experiment(steps), tmp_path, wandb_project="team/texts")
    # One run for both, with the config
    assert calls[0] == calls[1]
    assert calls[0]["resume"] == "allow" and calls[0]["config"] == {"steps": 2}
    assert (calls[0]["entity"], calls[0]["project"]) == ("team", "texts")
    # The numbers of the log, and nothing else
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    expected = [
        (row.pop("step"), {k: v for k, v in row.items() if k != "source"})
        for row in rows
    ]
    assert logged == [*expected[:2], "finished", *expected[2:], "finished"]
    assert [step for step, _ in expected] == [1, 2, 3, 4]
