"""U-FedDO's local rule: a teacher that stays at the site teaches the light student that travels.

    teacher:  min L(T(x), y)
    student:  (1 - alpha) L(S(x), y) + alpha * tau^2 * KL(softmax(z_T / tau) || softmax(z_S / tau))

with the teacher's logits detached (Hinton et al. 2015; U-FedDO, section 4 of its English sibling, ICIC 2023). The
teacher's parameters and its Adam moments live in the site's private state between rounds.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from medfl.errors import StudyError
from medfl.learning.optimizers import clip_gradient
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medfl.learning.flat_optimizers import FlatAdam

_TEACHER = "distillation.teacher"
_MOMENTS = {name: f"distillation.{name}" for name in ("exp_avg", "exp_avg_sq", "step")}
"""The names of the teacher's Adam moments in the site's private state."""


class DistillationConfig(PluginConfig):
    kind: Literal["distillation"] = "distillation"
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher's logits against the labels")
    temperature: float = Field(2.0, gt=0)
    teacher_learning_rate: float = Field(2e-3, gt=0)
    teacher_weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(5.0, gt=0)

    def traits(self) -> frozenset[str]:
        return frozenset({"own-loss", "needs-teacher"})


class Distillation(LocalRule):
    Config = DistillationConfig
    config: DistillationConfig

    def begin(self, context: LocalContext) -> None:
        from medfl.learning.flat_optimizers import FlatAdam

        if context.local is None:
            raise StudyError.at("rules.distillation", "the task has no teacher", "set task.teacher")
        teacher = context.local
        teacher.module.train()
        if _TEACHER in context.state:
            teacher.load(context.state[_TEACHER])
        optimizer = FlatAdam(
            teacher.parameters,
            self.config.teacher_learning_rate,
            weight_decay=self.config.teacher_weight_decay,
            decoupled=False,
        )
        if _MOMENTS["step"] in context.state:
            _restore(optimizer, context.state)
        context.scratch["teacher_optimizer"] = optimizer

    def loss(self, context: LocalContext, module: "nn.Module", batch: Any) -> "Tensor":
        teacher_logits = self._teach(context, batch)
        logits = context.task.logits(module, batch)
        hard = context.task.supervised(logits, batch)
        soft = softened_divergence(teacher_logits, logits, self.config.temperature)
        return (1 - self.config.alpha) * hard + self.config.alpha * soft

    def _teach(self, context: LocalContext, batch: Any) -> "Tensor":
        teacher = context.local
        if teacher is None:
            raise StudyError.at("rules.distillation", "the task has no teacher", "set task.teacher")
        teacher.gradient.zero_()
        logits = context.task.logits(teacher.module, batch)
        context.task.supervised(logits, batch).backward()  # type: ignore[no-untyped-call]
        clip_gradient(teacher.gradient, self.config.gradient_clip)
        context.scratch["teacher_optimizer"].step()
        return logits.detach()

    def finish(self, context: LocalContext) -> None:
        if context.local is None or not context.steps:
            return
        moments = context.scratch["teacher_optimizer"].state
        context.state[_TEACHER] = context.local.store()
        for moment, name in _MOMENTS.items():
            context.state[name] = moments[moment].to("cpu", copy=True).numpy()


def _restore(optimizer: "FlatAdam", state: Any) -> None:
    import torch

    moments = {moment: torch.from_numpy(state[name].copy()) for moment, name in _MOMENTS.items()}
    optimizer.load_state_dict({"state": {0: moments}})


def softened_divergence(teacher: "Tensor", student: "Tensor", temperature: float) -> "Tensor":
    """tau^2 KL(softmax(teacher/tau) || softmax(student/tau)), mean over batch and positions; class axis 1."""
    from torch.nn import functional as F

    target = F.log_softmax(teacher / temperature, dim=1)
    found = F.log_softmax(student / temperature, dim=1)
    divergence = F.kl_div(found, target, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence.mean()
