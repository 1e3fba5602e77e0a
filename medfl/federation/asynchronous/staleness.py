"""How much an update counts that was trained on an older model: s(staleness) in (0, 1], with s(0) = 1.

C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization", OPT 2020 (arXiv 1903.03934), section 5.2.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class _Weight(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Constant(_Weight):
    """1: staleness does not matter."""

    kind: Literal["constant"] = "constant"

    def of(self, staleness: int) -> float:
        return 1.0


class Polynomial(_Weight):
    """(staleness + 1)^-a."""

    kind: Literal["polynomial"] = "polynomial"
    a: float = Field(0.5, gt=0)

    def of(self, staleness: int) -> float:
        return float((staleness + 1) ** -self.a)


class Hinge(_Weight):
    """1 up to a staleness of b, then 1 / (a (staleness - b) + 1)."""

    kind: Literal["hinge"] = "hinge"
    a: float = Field(10.0, gt=0)
    b: int = Field(4, ge=0)

    def of(self, staleness: int) -> float:
        return 1.0 if staleness <= self.b else 1 / (self.a * (staleness - self.b) + 1)


def _expand(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


StalenessWeight = Annotated[Constant | Polynomial | Hinge, Field(discriminator="kind"), BeforeValidator(_expand)]
"""By `kind`; a word alone takes the defaults."""
