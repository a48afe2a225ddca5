"""Uploads, with a stand-in for the hub's client."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from tiny_models import make_model

from research.interop import hub
from research.interop.sentence_transformers.write import export

ROOT = Path(__file__).parent.parent


class Hub:
    """A hub in memory, which fails in one of its calls if it is told to."""

    def __init__(self, failure=None):
        self.failure, self.files, self.calls = failure, {}, []

    def _call(self, name):
        self.calls.append(name)
        if self.failure and self.failure[0] == name:
            raise self.failure[1]

    def whoami(self):
        self._call("whoami")

    def create_repo(self, repo, exist_ok):
        assert exist_ok
        self._call("create_repo")

    def upload_folder(self, repo_id, folder_path, commit_message):
        self._call("upload_folder")
        names = {str(p.relative_to(folder_path)) for p in folder_path.rglob("*")}
        self.files[repo_id] = names
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def connect(monkeypatch, failure=None):
    server = Hub(failure)
    monkeypatch.setattr(hub, "HfApi", lambda: server)
    return server


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", "a/b c", "/b", "a/b.git"])
def test_names_that_are_no_repository(repo, monkeypatch):
    server = connect(monkeypatch)
    with pytest.raises(ValueError, match="--push_to_hub takes ORG/NAME"):
        hub.check_hub_access(repo)
    assert not server.calls


def test_without_a_login_nothing_begins(monkeypatch):
    connect(monkeypatch, ("whoami", LocalTokenNotFoundError("no token")))
    with pytest.raises(ValueError, match="me/mine needs a login .* `hf auth login`"):
        hub.check_hub_access("me/mine")


def test_without_a_network_there_is_one_sentence(monkeypatch):
    connect(monkeypatch, ("whoami", ConnectionError("no\nroute")))
    with pytest.raises(ValueError, match="did not accept me/mine: no route$"):
        hub.check_hub_access("me/mine")


@pytest.mark.parametrize("name", ["create_repo", "upload_folder"])
def test_an_upload_that_fails_leaves_the_export(name, tmp_path, monkeypatch):
    connect(monkeypatch, (name, RuntimeError("403 Forbidden")))
    with pytest.raises(ValueError, match="403 Forbidden; the export is complete in"):
        hub.push_folder(tmp_path, "me/mine")
    assert tmp_path.exists()


# A program of its own: other commands define flags of the same names.
PROGRAM = """
import json
from launch import export, main
from research.interop import hub
from tests.test_interop_hub import Hub
server = Hub()
hub.HfApi = lambda: server
def run():
    return export.main() | {"files": sorted(server.files["me/mine"])}
main.run(run)
"""


def test_the_command_uploads_the_folder_that_it_wrote(tmp_path):
    export(make_model(), tmp_path / "model")
    command = [sys.executable, "-c", PROGRAM, f"--model={tmp_path / 'model'}"]
    command += [f"--output={tmp_path / 'out'}", "--push_to_hub=me/mine"]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True
    )
    record = json.loads(done.stdout)
    assert record["commit"] == "https://hub/me/mine/commit/1"
    assert {"README.md", "modules.json", "model.safetensors"} <= set(record["files"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'SentenceTransformer("me/mine")' in card
