"""python -m jobs.evaluate_samples: says which command does this now."""

import sys

_NOW = """error: evaluate-samples is part of evaluate now; use
  semantica evaluate --samples SAMPLES --checkpoint CHECKPOINT --data ENCODINGS --out OUT
Its --guidance is --details-guidance there, --seed is --baseline-seed, --no-inception is --extractor encoder."""

if __name__ == "__main__":
    sys.exit(_NOW)
