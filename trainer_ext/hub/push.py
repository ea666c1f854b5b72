"""The third step: exactly the verified folder becomes one commit on the Hub."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from trainer_ext.files import file_hash, read_json
from trainer_ext.hub.folder import (
    HUB_FILE,
    MANIFEST,
    REPO_ID,
    STAMP,
    alone_in,
    folder_files,
    manifest_differences,
    read_manifest,
)
from trainer_ext.hub.installed import HubFolderError
from trainer_ext.hub.safety import find_secret

# Names of branches and tags that git takes, and refs/pr/N, the Hub's name of a pull request.
REF_NAME = re.compile(r"(?!.*(?:\.\.|//|\.lock(?:/|$)|\./))[\w][\w./+-]*(?<![./])", re.ASCII)


def push(
    out: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> str:
    """Upload a verified folder in one commit, and return the address of the commit or of the pull request.

    The card's placeholder becomes ``repo_id``. After an interrupted upload, call it again: weights that arrived are not
    sent twice. The Hub's client signs in (``hf auth login`` or ``HF_TOKEN``).

    Args:
        out: a folder that ``verify`` accepted and that has not changed since.
        repo_id: ``name/model``; created if it does not exist.
        private: create it private; an existing public repository is refused.
        create_pr: open a pull request instead of committing.
        revision: the branch, "main" by default. A new branch starts as a copy of main, so files of an earlier push to
            main that are no longer needed are deleted in it.
        tag: a new tag for the commit.
        dry_run: check everything and print the plan, but change nothing. Without a network, what the folder alone says.
        force: delete files of the repository that neither this manifest nor an earlier one knows.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not REPO_ID.fullmatch(repo_id):
        raise HubFolderError(f"repo_id {repo_id!r} is not of the form name/model; give both parts")
    if create_pr and tag:
        raise HubFolderError("a pull request has no commit to tag yet; leave out --tag, and tag after merging")
    for option, name in (("revision", revision), ("tag", tag)):
        if name is not None and not REF_NAME.fullmatch(name):
            raise HubFolderError(
                f"{option} {name!r} is not a name that git accepts; use letters, digits, '.', '_' and '-'"
            )
    out, branch, api = Path(out).resolve(), revision or "main", HfApi()
    with alone_in(out, "push"), _hub_errors(repo_id):
        content = _verified_content(out, repo_id)
        try:
            remote = _look(api, repo_id, branch, private, tag)
        except Exception as error:
            if not (dry_run and _is_offline(error)):
                raise
            print(f"{len(content)} files to {repo_id}, branch {branch}; what is there cannot be asked ({_line(error)})")
            for name, item in content.items():
                print(f"  {name} ({len(item) if isinstance(item, bytes) else item.stat().st_size:,} bytes)")
            return "dry run: nothing was sent"
        stale = sorted(remote.files - content.keys() - {HUB_FILE})
        unknown = sorted(set(stale) - _earlier_files(api, repo_id, remote))
        if unknown and not force:
            raise HubFolderError(f"{repo_id} holds other files ({', '.join(unknown)}); delete them with --force")
        new = "" if remote.has_branch or branch == "main" else " (new, from main)"
        print(f"{len(content)} files to {repo_id}, branch {branch}{new}; deletes {', '.join(stale) or 'nothing'}")
        if dry_run:
            return "dry run: nothing was sent"
        if not remote.exists:
            api.create_repo(repo_id, private=private or None)
            remote = _look(api, repo_id, branch, private, tag)  # what the Hub put there itself
        if not remote.has_branch and branch != "main":
            api.create_branch(repo_id, branch=branch, revision=remote.head)
        commit = api.create_commit(
            repo_id,
            [*(CommitOperationAdd(name, item) for name, item in content.items()), *map(CommitOperationDelete, stale)],
            commit_message="Upload a Jina CLIP model",
            revision=branch,
            create_pr=create_pr,
            parent_commit=remote.head,  # if somebody else committed since we looked, the Hub refuses
        )
        if tag:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.pr_url or str(commit.commit_url)


def _is_offline(error: BaseException) -> bool:
    """No network, or told not to use it; the client's own errors of connections are of its HTTP library."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OfflineModeIsEnabled", "TransportError", "ConnectionError"})


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """One clear line for whatever the client raises: no network, no access, a refused commit, a broken upload."""
    try:
        yield
    except HubFolderError:
        raise
    except Exception as error:
        # A failed upload wraps the Hub's own answer, which says most.
        answers = [getattr(reason, "server_message", None) for reason in (error, error.__cause__)]
        reason = " ".join(" ".join(filter(None, [_line(error), *answers])).split())
        raise HubFolderError(
            f"{repo_id}: {reason}; sign in with `hf auth login` if access was refused, else push again "
            "(weights that arrived are not sent twice)"
        ) from error


def _verified_content(out: Path, repo_id: str) -> dict[str, Path | bytes]:
    """What to upload, by name: the folder exactly as verified, with the repository's name in card and manifest."""
    manifest, stamp = read_manifest(out), out / STAMP
    if not _is_verified(out, stamp):
        raise HubFolderError(f"{out} is not verified; run `hub_upload.py verify {out}` first")
    if problems := manifest_differences(out):
        raise HubFolderError(f"{out} changed after it was verified ({problems[0]}); build and verify it again")
    files = folder_files(out)
    if "README.md" not in files:
        raise HubFolderError(f"{out} has no README.md, the model card; build and verify it again")
    # The whole name alone: `me/clip` is part of `me/clip-base`, too.
    name = re.compile(rf"(?<![\w./-]){re.escape(manifest['repo_id'])}(?![\w/-]|\.\w)")
    card = name.sub(repo_id, files["README.md"].read_text(encoding="utf-8")).encode()
    manifest["files"]["README.md"] = hashlib.sha256(card).hexdigest()
    if found := find_secret((out / MANIFEST).read_bytes()):
        raise HubFolderError(f"{MANIFEST}, line {found[0]}, seems to hold a secret; build and verify the folder again")
    known = {key: manifest.get(key) for key in ("format", "versions", "files")}  # only what this package wrote is sent
    return {**files, "README.md": card, MANIFEST: (json.dumps({"repo_id": repo_id, **known}, indent=2) + "\n").encode()}


def _is_verified(out: Path, stamp: Path) -> bool:
    try:
        return stamp.is_file() and read_json(stamp)["manifest"] == file_hash(out / MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a stamp that is none
        return False


class _Remote(NamedTuple):
    """The state that a commit on the branch would change; a new branch starts as a copy of main."""

    exists: bool = False
    has_branch: bool = False
    head: str | None = None
    files: frozenset[str] = frozenset()


def _look(api: Any, repo_id: str, branch: str, private: bool, tag: str | None) -> _Remote:
    """Head commit and file names of the branch, or of main, which the Hub copies into a new branch."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        main = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return _Remote()
    if private and not main.private:
        raise HubFolderError(f"{repo_id} exists and is public; make it private on the Hub or leave out --private")
    if tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
        raise HubFolderError(f"{repo_id} has a tag {tag} already; choose another")
    try:
        found, has_branch = api.model_info(repo_id, revision=branch), True
    except RevisionNotFoundError:
        if branch.startswith("refs/"):
            raise HubFolderError(f"{repo_id} has no {branch}; name a branch, or leave out --revision") from None
        found, has_branch = main, False
    return _Remote(True, has_branch, found.sha, frozenset(item.rfilename for item in found.siblings or []))


def _earlier_files(api: Any, repo_id: str, remote: _Remote) -> set[str]:
    """Names of the files of an earlier push, which may be replaced without ``force``."""
    if MANIFEST not in remote.files:
        return set()
    try:
        earlier = Path(api.hf_hub_download(repo_id, MANIFEST, revision=remote.head))
        return {MANIFEST, *read_manifest(earlier.parent)["files"]}
    except HubFolderError:
        return set()
