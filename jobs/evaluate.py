"""python -m jobs.evaluate: `semantica evaluate`, as a script to submit."""

import sys

from semantica.jobs.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
