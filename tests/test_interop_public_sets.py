"""Public sets, from a folder that stands in for the hub."""

import hashlib
import json
from types import SimpleNamespace

import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet

from configs import starbucks_retrieval, starbucks_sts
from launch import fetch, main
from research.config_sections import build
from research.data.examples import Example
from research.data.files import read_beir, read_sts
from research.data.sources import SOURCES
from research.interop.public_sets import PUBLIC_SETS, RECORD, find_fetch_command

NLI = [{"anchor": f"a{i}", "positive": "é", "negative": "n", "x": 1} for i in range(3)]
STSB = [{"sentence1": "a", "sentence2": "b", "score": 0.5}]
SQUAD = [
    {
        "id": f"{title}{i}",
        "title": title,
        "context": f"{title} {i // 2}",
        "question": "q ",
    }
    for title in ("Kenya", "Rhine", "New_York")
    for i in range(3)
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder whose files are those of every data set on the hub."""
    folder = tmp_path / "hub"
    for path, rows in (
        ("triplet/train-00000-of-00002.parquet", NLI[:2]),
        ("triplet/train-00001-of-00002.parquet", NLI[2:]),
        ("triplet/dev-00000-of-00001.parquet", NLI[:1]),
        ("data/train-00000-of-00001.parquet", STSB * 3),
        ("data/validation-00000-of-00001.parquet", STSB * 2),
        ("data/test-00000-of-00001.parquet", STSB),
        ("plain_text/validation-00000-of-00001.parquet", SQUAD),
        (
            "wikitext-2-raw-v1/train-00000-of-00001.parquet",
            [{"text": t} for t in (" = A = \n", "", "b \n")],
        ),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / path)
    row = {"text": "t", "label": 3, "label_text": "card"}
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")

    def describe(api, repo, revision, files_metadata):
        assert len(revision) == 40 and files_metadata
        siblings = []
        for file in sorted(folder.rglob("*.*")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lfs = SimpleNamespace(sha256=digest) if file.suffix == ".parquet" else None
            name = str(file.relative_to(folder))
            siblings.append(
                SimpleNamespace(rfilename=name, size=file.stat().st_size, lfs=lfs)
            )
        return SimpleNamespace(siblings=siblings)

    def download(repo, path, repo_type, revision):
        assert repo_type == "dataset" and len(revision) == 40
        return str(folder / path)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", describe)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The data folder of the command."""
    folder = tmp_path / "data"
    monkeypatch.setattr(fetch, "DATA", SimpleNamespace(value=str(folder)))
    return folder


def test_sets_arrive_where_the_recipes_read_them(hub, data, capfd):
    fetch.main("nli", "stsb", "squad", "banking77", "wikitext")
    recipe = starbucks_sts.get_config(f"data={data}")
    source = build(SOURCES, recipe.data.nli)
    assert source.examples == tuple(Example(f"a{i}", ("é",), ("n",)) for i in range(3))
    assert source.note == ""
    assert read_sts(recipe.evals.stsb_dev.data) == (["a"] * 2, ["b"] * 2, [0.5] * 2)
    assert len(read_sts(data / "stsb" / "test.jsonl.gz")[0]) == 1
    # SQuAD's articles are split, and its paragraphs are documents once
    folder = starbucks_retrieval.get_config(f"data={data}").data.squad.path
    parts = {split: read_beir(folder, split) for split in ("train", "dev", "test")}
    assert parts["dev"].qrels == {f"Kenya{i}": {f"Kenya_{i // 2}": 1} for i in range(3)}
    assert list(parts["test"].qrels) == [f"Rhine{i}" for i in range(3)]
    assert parts["train"].qrels["New_York2"] == {"New_York_1": 1}
    assert parts["train"].corpus["New_York_1"] == "New York New_York 1"
    assert len(parts["train"].corpus) == 6
    texts = SOURCES["texts"](path=str(data / "rawtext/wikitext.txt.gz"), unit="block")
    assert [example.query for example in texts.examples] == ["= A =", "b"]
    labels = SOURCES["labeled_texts"]
    with pytest.raises(ValueError, match="'card'"):  # the label's name, not its number
        labels(path=str(data / "banking77/train.jsonl.gz"))
    # What is brought is shown before, with its license
    shown = capfd.readouterr().err.splitlines()
    assert shown[0].startswith(
        "nli: 0.0 MB of sentence-transformers/all-nli at d482672"
    )
    brought = [line for line in shown if " MB of " in line]
    assert shown[0].endswith("genre") and len(brought) == 5


def test_a_set_is_checked_when_it_is_fetched_again(hub, data, capfd):
    first = fetch.main("stsb")
    record = json.loads((data / RECORD).read_text())["stsb"]
    assert list(record["sha256"]) == sorted(first["stsb"])
    digest = hashlib.sha256((data / "stsb/dev.jsonl.gz").read_bytes()).hexdigest()
    assert record["sha256"]["stsb/dev.jsonl.gz"] == digest
    capfd.readouterr()
    assert fetch.main("stsb") == {"data": str(data), "stsb": []}
    assert capfd.readouterr().err == f"stsb: is in {data}, as it was fetched\n"
    # The same content has the same bytes elsewhere
    fetch.DATA.value = str(data.with_name("other"))
    fetch.main("stsb")
    assert json.loads((data.with_name("other") / RECORD).read_text())["stsb"] == record
    fetch.DATA.value = str(data)
    (data / "stsb/dev.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"dev.jsonl.gz is not as it was fetched"):
        fetch.main("stsb")


def test_files_of_others_stay(hub, data):
    (data / "nli").mkdir(parents=True)
    (data / "nli" / "triplets.jsonl.gz").write_text("mine")
    with pytest.raises(ValueError, match="was not made by launch.fetch"):
        fetch.main("stsb", "nli")
    assert [path.name for path in data.rglob("*.*")] == ["triplets.jsonl.gz"]


def test_a_broken_download_leaves_nothing(hub, data, monkeypatch):
    files = fetch.public_sets.list_hub_files(PUBLIC_SETS["nli"], "triplet/train-*")
    with (hub / files[1].path).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="arrived with another content"):
        fetch.public_sets.fetch_part("nli", "nli/triplets.jsonl.gz", files, data)
    # A row that lacks a column, in the second file
    parquet.write_table(pyarrow.table({"anchor": ["a"]}), hub / files[1].path)
    with pytest.raises(ValueError, match="has a row without the column 'positive'"):
        fetch.main("nli")
    assert not [path for path in data.rglob("*") if path.is_file()]


@pytest.mark.parametrize("state", ["between", "unrecorded"])
def test_a_set_goes_on_after_a_kill(hub, data, state):
    fetch.main("stsb")
    record = json.loads((data / RECORD).read_text())
    digests = record["stsb"]["sha256"]
    (data / "stsb/test.jsonl.gz").unlink()
    # Killed before the third part, or before it was renamed
    if state == "between":
        del digests["stsb/test.jsonl.gz"]
        (data / RECORD).write_text(json.dumps(record))
    assert fetch.main("stsb")["stsb"] == ["stsb/test.jsonl.gz"]
    assert fetch.main("stsb")["stsb"] == []
    assert list(json.loads((data / RECORD).read_text())["stsb"]["sha256"]) == sorted(
        PUBLIC_SETS["stsb"].parts
    )


def test_without_a_network_there_is_one_sentence(data, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hub did not give the data set .*all-nli: "):
        fetch.main("nli")
    with pytest.raises(ValueError, match="no public set 'nil'; there are nli, stsb"):
        fetch.main("nil")
    assert not data.exists()


@pytest.mark.parametrize(
    "message, command",
    [
        ("there is no file d/e/nli/triplets.jsonl.gz", "nli --data=d/e"),
        (
            "there is no folder ../shared/data/squad_retrieval",
            "squad --data=../shared/data",
        ),
        ("no file d/squad_retrieval/qrels/dev.tsv", "squad --data=d"),
        ("there is no file my/triplets.jsonl.gz", ""),
    ],
)
def test_a_missing_file_names_the_command_that_brings_it(message, command):
    found = find_fetch_command(message)
    assert found == (f"python -m launch.fetch {command}" if command else "")
    error = main.format_error(FileNotFoundError(message))
    assert error == message + (f"; `{found}` brings it" if command else "")
    assert main.format_error(ValueError(message)) == message
