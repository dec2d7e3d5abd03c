"""What held-out labels have said of a blend, kept in a package, for the average of several models.

Sites that may not show each other their labels can still judge a blend together: the likelihood of what is independent
is a product. So the logarithms of the likelihoods that the sites have found for the same table of blends are added, and
the prior counts once (the Bayesian committee machine, Tresp 2000, Neural Computation 12). What travels is the table,
and no forecast or label of any pixel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from geopeft.objective import BLENDS

_PRIOR, _HERE, _ELSEWHERE = "evidence.prior", "evidence.here", "evidence.elsewhere."
PREFIX = "evidence."


@dataclass(frozen=True, eq=False)
class Evidence:
    """Log-likelihoods of blends, tables as `objective.blend_evidence` gives them.

    Args:
        prior: the network's share that was likely before any label was looked at.
        here: from labels that were held out of a model's training, in a region that it has learned from.
        elsewhere: from labels in regions that a model had never seen: the model that a training starts from is judged
            before it learns. By a checksum of the table, so that one that reaches an average on several ways counts
            once.
    """

    prior: float
    here: np.ndarray
    elsewhere: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Evidence | None:
        """Takes what `arrays` gave out of a mapping; None where it is not there or not sound."""
        prior, here = (arrays.get(name) for name in (_PRIOR, _HERE))
        tables = {name.removeprefix(_ELSEWHERE): a for name, a in arrays.items() if name.startswith(_ELSEWHERE)}
        if prior is None or here is None or prior.shape != (1,) or not 0 < float(prior[0]) < 1:
            return None
        if any(table.shape != BLENDS for table in (here, *tables.values())):
            return None
        found = {name: table.astype(np.float64) for name, table in tables.items()}
        return cls(float(prior[0]), here.astype(np.float64), found)

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays by name."""
        tables = {_ELSEWHERE + name: np.asarray(table, np.float32) for name, table in self.elsewhere.items()}
        return {_PRIOR: np.array([self.prior], np.float32), _HERE: np.asarray(self.here, np.float32), **tables}

    @property
    def whole(self) -> np.ndarray:
        """All of it together."""
        total: np.ndarray = np.sum([self.here, *self.elsewhere.values()], 0)
        return total


def named(table: np.ndarray) -> dict[str, np.ndarray]:
    """A table by its checksum, for `Evidence.elsewhere`."""
    plain = np.ascontiguousarray(table, np.float32)
    return {hashlib.blake2b(plain.tobytes(), digest_size=8).hexdigest(): plain}


def joint(parts: Sequence[Evidence], weights: Sequence[float]) -> Evidence:
    """What several models have found together.

    Args:
        weights: what each model counts, with the sum 1; where all count the same, each one's own labels count in full.
    """
    here = np.sum([len(parts) * weight * part.here for part, weight in zip(parts, weights, strict=True)], 0)
    elsewhere = {name: table for part in parts for name, table in part.elsewhere.items()}
    return Evidence(float(np.average([part.prior for part in parts], weights=weights)), here, elsewhere)
