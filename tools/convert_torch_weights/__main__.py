"""Convert a PyTorch checkpoint, or write one again.

python -m tools.convert_torch_weights vggt SOURCE OUT [--config FILE] [--overwrite]
python -m tools.convert_torch_weights da3 SOURCE OUT [--config FILE] [--overwrite]
python -m tools.convert_torch_weights export OUT FILE.safetensors [--overwrite]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lite3r_jax.errors import InputError
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.convert import CHECKPOINTS, convert, license_beside
from lite3r_jax.weights.export import export
from lite3r_jax.weights.manifest import Origin
from lite3r_jax.weights.safetensors_file import TensorSource, open_safetensors
from tools.convert_torch_weights import torch_file


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m tools.convert_torch_weights --help")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(prog="python -m tools.convert_torch_weights", description="Convert checkpoints.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for name, kind in CHECKPOINTS.items():
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
        command.add_argument("--license", help="licence of the weights, for the report")
        command.add_argument("--key", help="entry of a .pt file that is the state dict")
        command.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    back = commands.add_parser("export", help="write the upstream checkpoint again, bit for bit")
    back.add_argument("weights", type=Path, help="directory of converted weights")
    back.add_argument("file", type=Path, help=".safetensors file to write")
    back.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return top


def open_source(path: Path, key: str | None = None) -> TensorSource:
    """Open a checkpoint of any readable kind.

    Raises:
        InputError: not there, of no readable kind, or malformed.
    """
    if path.suffix in torch_file.SUFFIXES and not path.is_dir():
        return torch_file.TorchFile(path, key)
    if key is not None:
        raise InputError(f"{path}: --key is only for {', '.join(torch_file.SUFFIXES)} files")
    known = path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json"))
    if path.exists() and not known:
        raise InputError(
            f"{path}: expected .safetensors, .safetensors.index.json, "
            f"{', '.join(torch_file.SUFFIXES)} or a directory"
        )
    return open_safetensors(path)


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says and print the report.

    Raises:
        InputError: see `convert` and `export`.
    """
    if arguments.command == "export":
        record = export(arguments.weights, arguments.file, overwrite=arguments.overwrite)
        print(f"{arguments.file}  {record.size:,} bytes  sha256 {record.sha256}")
        return
    config = None if arguments.config is None else strict_json.read_object(arguments.config)
    heads = None if arguments.heads is None else [h for h in arguments.heads.split(",") if h]
    source = open_source(arguments.source, arguments.key)
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
    print(manifest.report())
    for left in sorted(arguments.out.absolute().parent.glob(f".{arguments.out.name}.*-*")):
        print(f"note     {left} was left by an interrupted run; delete it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    try:
        run(parser().parse_args(arguments))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
