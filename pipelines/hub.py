"""Pipeline folders to the Hugging Face hub, without writing over what somebody wrote there."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from latent_prior.pipelines.card import README, is_handwritten, license_of, write_card


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Upload a pipeline folder in one commit; a README.md that somebody wrote for the repository stays.

    Returns:
        Address of the commit.
    """
    hub = HfApi(token=token)
    repo = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        hub.create_branch(repo, branch=revision, exist_ok=True)
    branch = None if create_pr else revision
    there = ""
    if hub.file_exists(repo, README, revision=branch):
        path = Path(hub.hf_hub_download(repo, README, revision=branch))
        there = path.read_text(encoding="utf-8")
    if license_of((folder / README).read_text(encoding="utf-8")) is None:
        write_card(folder, license_name=license_of(there))  # the website asks for it
    return hub.upload_folder(
        repo_id=repo,
        folder_path=folder,
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
        ignore_patterns=[README] if is_handwritten(there) else None,
    ).commit_url
