import dataclasses

import numpy as np
import pytest

from research.data.pairs.pair_rows import find_documents
from research.data.pairs.refreshed_negatives import RefreshedNegatives

# Fixtures and sources of the batches that this is a part of
from tests.test_data_pair_batches import make, source, tokenizer  # noqa: F401


@pytest.fixture
def files(tmp_path):
    return RefreshedNegatives(tmp_path / "negatives", "a", every=4, count=2)


def test_steps_read_what_their_interval_has_mined(files):
    mined = {step: np.full((3, 2), step) for step in (0, 4)}
    for step, negatives in mined.items():
        files.write(step, negatives)
    for step in range(8):
        np.testing.assert_array_equal(files.read(step, 3), mined[step // 4 * 4])
    names = sorted(path.name for path in files.folder.iterdir())
    assert names == ["a-0.npy", "a-4.npy"]
    files.clear()
    assert not list(files.folder.iterdir())


def test_what_no_checkpoint_needs_is_removed(files):
    for step in (0, 4, 8, 12):
        files.write(step, np.zeros((3, 2)))
        files.write_array(f"{step}-scores", np.zeros(3))
    files.write_array("ranks", np.zeros(3))
    # Another source, whose name begins like this one's
    other = dataclasses.replace(files, name="a-1")
    other.write(0, np.zeros((3, 2)))
    files.drop(9)
    names = sorted(path.name for path in files.folder.iterdir())
    kept = [f"a-{step}{end}.npy" for step in (12, 8) for end in ("-scores", "")]
    assert names == sorted([*kept, "a-1-0.npy", "a-ranks.npy"])


def test_missing_and_damaged_files_are_named(files):
    with pytest.raises(ValueError, match="a-8.npy is missing: .* the steps 8 to 11"):
        files.read(9, 3)
    files.write(8, np.zeros((3, 2)))
    files.get_path(8).write_bytes(b"x")
    for damage in (b"x", b"", np.zeros((2, 2))):
        if isinstance(damage, bytes):
            files.get_path(8).write_bytes(damage)
        else:
            files.write(8, damage)
        with pytest.raises(ValueError, match="a-8.npy is damaged"):
            files.read(9, 3)


@pytest.mark.parametrize("own", [0, 2])
def test_batches_hold_the_mined_negatives(make, files, own):  # noqa: F811
    sources = {"a": source(40, negatives=own, positives=2)}
    batches = make(sources, refreshed={"a": files})
    (state,) = batches.sources
    table, rng = state.table, np.random.default_rng(0)
    documents = find_documents(table)
    assert len(documents) == len(table.starts) - 1 - 40
    mined = {step: rng.choice(documents, (40, 2)) for step in (0, 4)}
    for step, negatives in mined.items():
        files.write(step, negatives)
    for step in range(8):
        plan = batches.plan_batch(step)
        # Query, positive, two negatives
        assert plan.texts.shape == (8, 4)
        expected = mined[step // 4 * 4][plan.examples]
        np.testing.assert_array_equal(plan.texts[:, 2:], expected)
        np.testing.assert_array_equal(plan.texts[:, 0], table.query_text[plan.examples])
    # The labels are those of the mined texts
    labels = batches(5).labels.document_id.reshape(8, 3, 2)
    texts = batches.plan_batch(5).texts[:, 1:]
    np.testing.assert_array_equal(labels, table.text_hashes[texts])
    with pytest.raises(ValueError, match="a-8.npy is missing"):
        batches(8)


def test_without_a_folder_negatives_are_random_documents(make):  # noqa: F811
    files = RefreshedNegatives(None, "a", every=4, count=3)
    batches = make({"a": source(40)}, refreshed={"a": files})
    texts = batches.plan_batch(3).texts
    table = batches.sources[0].table
    assert set(texts[:, 2:].ravel()) <= set(find_documents(table))
    np.testing.assert_array_equal(texts, batches.plan_batch(3).texts)
    with pytest.raises(ValueError, match="only a run with a workdir"):
        files.write(0, texts)
