"""`python -m cloud_worker`: the command `cloud-worker`."""

import sys

from cloud_worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
