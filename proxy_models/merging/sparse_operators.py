"""Operators that keep a part of what each component has learned: TIES, DARE and breadcrumbs.

All are theta = theta_0 + scale * (a sum of sparsified displacements tau_k), and need the base. They were made to keep several fine-tuned
skills in one model, where linear averaging dilutes each; as stand-ins for a mixture they rank a little worse than linear (DeMix, arXiv
2602.00747). Thresholds are exact, over a piece (`pieces`), by one more pass that holds one piece of one component. Equal magnitudes stay
together.

The trade-off: identical components do not merge to the component unless all of it is kept; in DARE they do on average over seeds.

Legend: K components; X rows of a block and whatever axes follow.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxy_models.merging.operators import Combine, check_positive
from proxy_models.merging.pieces import Block, Piece, weighted_sum


@dataclass(frozen=True)
class Ties:
    """Trim, elect sign, merge (arXiv 2306.01708, section 3), with weights: the sign of an element is that of sum w_k tau_k over what
    trimming kept, and only components that agree with it enter.

    The equation is that of MergeME in the methods file [S]: agreeing entries are summed, so theta = theta_0 + scale * sum over agreeing k
    of w_k tau_k. (The paper of TIES takes their mean. With weights that sum to one, the sum is never larger, and a component that stands
    alone moves the merge by its weight, as in linear.) Without trimming and without disagreement it is task arithmetic.

    Attributes:
        density: share of each piece that is kept, the largest magnitudes (.9: DeMix's setting).
        scale: of the merged displacement; MergeME's 1/3 for three experts that are summed is 1 for weights of a third each.
    """

    density: float = 0.9
    scale: float = 1.0
    needs_base = True
    centres_routers = True

    def __post_init__(self) -> None:
        _check_share("density", self.density)
        check_positive("scale", self.scale)

    def prepare(self, piece: Piece) -> Combine:
        limits_K = [_largest_kept(piece, k, self.density) for k in range(len(piece.components))]

        def combine(block: Block) -> Tensor:
            trimmed_K = [torch.where(block.magnitude(k) >= limit, block.displacement(k), 0.0) for k, limit in enumerate(limits_K)]
            sign_X = weighted_sum(piece.weights_K, trimmed_K).sign_()
            agreeing = (torch.where(trimmed_X.sign() == sign_X, trimmed_X, 0.0) for trimmed_X in trimmed_K)
            return block.base() + self.scale * weighted_sum(piece.weights_K, agreeing)

        return combine


@dataclass(frozen=True)
class Dare:
    """Drop and rescale (arXiv 2311.03099, section 3.2): theta = theta_0 + scale * sum w_k m_k tau_k / density, m_k independent coins that
    keep a share `density` of the elements.

    On average over seeds it is task arithmetic. A component's coins depend on the seed, its name and the tensor, not on whom it is merged
    with.

    Attributes:
        density: chance of an element to be kept (.9: DeMix's setting).
    """

    density: float = 0.9
    seed: int = 0
    scale: float = 1.0
    needs_base = True
    centres_routers = True

    def __post_init__(self) -> None:
        _check_share("density", self.density)
        check_positive("scale", self.scale)

    def prepare(self, piece: Piece) -> Combine:
        coins_K = [self._coins(component.name, piece) for component in piece.components]

        def combine(block: Block) -> Tensor:
            shape = block.theta_KX.shape[1:]
            kept = (
                torch.where(torch.from_numpy(coins.random(shape) < self.density), block.displacement(k) / self.density, 0.0)
                for k, coins in enumerate(coins_K)
            )
            return block.base() + self.scale * weighted_sum(piece.weights_K, kept)

        return combine

    def _coins(self, name: str, piece: Piece) -> np.random.Generator:
        """Tossed element by element in order, so that blocks of any size see the same."""
        words = f"{self.seed} {name} {piece.tensor} {piece.expert}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little"))


@dataclass(frozen=True)
class Breadcrumbs:
    """theta = theta_0 + scale * sum w_k m_k tau_k, m_k without the largest and the smallest magnitudes of a piece (arXiv 2312.06795,
    section 3).

    Attributes:
        density: share of each piece that is kept; outliers: share of the largest that is left out (.9 and .01: DeMix's settings). What
            remains is left out from below.
    """

    density: float = 0.9
    outliers: float = 0.01
    scale: float = 1.0
    needs_base = True
    centres_routers = True

    def __post_init__(self) -> None:
        _check_share("density", self.density)
        check_positive("scale", self.scale)
        if not 0 <= self.outliers <= 1 - self.density + 1e-9:
            raise ValueError(
                f"outliers is {self.outliers}; it must be at least 0, and with density {self.density} at most {1 - self.density:.6g}."
            )

    def prepare(self, piece: Piece) -> Combine:
        limits_K = [self._limits(piece, k) for k in range(len(piece.components))]

        def combine(block: Block) -> Tensor:
            def kept(k: int) -> Tensor:
                (least, largest), magnitude_X = limits_K[k], block.magnitude(k)
                return torch.where((magnitude_X >= least) & (magnitude_X <= largest), block.displacement(k), 0.0)

            return block.base() + self.scale * weighted_sum(piece.weights_K, (kept(k) for k in range(len(limits_K))))

        return combine

    def _limits(self, piece: Piece, k: int) -> tuple[float, float]:
        """Least and largest magnitude that is kept."""
        above = min(round(self.outliers * piece.elements), piece.elements - 1)
        kept = min(_kept(piece, self.density), piece.elements - above)
        largest, least = piece.elements - 1 - above, piece.elements - above - kept
        ordered = piece.magnitudes(k)
        ordered.partition([least, largest])
        return float(ordered[least]), float(ordered[largest])


def _kept(piece: Piece, density: float) -> int:
    """How many elements of a piece are kept; one at least."""
    return max(1, round(density * piece.elements))


def _largest_kept(piece: Piece, k: int, density: float) -> float:
    """The least of the magnitudes that are kept if the largest are."""
    place = piece.elements - _kept(piece, density)
    if place == 0:
        return 0.0
    magnitudes: NDArray[np.float32] = piece.magnitudes(k)
    magnitudes.partition(place)  # in place: no second vector
    return float(magnitudes[place])


def _check_share(setting: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{setting} is {value}; it must be above 0 and at most 1.")
