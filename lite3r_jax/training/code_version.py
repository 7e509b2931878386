"""Which code a run is made with: hashes of the source files that its result depends on."""

import hashlib
from functools import cache
from pathlib import Path

PARTS = (
    "allocator.py", "attention", "backbones", "data", "distillation", "geometry.py", "kernels",
    "layers", "losses", "mesh.py", "precision", "runs/train.py",
    "small_teacher", "training",
)  # fmt: skip
"""Files and folders of the package whose code a training runs through."""


@cache
def code_version() -> dict[str, str]:
    """Returns, by part of the package, 16 digits of the SHA-256 of its Python files.

    They are the first 16, and the parts are those of `PARTS`.

    A comment counts as a change: what matters cannot be told from the text, and a run is continued
    with another version when its settings allow changes.
    """
    root = Path(__file__).parents[1]
    digests = {}
    for part in PARTS:
        path = root / part
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        digests[part.removesuffix(".py")] = digest.hexdigest()[:16]
    return digests
