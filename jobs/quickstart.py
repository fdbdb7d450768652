"""python -m jobs.quickstart: `semantica quickstart`, as a script to submit."""

import sys

from semantica.jobs.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
