"""python -m jobs.sweep: `semantica sweep`, as a script to submit."""

import sys

from semantica.jobs.sweep import main

if __name__ == "__main__":
    sys.exit(main())
