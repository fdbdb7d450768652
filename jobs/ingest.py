"""python -m jobs.ingest: `semantica ingest`, as a script to submit."""

import sys

from semantica.jobs.ingest import main

if __name__ == "__main__":
    sys.exit(main())
