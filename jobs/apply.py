"""python -m jobs.apply: `semantica apply`, as a script to submit."""

import sys

from semantica.jobs.apply import main

if __name__ == "__main__":
    sys.exit(main())
