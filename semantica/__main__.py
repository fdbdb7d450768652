"""`python -m semantica`: the command `semantica`, also where the package is not installed."""

import sys

from semantica.jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
