"""``python -m pnapo_bench`` is ``pnapo-bench``."""

from pnapo_bench.cli import main

if __name__ == "__main__":
    main()
