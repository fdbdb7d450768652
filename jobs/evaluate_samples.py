"""python -m jobs.evaluate_samples: says which command does this now."""

from __future__ import annotations

import sys

_NOW = """error: jobs.evaluate_samples is part of jobs.evaluate now; use
  python -m jobs.evaluate --samples SAMPLES --checkpoint CHECKPOINT --data ENCODINGS --out OUT
Its --guidance is --details-guidance there, --seed is --baseline-seed, --no-inception is --extractor encoder."""


def main() -> int:
    """The exit code of a wrong command."""
    print(_NOW, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
