import jax
import numpy as np
import pytest
import toy

from research.train import loop
from research.train.profiling import parse_profile_steps


def test_a_range_ends_before_its_end():
    assert parse_profile_steps("2:4", 3) == range(2, 4)


@pytest.mark.parametrize("text", ["3", "3:3", "0:2", "2:5", "a:b", "-1:2", "1:2:3"])
def test_other_ranges_are_refused(text):
    message = rf"--profile_steps={text}: .* with 1 <= a < b <= 4 in this run of 3 steps"
    with pytest.raises(ValueError, match=message):
        parse_profile_steps(text, 3)


def test_the_trace_holds_its_steps_and_changes_no_result(tmp_path):
    state = loop.train(toy.experiment(4), tmp_path / "plain").state
    workdir = tmp_path / "profiled"
    traced = loop.train(toy.experiment(4), workdir, profile_steps=range(2, 4))
    jax.tree.map(
        np.testing.assert_array_equal, *map(jax.device_get, (traced.state, state))
    )
    (file,) = workdir.glob("profile/**/*.xplane.pb")
    events = file.read_bytes()
    assert b"train" in events and b"step_num" in events
    # A run that goes on has no trace of steps that it has made
    with pytest.raises(ValueError, match=r"=4:5: the run goes on from step 4, so .* 5"):
        loop.train(toy.experiment(6), workdir, profile_steps=range(4, 5))


def test_a_run_that_breaks_inside_the_trace_leaves_it(tmp_path):
    class Broken(toy.Batches):
        def __call__(self, step):
            if step == 2:
                raise RuntimeError("no more batches")
            return super().__call__(step)

    experiment = toy.experiment(4, batches=Broken())
    with pytest.raises(RuntimeError, match="no more batches"):
        loop.train(experiment, tmp_path, profile_steps=range(1, 5))
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))
