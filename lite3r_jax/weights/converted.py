"""Opens directories of weights and verifies their files against the manifest."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lite3r_jax.errors import InputError
from lite3r_jax.weights.manifest import FILE_NAME, read_manifest
from lite3r_jax.weights.safetensors_file import SafetensorsFile
from lite3r_jax.weights.safetensors_writer import FileRecord, hash_file
from lite3r_jax.weights.strict_json import shown


class VerifiedFiles:
    """Files of one directory whose sizes and hashes are known.

    Attributes:
        path: the directory.
        files: file name -> record, of all but the manifest.
        remedy: what to do when the directory is damaged, for messages.
    """

    def __init__(self, path: Path, files: Mapping[str, FileRecord], remedy: str, what: str):
        """Compare names and sizes of the files with the records.

        Args:
            path: the directory.
            files: file name -> record.
            remedy: what to do when it is damaged, for messages.
            what: what the files are, for messages.

        Raises:
            InputError: a file is missing, extra or of another size.
        """
        self.path = path
        self.files = files
        self.remedy = remedy
        present = {entry.name for entry in path.iterdir()} - {FILE_NAME}
        for name in sorted(set(files) - present):
            raise InputError(f"{path / name}: missing; {remedy}")
        for name in sorted(present - set(files)):
            raise InputError(f"{path / shown(name)}: not part of the {what}; remove it")
        for name, record in files.items():
            size = (path / name).stat().st_size
            if size != record.size:
                raise InputError(
                    f"{path / name}: damaged, {size} bytes instead of {record.size}; {remedy}"
                )

    def verify(self, names: Iterable[str]) -> None:
        """Compare the SHA-256 of files with the manifest.

        Raises:
            InputError: the first damaged file, by name.
        """
        for name in names:
            self.check(name, hash_file(self.path / name))

    def check(self, name: str, record: FileRecord) -> None:
        """Compare the size and SHA-256 found in a file with the manifest.

        Raises:
            InputError: they differ.
        """
        if record != self.files[name]:
            raise InputError(
                f"{self.path / name}: damaged, its SHA-256 is not the manifest's; {self.remedy}"
            )

    def open(self, name: str) -> SafetensorsFile:
        """Open one of the safetensors files."""
        return SafetensorsFile(self.path / name)


class ConvertedWeights(VerifiedFiles):
    """A directory of weights made by `convert` or `save`, compared with its manifest.

    Attributes:
        manifest: what the directory must contain.
    """

    def __init__(self, path: Path, remedy: str = "convert again"):
        """Read the manifest and compare names and sizes of the files with it.

        Args:
            path: the directory.
            remedy: what to do when it is damaged, for messages.

        Raises:
            InputError: no converted weights, or a file is missing, extra or of another size.
        """
        self.manifest = read_manifest(path, remedy)
        super().__init__(path, self.manifest.files, remedy, "converted weights")
