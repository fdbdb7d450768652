"""python -m jobs.pairs: `semantica pairs`, as a script to submit."""

import sys

from semantica.jobs.pairs import main

if __name__ == "__main__":
    sys.exit(main())
