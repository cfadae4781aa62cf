"""`python -m edge_worker`: the command `edge-worker`."""

import sys

from edge_worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
