"""`lite3r convert`: a PyTorch checkpoint to weights of this package, and back.

lite3r convert vggt SOURCE OUT [--config FILE] [--overwrite]
lite3r convert da3 SOURCE OUT [--config FILE] [--overwrite]
lite3r convert pi3 SOURCE OUT [--config FILE] [--overwrite]
lite3r convert export OUT FILE.safetensors [--overwrite]
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lite3r_jax.backbones.base import backbone_names, get_backbone
from lite3r_jax.cli.programs import Parser, exit_code
from lite3r_jax.errors import InputError, printable
from lite3r_jax.folder_lock import locked_beside
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.convert import convert, license_beside
from lite3r_jax.weights.export import export
from lite3r_jax.weights.manifest import Origin
from lite3r_jax.weights.safetensors_file import TensorSource, open_safetensors

Readers = Mapping[str, Callable[[Path, str | None], TensorSource]]
"""Suffix of a file -> function that opens it, given the entry that holds the tensors."""
TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def parser(program: str = "lite3r convert") -> Parser:
    """Builds the parser of the command line; `program` is the name that its messages show."""
    top = Parser(prog=program, description="Convert checkpoints.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name in backbone_names():
        kind = get_backbone(name).checkpoint
        command = commands.add_parser(name, help=f"convert a {kind.title} checkpoint")
        command.add_argument(
            "source",
            type=Path,
            help=".safetensors file, its shard index, the directory of one of these, or "
            ".pt/.pth/.bin (needs torch)",
        )
        command.add_argument("out", type=Path, help="directory to make")
        command.add_argument(
            "--config",
            type=Path,
            help="JSON config, for da3 also the hub's config.json; default: the published model, "
            "for da3 DA3-Large",
        )
        command.add_argument(
            "--heads", help=f"heads the checkpoint has; default: {','.join(kind.heads)}"
        )
        command.add_argument(
            "--ignore",
            action="append",
            default=[],
            metavar="NAME",
            help="tensor that is not known here and may be left out; can be given several times",
        )
        command.add_argument("--license", help="license of the weights, for the report")
        command.add_argument("--key", help="entry of a .pt file that is the state dict")
        command.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    back = commands.add_parser("export", help="write the upstream checkpoint again, bit for bit")
    back.add_argument("weights", type=Path, help="directory of converted weights")
    back.add_argument("file", type=Path, help=".safetensors file to write")
    back.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return top


def open_source(path: Path, key: str | None = None, readers: Readers | None = None) -> TensorSource:
    """Open a checkpoint of any readable kind.

    Args:
        path: the file, or a directory with one.
        key: entry of a PyTorch file that is the state dict.
        readers: what opens files that are no safetensors.

    Raises:
        InputError: not there, of no readable kind, or malformed.
    """
    if path.suffix in (readers or {}) and not path.is_dir():
        return (readers or {})[path.suffix](path, key)
    if path.suffix in TORCH_SUFFIXES and not path.is_dir():
        raise InputError(
            f"{path}: is read with torch, which is no part of this package; in a clone of the"
            " project, with torch: python -m tools.convert_torch_weights"
        )
    if key is not None:
        raise InputError(f"{path}: --key is only for {', '.join(TORCH_SUFFIXES)} files")
    known = os.path.isdir(path) or path.name.endswith((".safetensors", ".safetensors.index.json"))
    if os.path.exists(path) and not known:
        raise InputError(
            f"{path}: expected .safetensors, .safetensors.index.json, "
            f"{', '.join(TORCH_SUFFIXES)} or a directory"
        )
    return open_safetensors(path)


def run(arguments: argparse.Namespace, readers: Readers | None = None) -> int:
    """Converts or exports the checkpoint that the command line names and prints the report.

    Raises:
        InputError: see `convert` and `export`.
    """
    target = arguments.file if arguments.command == "export" else arguments.out
    with locked_beside(target, "convert"):
        return _run(arguments, readers)


def _run(arguments: argparse.Namespace, readers: Readers | None) -> int:
    if arguments.command == "export":
        record = export(arguments.weights, arguments.file, overwrite=arguments.overwrite)
        print(f"{printable(arguments.file)}  {record.size:,} bytes  sha256 {record.sha256}")
        return 0
    config = None if arguments.config is None else strict_json.read_object(arguments.config)
    heads = None if arguments.heads is None else [h for h in arguments.heads.split(",") if h]
    source = open_source(arguments.source, arguments.key, readers)
    try:
        said = arguments.license
        origin = Origin(said, "the command line") if said else license_beside(source)
        manifest = convert(
            source,
            arguments.out,
            backbone=arguments.command,
            config=config,
            heads=heads,
            overwrite=arguments.overwrite,
            origin=origin,
            ignore=arguments.ignore,
        )
    finally:
        source.close()
    print(printable(manifest.report(), lines=True))
    for left in sorted(arguments.out.absolute().parent.glob(f".{arguments.out.name}.*-*")):
        print(f"note     {printable(left)} was left by an interrupted run; delete it")
    return 0


def main(
    arguments: Sequence[str] | None = None,
    program: str = "lite3r convert",
    readers: Readers | None = None,
) -> int:
    """Runs `lite3r convert` and returns the exit code.

    It is 0, 2 for bad input (one line), 130 when interrupted, 143 when terminated.
    """
    return exit_code(lambda: run(parser(program).parse_args(arguments), readers))
