"""python -m jobs.generate: `semantica generate`, as a script to submit."""

import sys

from semantica.jobs.generate import main

if __name__ == "__main__":
    sys.exit(main())
