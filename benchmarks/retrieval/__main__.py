"""`python -m benchmarks.retrieval`; see `benchmarks.retrieval.run`."""

import sys

# A process that is spawned reads this file again, and needs none of what the benchmark imports.
if __name__ == "__main__":
    from benchmarks.retrieval.run import main

    sys.exit(main())
