"""python -m jobs.evaluate_samples: `semantica evaluate-samples`, as a script to submit."""

import sys

from semantica.jobs.evaluate_samples import main

if __name__ == "__main__":
    sys.exit(main())
