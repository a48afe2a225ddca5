"""Hashes of what a config reads."""

from research.experiment.inputs import hash_inputs, hash_path


def test_every_file_and_folder_of_a_config_is_hashed_by_its_content(tmp_path):
    file, folder = tmp_path / "a.jsonl", tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    file.write_text("one")
    (folder / "qrels" / "test.tsv").write_text("two")
    config = {"data": {"a": {"name": "files", "path": str(file)}}, "steps": 3}
    config["evals"] = ({"data": str(folder), "split": "no such file " * 400},)
    before = hash_inputs(config)
    assert set(before) == {str(file), str(folder)}
    file.write_text("three")
    after = hash_inputs(config)
    assert after[str(file)] != before[str(file)]
    assert after[str(folder)] == before[str(folder)]
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert hash_inputs(config)[str(folder)] != before[str(folder)]


def test_punctuation_of_a_config_is_no_path():
    assert hash_inputs({"skiplist": ("/", ".", "..", "~"), "path": ""}) == {}


def test_logs_of_a_workdir_do_not_change_its_hash(tmp_path):
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "checkpoints" / "2" / "weights").write_text("1")
    before = hash_path(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}")
    assert hash_path(tmp_path) == before
    (tmp_path / "checkpoints" / "2" / "weights").write_text("2")
    assert hash_path(tmp_path) != before
