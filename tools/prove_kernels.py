"""Kernels against their definitions on the GPU that is here, so that "auto" may take them.

    python -m tools.prove_kernels [OPERATOR ...] [--implementation NAME] [--records FOLDER]

The same as `lite3r prove-kernels`, for a clone that is not installed.
"""

import sys

from lite3r_jax.kernels.prove import main

if __name__ == "__main__":
    sys.exit(main())
