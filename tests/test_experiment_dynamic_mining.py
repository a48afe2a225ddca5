import numpy as np
import pytest

from research import sharding
from research.config_sections import section
from research.experiment.dynamic_mining import ReplacementRule
from research.experiment.mining import MINING
from research.experiment.workdir import prepare_run
from research.train.experiment import abstract_state, initial_state
from tests.test_experiment_mining import folder, make_config  # noqa: F401

RULE = ReplacementRule(ratio=1.15, max_score=0.8, skip=10, replacements=2)


@pytest.mark.parametrize(
    "score,initial,replaced,due",
    [
        (0.5, 0.6, 0, True),  # 0.575 < 0.6
        (0.5, 0.57, 0, False),  # has not fallen enough
        (0.8, 0.99, 0, False),  # is still hard
        (-0.9, 0.6, 0, False),
        (-0.1, 0.6, 1, True),
        (0.5, 0.6, 2, False),  # the list has ended
    ],
)
def test_negatives_are_replaced_once_they_are_easy(score, initial, replaced, due):
    found = RULE.find_due(*(np.array([x]) for x in (score, initial, replaced)))
    assert found.tolist() == [due]


def test_replacements_are_the_next_ranks_of_the_list():
    ranks = np.arange(2)[:, None] * 100 + np.arange(RULE.count_ranks(3))
    taken = RULE.take_ranks(ranks, np.array([1, 2]), 3)
    assert taken.tolist() == [[10, 11, 12], [113, 114, 115]]
    assert ranks.shape == (2, 16)


def test_a_run_replaces_what_its_model_finds_easy(
    folder,  # noqa: F811
    tmp_path,
    one_device,
):
    config = make_config(folder)
    # Everything is due, or nothing
    options = {"every": 3, "negatives": 2, "skip": 4, "replacements": 3}
    config.mining = section(MINING, "dynamic", **options, ratio=0.01, max_score=9.0)
    experiment = prepare_run(config, tmp_path, cache=folder / "tokens")
    state = initial_state(experiment, abstract_state(experiment, experiment.mesh))
    model = sharding.gather_params((state.params, state.frozen), experiment.mesh)

    def mine(step):
        (line,) = experiment.refresh.run(*model, step)
        return line, np.array(files.read(step, 40))

    files = experiment.batches.sources[0].refreshed
    line, first = mine(0)
    assert "10 documents ranked for each query" in line
    (ranks,) = files.read_arrays("ranks")
    np.testing.assert_array_equal(first, ranks[:, :2])
    line, second = mine(3)
    assert "negatives of 100% of the examples replaced" in line
    np.testing.assert_array_equal(second, ranks[:, 4:6])
    np.testing.assert_array_equal(mine(6)[1], ranks[:, 6:8])
    # A killed run makes the same again from the step before
    files.get_path(6).unlink()
    np.testing.assert_array_equal(mine(6)[1], ranks[:, 6:8])
    np.testing.assert_array_equal(mine(9)[1], ranks[:, 8:10])
    line, last = mine(12)  # the list has ended
    assert "negatives of 0%" in line
    np.testing.assert_array_equal(last, ranks[:, 8:10])
    files.get_path("ranks").unlink()
    with pytest.raises(ValueError, match="pairs-ranks.npy, which the next negatives"):
        mine(15)
    experiment.refresh.clear()
    assert not list(files.folder.iterdir())
