"""python -m jobs.plan: `semantica plan`, as a script to submit."""

import sys

from semantica.jobs.plan import main

if __name__ == "__main__":
    sys.exit(main())
