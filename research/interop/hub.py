"""Uploads a folder to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id


def check_hub_access(repo: str) -> None:
    """Checks a repository's name and the login, before anything is computed.

    Args:
        repo: The repository, "ORG/NAME".

    Raises:
        ValueError: The name is not that of a repository, nobody is logged in, or the
            hub cannot be reached.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise ValueError(
            "--push_to_hub takes ORG/NAME, an organization or user of the Hugging Face "
            "hub and a model's name of letters, digits, '-', '_' and '.'"
        )
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        raise ValueError(
            f"--push_to_hub={repo} needs a login at the Hugging Face hub: run "
            "`hf auth login`, or set HF_TOKEN"
        ) from None
    except Exception as error:  # of the hub, of httpx, or offline mode
        raise ValueError(_format_refusal(repo, error)) from None


def push_folder(folder: Path, repo: str) -> str:
    """Uploads a model folder into a repository, which is created if there is none.

    Args:
        folder: The folder.
        repo: The repository, "ORG/NAME"; a new one has the visibility that the
            organization has set for new ones, which is public by default.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The hub did not accept it; the folder stays as it is.
    """
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Export of Embax"
        )
    except Exception as error:  # of the hub, of httpx, or offline mode
        raise ValueError(
            f"{_format_refusal(repo, error)}; the export is complete in {folder}"
        ) from None
    return str(commit.commit_url)


def _format_refusal(repo: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the Hugging Face hub did not accept {repo}: {text[:300]}"
