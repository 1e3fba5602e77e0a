"""A number that does not move."""

from typing import Literal

from medfl.hyperparameters.base import Hyperparameter, HyperparameterConfig, Progress


class ConstantConfig(HyperparameterConfig):
    kind: Literal["constant"] = "constant"
    value: float

    def lowest(self) -> float:
        return self.value


class Constant(Hyperparameter):
    Config = ConstantConfig
    config: ConstantConfig

    def value(self) -> float:
        return self.config.value

    def update(self, progress: Progress) -> None:
        pass
