"""What did a whole run give away? Many canaries in one run, each a unit of its own (Andrew et al., "One-shot empirical
privacy estimation for federated learning", ICLR 2024).

A canary is a unit whose contribution has the norm of the clip and a random direction. In many dimensions random
directions are nearly orthogonal, so that one run with a thousand canaries is a thousand experiments. The statistic of a
canary is the projection of what was released on its direction; canaries that were drawn but left out of the run show
what it is without the canary.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfl.privacy.accounting.gaussian import epsilon_of
from medfl.privacy.audit.mechanism import CONFIDENCE, Estimate, Observations, mechanism_mu

FloatMatrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EpsilonEstimate:
    """An epsilon at `delta` and the interval that holds it with `confidence`."""

    epsilon: float
    low: float
    high: float
    delta: float
    confidence: float

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:.3g} [{self.low:.3g}, {self.high:.3g}] at {self.confidence:g}"


def gaussian_canaries(count: int, size: int, rng: np.random.Generator) -> FloatMatrix:
    """`count` random directions [count, size] of norm 1."""
    found = rng.standard_normal((count, size), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def canary_mu(included: Observations, left_out: Observations, size: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """The mu of a run by the projections of its release of `size` values on the canaries that were in it [n] and on as
    random ones that were not [m].

    Canaries disturb each other: with n of them in the release, a projection has the variance of the noise and n / size
    of the square of the signal, which is taken out here. Infinite where that is all there is.
    """
    found = mechanism_mu(included, left_out, confidence=confidence)

    def alone(mu: float) -> float:
        noise = 1 - included.size / size * mu**2
        return mu / math.sqrt(noise) if noise > 0 else math.inf

    return Estimate(alone(found.mu), alone(found.low), alone(found.high), confidence)


def canary_epsilon(
    included: Observations, left_out: Observations, size: int, delta: float, *, confidence: float = CONFIDENCE
) -> EpsilonEstimate:
    """As `canary_mu`, as the epsilon at `delta` of Gaussian noise of that mu (exact; Balle & Wang 2018)."""
    found = canary_mu(included, left_out, size, confidence=confidence)
    epsilon, low, high = (epsilon_of(mu, delta) for mu in (found.mu, found.low, found.high))
    return EpsilonEstimate(epsilon, low, high, delta, confidence)
