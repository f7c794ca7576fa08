"""Where a base model's files are, and its key: identity by content, without torch.

`campaign.plan` needs the key to say what is reused, so nothing here loads a model or imports torch.
"""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from finetrial.errors import UserError, nearest
from finetrial.identity import digest, file_digest
from finetrial.model.config import ModelConfig

BUILTIN = "builtin"

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
)
"""What makes a model: its weights, their configuration, its tokenizer and chat template."""


def locate(config: ModelConfig) -> Path:
    """The folder with the base's files; a hub model is taken from the local cache or downloaded.

    Raises:
        UserError: there is no such folder or model; the message gives the nearest one.
    """
    return _locate(config.base, config.revision)


def base_key(config: ModelConfig) -> str:
    """SHA-256 (64 hex digits) over the names and contents of the base's files.

    Neither the path nor the name of the base enters: a copy in another folder is the same base. Computed once per
    process for each name and revision.

    Raises:
        UserError: there is no such base, or its folder lacks a configuration or safetensors weights.
    """
    return _key(config.base, config.revision)


@lru_cache
def _key(base: str, revision: str | None) -> str:
    folder = _locate(base, revision)
    found = {path.name: path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    if not any(name.endswith(".safetensors") for name in found):
        raise UserError(f"model.base: {base!r} has no weights (*.safetensors) in {folder}")
    return digest({name: _content(path) for name, path in found.items()})


def encoder_folder(name: str) -> Path | None:
    """The folder of a sentence encoder that `name` means; None where it is a name of the hub.

    Raises:
        UserError: it is written as a path, and there is no such folder; the message gives the nearest one.
    """
    if not (folder := Path(name).expanduser()).exists() and not name.startswith((".", "/", "~")):
        return None
    if not folder.is_dir():
        beside = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"set_diversity.embedding_model: {name!r} is no folder{nearest(str(folder), beside)}")
    return folder


def encoder_key(name: str) -> str:
    """Identity of a sentence encoder: SHA-256 over the names and contents of its folder's files, or its hub name."""
    folder = encoder_folder(name)
    if folder is None:
        return name
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return digest({inside: _content(path) for inside, path in found.items()})


def _content(path: Path) -> str:
    """SHA-256 of a file; the hub's cache names large files by it, which saves reading them."""
    stored = path.resolve().name
    return stored if path.is_symlink() and _is_sha256(stored) else file_digest(path)


def _is_sha256(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


@lru_cache
def _locate(base: str, revision: str | None) -> Path:
    if base == BUILTIN:
        folder = Path(str(files("finetrial") / "assets" / "base"))
    elif (given := Path(base).expanduser()).exists() or base.startswith((".", "/", "~")):
        folder = given
        if not folder.is_dir():
            beside = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
            raise UserError(f"model.base: {base!r} is no folder{nearest(str(folder), [BUILTIN, *beside])}")
    else:
        return _snapshot(base, revision)
    if revision is not None:
        raise UserError(f"model.revision: {revision!r} is given, but only a hub model has one; {base!r} is a folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.base: {base!r} has no config.json; expected a folder saved by transformers")
    return folder


def _snapshot(base: str, revision: str | None) -> Path:
    """The files of a hub model: those in the cache where they are whole, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(MODEL_FILES)}
    try:
        try:
            folder = Path(snapshot_download(base, local_files_only=True, **options))
            if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
                return folder
        except LocalEntryNotFoundError:
            pass  # not in the cache: the download below brings it or says why not
        folder = Path(snapshot_download(base, **options))
    except RevisionNotFoundError as error:
        raise UserError(f"model.revision: {base!r} has no revision {revision!r} on the hub") from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        known = [BUILTIN, *_cached_models()]
        raise UserError(
            f"model.base: {base!r} is neither a folder nor a model of the hub{nearest(base, known)}; "
            "expected 'builtin', a folder, or OWNER/NAME"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        known = [BUILTIN, *_cached_models()]
        raise UserError(
            f"model.base: {base!r} is no folder, is not in the local hub cache, and the hub could not be asked"
            f"{nearest(base, known)}: {str(error).splitlines()[0]}"
        ) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"model.base: {base!r} on the hub has no config.json; expected a model of transformers")
    return folder


def _cached_models() -> list[str]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        return []
