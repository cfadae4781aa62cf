"""`python -m keras_earlyexit` is the command `keras-earlyexit`."""

import sys

from keras_earlyexit.cli import main

if __name__ == "__main__":
    sys.exit(main())
