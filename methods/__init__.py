"""One alignment method per file; ``pnapo_bench.registry`` lists them."""

if __name__ != "pnapo_bench.methods":
    raise ImportError(f"import pnapo_bench.methods, not {__name__}: two copies of one class would not be equal")
