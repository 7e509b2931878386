"""Convert a PyTorch checkpoint, or write one again: `lite3r convert`, which reads .pt files, too.

python -m tools.convert_torch_weights vggt SOURCE OUT [--config FILE] [--overwrite]
python -m tools.convert_torch_weights da3 SOURCE OUT [--config FILE] [--overwrite]
python -m tools.convert_torch_weights pi3 SOURCE OUT [--config FILE] [--overwrite]
python -m tools.convert_torch_weights export OUT FILE.safetensors [--overwrite]
"""

import sys
from functools import partial

from lite3r_jax.cli import convert
from tools.convert_torch_weights.torch_file import SUFFIXES, TorchFile

main = partial(
    convert.main,
    program="python -m tools.convert_torch_weights",
    readers=dict.fromkeys(SUFFIXES, TorchFile),
)

if __name__ == "__main__":
    sys.exit(main())
