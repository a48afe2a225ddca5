"""Files of the scores of single items, and TREC runs."""

import numpy as np
import pytest
import pytrec_eval

from research.eval.comparison.item_values import (
    load_items,
    read_item_table,
    save_items,
    write_item_table,
    write_run,
)
from research.eval.metrics import average_precision
from research.types import ItemValues

QUERIES = ItemValues(["q1", "q 2"], (np.array([12.5, 0.1 + 0.2]),), np.mean)
PAIRS = ItemValues(
    ["0", "1", "2"],
    (np.array([[0.9, -0.1], [0.2, -0.5], [0.4, -0.3]]), np.array([1, 0, 1])),
    average_precision,
)


@pytest.mark.parametrize("items", [QUERIES, PAIRS])
def test_a_table_is_read_as_it_was_written(items, tmp_path):
    path = tmp_path / "scores.tsv"
    write_item_table(items, path)
    back = read_item_table(path, items)
    assert back.names == items.names and back.statistic is items.statistic
    for array, original in zip(back.values, items.values, strict=True):
        np.testing.assert_array_equal(array, original)
    other = PAIRS if items is QUERIES else QUERIES
    with pytest.raises(ValueError, match="scores.tsv has the columns .* of this task"):
        read_item_table(path, other)


def test_columns_have_names(tmp_path):
    for items, header in (
        (QUERIES, "id\tscore"),
        (PAIRS, "id\tprediction_1\tprediction_2\ttruth"),
    ):
        write_item_table(items, tmp_path / "scores.tsv")
        assert (tmp_path / "scores.tsv").read_text().startswith(header + "\n")


def test_stored_items_keep_their_statistic(tmp_path):
    for items in (QUERIES, PAIRS):
        assert save_items(items, tmp_path / "items.json")
        back = load_items(tmp_path / "items.json")
        assert back.names == items.names and back.statistic is items.statistic
        np.testing.assert_array_equal(back.values[0], items.values[0])
    assert save_items(QUERIES._replace(groups=["a", "b"]), tmp_path / "items.json")
    assert load_items(tmp_path / "items.json").groups == ["a", "b"]
    assert not save_items(QUERIES._replace(statistic=lambda x: 0), tmp_path / "no.json")
    assert load_items(tmp_path / "no.json") is None
    (tmp_path / "bad.json").write_text('{"statistic": "os:system", "values": []}')
    with pytest.raises(ValueError, match="bad.json holds no item values"):
        load_items(tmp_path / "bad.json")


def test_a_run_is_in_the_order_of_trec_eval(tmp_path):
    run = {"q1": {"a": 0.5, "b": 0.75, "c": 0.5}, "q2": {}}
    path = tmp_path / "mine.trec"
    write_run(run, path, "my model")
    lines = path.read_text().splitlines()
    assert lines == [
        "q1 Q0 b 1 0.75 my_model",
        "q1 Q0 c 2 0.5 my_model",
        "q1 Q0 a 3 0.5 my_model",
    ]
    assert pytrec_eval.parse_run(path.open()) == {"q1": run["q1"]}


def test_a_run_cannot_hold_an_id_with_a_space(tmp_path):
    with pytest.raises(ValueError, match="the id 'a b' is empty or has a space"):
        write_run({"q": {"a b": 1.0}}, tmp_path / "mine.trec", "m")
    assert list(tmp_path.iterdir()) == []
