"""Which preference-alignment method makes the better rectified-flow model, for the same data and the same compute?"""

from pathlib import Path

__version__ = "0.1.0"

# methods/, evals/ and configs/ lie beside the package in a checkout and inside it in a wheel. Run from a checkout, the
# working directory shadows what is installed, so the checkout's root is searched too.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "methods").is_dir():
    __path__.append(str(_ROOT))
