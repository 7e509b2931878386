"""What a multi-view dataset holds, and everything that is wrong with it: `lite3r check-data`.

    python -m tools.check_dataset SOURCE [--sheet FILE]

Exit code: 0 without faults, 1 with faults, 2 if SOURCE is no dataset.
"""

import sys
from functools import partial

from lite3r_jax.cli import check_data

main = partial(check_data.main, program="python -m tools.check_dataset")

if __name__ == "__main__":
    sys.exit(main())
