"""Checkpoints that `load` fetches by name, converts once and keeps."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite3r_jax.errors import InputError
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.manifest import FILE_NAME, Origin
from lite3r_jax.weights.safetensors_file import SafetensorsFile
from lite3r_jax.weights.strict_json import shown


@dataclass(frozen=True)
class HubCheckpoint:
    """One published checkpoint.

    Attributes:
        backbone: registry name.
        file: in the repository.
        size: of the file, for messages.
        license: of the weights.
        config: JSON form of the model's config; None for the default of the backbone.
    """

    backbone: str
    file: str
    size: str
    license: str
    config: Mapping[str, Any] | None = None


def _da3(name: str, size: str, license: str) -> HubCheckpoint:
    return HubCheckpoint("da3", "model.safetensors", size, license, {"model_name": name})


KNOWN: Mapping[str, HubCheckpoint] = {
    "facebook/VGGT-1B": HubCheckpoint("vggt", "model.safetensors", "5.0 GB", "CC-BY-NC-4.0"),
    "depth-anything/DA3-SMALL": _da3("da3-small", "0.1 GB", "Apache-2.0"),
    "depth-anything/DA3-BASE": _da3("da3-base", "0.5 GB", "Apache-2.0"),
    "depth-anything/DA3-LARGE": _da3("da3-large", "1.6 GB", "CC-BY-NC-4.0"),
    "depth-anything/DA3-LARGE-1.1": _da3("da3-large", "1.6 GB", "CC-BY-NC-4.0"),
    "depth-anything/DA3-GIANT": _da3("da3-giant", "5.4 GB", "CC-BY-NC-4.0"),
    "depth-anything/DA3-GIANT-1.1": _da3("da3-giant", "5.4 GB", "CC-BY-NC-4.0"),
}


def looks_like_repo(name: str) -> bool:
    """Whether a string has the form owner/name of a hub repository."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is not None


def default_cache() -> Path:
    """The user's cache directory of this package, by the custom of the system."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "lite3r_jax"
    if sys.platform == "win32":
        return home / "AppData" / "Local" / "lite3r_jax" / "Cache"
    return home / ".cache" / "lite3r_jax"


def converted(repo: str, cache_dir: Path | None = None) -> Path:
    """The directory of converted weights of a hub repository, made if it is not there yet.

    Args:
        repo: a key of `KNOWN`.
        cache_dir: parent of the directory; the user's cache directory when None.

    Raises:
        InputError: unknown repository; or it cannot be fetched, with what to put where.
    """
    if repo not in KNOWN:
        raise InputError(
            f"{repo}: no such directory, and no hub repository known here; choose a directory of "
            f"converted weights or one of: {', '.join(KNOWN)}"
        )
    known = KNOWN[repo]
    cache = default_cache() if cache_dir is None else cache_dir
    out = cache / repo.replace("/", "--")
    if (out / FILE_NAME).is_file():
        return out
    try:
        # Before fetching: where that fails, the command to do it by hand writes there as well.
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache}: cannot be created ({error.strerror})") from error
    path = _fetch(repo, known, out)
    origin = Origin(known.license, f"the card of {repo}", repo, _commit(path))
    with SafetensorsFile(path) as source:
        try:
            convert(source, out, backbone=known.backbone, config=known.config, origin=origin)
        except InputError:
            # Another process may have come first; its result is as good.
            if not (out / FILE_NAME).is_file():
                raise
    return out


def _fetch(repo: str, known: HubCheckpoint, out: Path) -> Path:
    files, option = known.file, ""
    if known.config is not None:
        files, option = f"{known.file} and config.json", "--config config.json "
    by_hand = (
        f"download {files} ({known.size}) from the hub repository {repo} by other means, run "
        f"python -m tools.convert_torch_weights {known.backbone} {known.file} {out} {option}"
        f"--license {known.license}, then load again"
    )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError(
            f"{repo}: huggingface_hub is not installed; pip install huggingface_hub, or {by_hand}"
        ) from error
    try:
        return Path(hf_hub_download(repo, known.file))
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{repo}: cannot be fetched ({shown(why)}); {by_hand}") from error


def _commit(path: Path) -> str | None:
    """The commit, which the hub's cache has as the name of the snapshot directory."""
    name = path.parent.name
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None
