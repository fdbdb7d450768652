"""python -m jobs.train: `semantica train`, as a script to submit."""

import sys

from semantica.jobs.train import main

if __name__ == "__main__":
    sys.exit(main())
