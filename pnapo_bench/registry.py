"""Names and what they stand for: explicit tables for our own, entry points for other people's.

A third party's package announces its classes in the entry-point groups ``pnapo_bench.methods``,
``pnapo_bench.evals`` and ``pnapo_bench.backbones``; they are imported only when used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any, Literal

from pnapo_bench.errors import UserError, unknown

Kind = Literal["methods", "evals", "backbones"]

TABLES: dict[Kind, dict[str, str]] = {
    "methods": {
        "base": "pnapo_bench.methods.base:Base",
        "sft": "pnapo_bench.methods.sft:SFT",
        "sft-prior": "pnapo_bench.methods.sft_prior:SFTPrior",
        "diffusion-dpo": "pnapo_bench.methods.diffusion_dpo:DiffusionDPO",
        "diffusion-dpo-independent": "pnapo_bench.methods.diffusion_dpo_independent:DiffusionDPOIndependent",
        "dpo-dynamic-beta": "pnapo_bench.methods.dpo_dynamic_beta:DPODynamicBeta",
        "ipo": "pnapo_bench.methods.ipo:IPO",
        "pnapo": "pnapo_bench.methods.pnapo:PNAPO",
        "pnapo-fixed-beta": "pnapo_bench.methods.pnapo_fixed_beta:PNAPOFixedBeta",
        "pnapo-permuted": "pnapo_bench.methods.pnapo_permuted:PNAPOPermuted",
    },
    "evals": {
        "shapes_accuracy": "pnapo_bench.evals.shapes_accuracy:ShapesAccuracy",
        "shapes_reward": "pnapo_bench.evals.shapes_reward:ShapesReward",
        "shapes_quality": "pnapo_bench.evals.shapes_quality:ShapesQuality",
    },
    "backbones": {
        "tiny": "pnapo_bench.backbones.tiny:Tiny",
    },
}


def names(kind: Kind) -> dict[str, str]:
    """Every known name with its ``module:Class``, ours first.

    Raises:
        UserError: two packages, or a package and we, use the same name.
    """
    table = dict(TABLES[kind])
    for point in entry_points(group=f"pnapo_bench.{kind}"):
        if point.name in table:
            raise UserError(
                f"two {kind} are called {point.name!r}: {table[point.name]} and {point.value}; "
                f"rename one in its package's entry points, or uninstall it"
            )
        table[point.name] = point.value
    return table


def get(kind: Kind, name: str) -> Any:
    """The class of a name.

    Raises:
        UserError: the name is unknown, or its module cannot be imported.
    """
    table = names(kind)
    if name not in table:
        raise unknown(kind.removesuffix("s"), name, table)
    module, _, attribute = table[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{kind.removesuffix('s')} {name!r} is announced as {table[name]}, which cannot be imported: {error}"
        ) from error
    if found.name != name:
        raise UserError(f"{table[name]} is announced as {name!r} but calls itself {found.name!r}; make the two agree")
    return found
