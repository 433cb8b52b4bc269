"""``python -m gen1_core``: the same as the ``gen1`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
