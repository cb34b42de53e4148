"""What an ablation was asked for."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.ablation_grid import Factor
from pipeline.ablation_layout import AblationStages
from pipeline.ablation_results import FactorRecord
from pipeline.artifacts import canonical_json, json_value
from pipeline.options import Invocation

__all__ = ["AblationRequest"]


@dataclass(frozen=True, kw_only=True)
class AblationRequest:
    """What was asked for.

    Attributes:
        invocation: the command, to be typed again.
        factors: keys and values.
        seeds: seeds; a number: so many, from the config's own on.
        stages: which stages.
        title: for people; None: made from the keys.
        keep_going: go on with the other runs where one ends in an error.
    """

    invocation: Invocation
    factors: tuple[Factor, ...]
    seeds: tuple[int, ...] | int
    stages: AblationStages
    title: str | None = None
    keep_going: bool = False

    @property
    def heading(self) -> str:
        """The title: ``Effect of a and b`` where none is given."""
        if self.title is not None:
            return self.title
        keys = " and ".join(factor.key for factor in self.factors)
        return f"Effect of {keys}" if keys else "Seeds"

    @property
    def folder(self) -> str:
        """A name for the folder of results: the keys, and a digest of all but the seeds."""
        parts: list[Any] = [self.invocation.config, self.invocation.overrides]
        parts += [asdict(self.stages), [asdict(factor) for factor in self.factors]]
        digest = hashlib.sha256(canonical_json(json_value(parts)).encode()).hexdigest()
        keys = "+".join(factor.key for factor in self.factors) or "seeds"
        return f"{keys[:60]}-{digest[:8]}"

    def factor_records(self) -> tuple[FactorRecord, ...]:
        """What is varied, for the results file."""
        return tuple(
            FactorRecord(key=factor.key, values={v.label: v.text for v in factor.values})
            for factor in self.factors
        )
