"""python -m jobs.doctor: `semantica doctor`, as a script to submit."""

import sys

from semantica.jobs.doctor import main

if __name__ == "__main__":
    sys.exit(main())
