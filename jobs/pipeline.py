"""python -m jobs.pipeline: `semantica pipeline`, as a script to submit."""

import sys

from semantica.jobs.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
