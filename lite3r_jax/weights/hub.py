"""Fetches published checkpoints by hub repository, converts them once and keeps them."""

import re
from dataclasses import dataclass
from pathlib import Path

from lite3r_jax.backbones.base import BackboneEntry, Published, backbone_names, get_backbone
from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.files import user_cache
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.manifest import FILE_NAME, Origin
from lite3r_jax.weights.safetensors_file import SafetensorsFile
from lite3r_jax.weights.strict_json import shown


@dataclass(frozen=True)
class HubCheckpoint:
    """A published model, and the backbone that it is of."""

    backbone: BackboneEntry
    model: Published


def known() -> dict[str, HubCheckpoint]:
    """Returns the published checkpoints of all backbones by hub repository."""
    return {
        model.repo: HubCheckpoint(backbone, model)
        for backbone in map(get_backbone, backbone_names())
        for model in backbone.published
    }


def looks_like_repo(name: str) -> bool:
    """Returns whether a string has the form owner/name of a hub repository."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is not None


def converted(repo: str, cache_dir: Path | None = None) -> Path:
    """Returns the directory of converted weights of a hub repository, made if it is missing.

    Args:
        repo: a key of `known`.
        cache_dir: parent of the directory; the user's cache directory when None.

    Raises:
        InputError: unknown repository; or it cannot be fetched, with what to put where.
    """
    repos = known()
    if repo not in repos:
        raise InputError(
            f"{repo}: no such directory, and no hub repository known here; choose a directory of "
            f"converted weights or one of: {', '.join(repos)}{did_you_mean(repo, repos)}"
        )
    backbone, model = repos[repo].backbone, repos[repo].model
    cache = user_cache() if cache_dir is None else cache_dir
    out = cache / repo.replace("/", "--")
    if (out / FILE_NAME).is_file():
        return out
    try:
        # Before fetching: where that fails, the command to do it by hand writes there as well.
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache}: cannot be created ({error.strerror})") from error
    path = _fetch(repos[repo], out)
    origin = Origin(model.license, f"the card of {repo}", repo, _commit(path))
    published = model.config == backbone.default_config
    sizes = None if published else backbone.config_to_json(model.config)
    with SafetensorsFile(path) as source:
        try:
            convert(source, out, backbone=backbone.name, config=sizes, origin=origin)
        except InputError:
            # Another process may have come first; its result is as good.
            if not (out / FILE_NAME).is_file():
                raise
    return out


def _fetch(known: HubCheckpoint, out: Path) -> Path:
    repo, file, name = known.model.repo, known.model.file, known.backbone.name
    files, option = file, ""
    if known.model.config != known.backbone.default_config:
        files, option = f"{file} and config.json", "--config config.json "
    by_hand = (
        f"download {files} ({known.model.download}) from the hub repository {repo} by other means,"
        f" run lite3r convert {name} {file} {out} {option}"
        f"--license {known.model.license}, then load again"
    )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError(
            f"{repo}: huggingface_hub is not installed; pip install huggingface_hub, or {by_hand}"
        ) from error
    try:
        return Path(hf_hub_download(repo, file))
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{repo}: cannot be fetched ({shown(why)}); {by_hand}") from error


def _commit(path: Path) -> str | None:
    """Returns the commit of a file in the hub's cache, where it names the snapshot directory."""
    name = path.parent.name
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None
