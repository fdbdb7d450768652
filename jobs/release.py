"""python -m jobs.release: `semantica release`, as a script to submit."""

import sys

from semantica.jobs.release import main

if __name__ == "__main__":
    sys.exit(main())
