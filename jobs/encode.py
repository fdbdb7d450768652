"""python -m jobs.encode: `semantica encode`, as a script to submit."""

import sys

from semantica.jobs.encode import main

if __name__ == "__main__":
    sys.exit(main())
