"""One score per file; ``pnapo_bench.registry`` lists them."""

if __name__ != "pnapo_bench.evals":
    raise ImportError(f"import pnapo_bench.evals, not {__name__}: two copies of one class would not be equal")
