"""Measures what a privacy mechanism really gives, from what comes out of it. Every number is an estimate with its
interval; none replaces a proof, and each can refute a claim.

    mechanism_mu    thousands of calls with a worst-case neighbour pair: does the noise match the claim?
    canary_mu       one whole run with many canaries in it: what did the run as a whole give away?
    one_run_epsilon the same run without assuming any shape of the noise: an epsilon that it certainly had
"""

from medfl.privacy.audit.canary import EpsilonEstimate, canary_epsilon, canary_mu
from medfl.privacy.audit.mechanism import Estimate, Finding, finding, mechanism_mu
from medfl.privacy.audit.one_run import one_run_epsilon

__all__ = [
    "EpsilonEstimate",
    "Estimate",
    "Finding",
    "canary_epsilon",
    "canary_mu",
    "finding",
    "mechanism_mu",
    "one_run_epsilon",
]
