"""Write a model that runs with float8 weights, and programs of it: `lite3r deploy`.

python -m tools.export_deployment WEIGHTS OUT [--student STUDENT] [--artifact 8x294x518] ...
"""

import sys
from functools import partial

from lite3r_jax.cli import deploy

main = partial(deploy.main, program="python -m tools.export_deployment")

if __name__ == "__main__":
    sys.exit(main())
