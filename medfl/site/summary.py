"""A study in plain language, for the data steward who decides on it. Every sentence follows from the study's parts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfl.hyperparameters.constant import ConstantConfig
from medfl.privacy.mechanisms.base import Mechanism
from medfl.privacy.trust import trust_table
from medfl.site.studies import refusals
from medfl.study.build import build_mechanism, build_task
from medfl.study.digest import study_hash
from medfl.study.model import Site, Study
from medfl.study.shared_images import reads_shared
from medfl.study.statement import plain_statement
from medfl.tasks.base import TaskConfig

_SMALL, _LARGE = 1_000_000, 20_000_000
_CHANNELS = {
    "clear": "in the clear: the coordinator can look at your site's update by itself",
    "masks": "under a mask: the coordinator can open only the sum of several sites' updates",
    "he": "encrypted: only the sum of several sites' updates can be opened",
}
_NO_PRIVACY = (
    "There is NO differential privacy: nothing bounds what can be learnt about a patient from what leaves. A trained "
    "model, or a single update, can reveal that a patient's images were used, or details of them."
)


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """hash: of the study. sections: for reading. facts: the same for programs, JSON-able."""

    hash: str
    sections: tuple[Section, ...]
    facts: Mapping[str, Any]

    def text(self) -> str:
        return "\n\n".join("\n".join([part.title, *(f"  - {line}" for line in part.lines)]) for part in self.sections)

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "sections": {part.title: list(part.lines) for part in self.sections}}


def summary(
    study: Study,
    site: Site,
    cases: Mapping[str, int] | None = None,
    peers: Sequence[str] = (),
    values: int | None = None,
    shared: Sequence[int] | None = None,
) -> Summary:
    """What a study means for a site.

    cases: by split, after withdrawals; None while the images have not been counted. peers: the other sites, where they
    are known. values: numbers that a network's update consists of (`shared_values`); None while it was not built.
    shared: images beside its own that the study trains on, by entry of its file (`medfl.study.shared_images.offered`);
    None while they were not counted.
    """
    view = _View(study, site, cases, tuple(peers), values, shared)
    sections = (
        Section("What is trained", tuple(view.trained())),
        Section("On which of your images", tuple(view.images())),
        Section("For how long", tuple(view.duration())),
        Section("What leaves your site", tuple(view.leaves())),
        Section("How patients are protected", tuple(view.protection())),
        Section("Who can see what", tuple(f"{question}: {answer}" for question, answer in view.trust())),
        Section("What your site's policy says", tuple(view.policy())),
        Section("What you decide on", (f"exactly the study with the hash {view.hash}",)),
    )
    return Summary(view.hash, sections, view.facts())


def shared_values(study: Study) -> int:
    """How many numbers the network that travels consists of. Builds it, and so imports torch."""
    from medfl.learning.flat import initial_vector

    return initial_vector(build_task(study), study.seed)[1].size


_PROTOTYPES = (
    "when new classes come: for each of them, the gradient of ONE of your training images, slightly perturbed; the "
    "perturbation protects nobody",
    "such a gradient says which class the image is of, so it tells which classes your site has and since when",
    "the coordinator REBUILDS THE IMAGE from it, which is what it is sent for, and keeps it with the run: whoever "
    "reads the coordinator's files can see an image of one of your patients",
)


class _View:
    def __init__(
        self,
        study: Study,
        site: Site,
        cases: Mapping[str, int] | None,
        peers: tuple[str, ...],
        values: int | None,
        shared: Sequence[int] | None,
    ) -> None:
        self.hash = study_hash(study)
        self._study, self._site, self._cases, self._peers, self._values = study, site, cases, peers, values
        self._shared = shared
        self._mechanism: Mechanism | None = build_mechanism(study)
        self._task = build_task(study)
        self._metrics = list(dict.fromkeys(metric.name for metric in self._task.metrics(self._task.empty())))
        self._trains = site.name not in study.evaluation.unseen and (cases is None or cases.get("train", 0) > 0)

    def trained(self) -> Iterator[str]:
        task = self._study.task
        yield f"{self._study.name}: a network that {_does(task)} ({task.spatial_dims}D images)"
        if self._study.description:
            yield f"in the study lead's words: {self._study.description}"
        if self._values is not None:
            yield f"the network is {self._size()}: {self._values:,} numbers"
        if getattr(task, "teacher", None) is not None:
            yield "a larger network, the teacher, is trained beside it and never leaves your site"

    def images(self) -> Iterator[str]:
        if self._site.data is not None:
            yield f"on the images that your site's file names: {self._site.data}"
        elif self._study.data.source.kind == "synthetic":
            yield "on artificial images that the study makes: your site's file names none of its own"
        else:
            yield "your site's file names no images; the study asks for some"
        if not self._trains:
            yield "none of them are trained on; the model is only evaluated on them"
        elif reads_shared(self._study):
            yield from self._beside_own()
        if self._cases is None:
            yield "how many, by split, is counted when they are loaded; patients who were withdrawn are left out"
            return
        counts = ", ".join(f"{number:,} {split}" for split, number in self._cases.items()) or "none"
        yield f"cases, without those of patients who were withdrawn: {counts}"

    def _beside_own(self) -> Iterator[str]:
        """Images that the site's file shares with its training."""
        if not self._site.shared:
            yield "the study also trains on images that your site's file names under `shared`, and it names none"
        for number, entry in enumerate(self._site.shared):
            count = "" if self._shared is None else f"{self._shared[number]:,} "
            yield (
                f"beside them, for training alone: {count}images of {entry.manifest}, by the consent that your site's "
                f"file states: {entry.consent}; they do not count as yours, and their number and this text are told"
            )

    def duration(self) -> Iterator[str]:
        stop, local, schedule = self._study.stop, self._study.local, self._study.federation.schedule
        yield f"{stop.rounds} rounds at most; more need another approval"
        if stop.target is not None:
            yield f"it ends earlier when {stop.target.metric} reaches {stop.target.value:g}"
        if stop.patience is not None:
            yield f"it ends earlier after {stop.patience} evaluations without a better one"
        if not self._trains:
            return
        epochs = local.epochs
        passes = f"{epochs.value:g}" if isinstance(epochs, ConstantConfig) else f"a number ({epochs.kind}) of"
        if self._noisy_gradients:
            yield "in a round your site takes one step on patients that it draws in secret"
        else:
            yield f"in a round your site makes {passes} pass{'' if passes == '1' else 'es'} over its training images"
        often = {"all": "in every round", "uniform": "in rounds for which the coordinator draws it"}
        yield f"your site takes part {often.get(schedule.kind, f'when the schedule {schedule.kind} says so')}"

    def leaves(self) -> Iterator[str]:
        if self._study.sends_prototypes and self._trains:
            yield "no file leaves, but IMAGES AND LABELS CAN BE TOLD from what leaves when new classes come, see below"
        else:
            yield "images and labels do not leave"
        yield "on joining: how many cases there are by split, why images were skipped (not their names), public keys"
        if self._trains:
            yield f"in each round it takes part in: {self._update()}, {self._channel()}"
            yield f"with it: {', '.join(self._beside())}"
            if self._study.tells_places:
                yield self._places_line()
            if self._study.sends_snapshots:
                yield (
                    "a second vector with each update, in your site's name: how the network had changed by a step of "
                    "the round that the coordinator chooses; after the first step that is what ONE batch of "
                    f"{self._study.local.batch_size} training images tells"
                )
            if self._study.tells_losses:
                yield self._probe_line()
            if "private-mask" in self._study.update.submodel.traits():
                yield (
                    "which of the network's numbers your site keeps, in your site's name: this follows your images and "
                    "tells something of them"
                )
            if self._study.sends_prototypes:
                yield from _PROTOTYPES
        yield self._metrics_line()

    def protection(self) -> Iterator[str]:
        mechanism = self._mechanism
        if mechanism is None:
            yield _NO_PRIVACY
        else:
            yield from self._promise(mechanism)
        yield "not covered by any noise: " + "; ".join(self._not_covered())

    def trust(self) -> list[tuple[str, str]]:
        study = self._study
        channel = study.update.channel.model_dump(mode="json")
        if self._mechanism is None or study.privacy is None:
            rows = trust_table(plain_statement(study)["trust"], channel)
        else:
            rows = trust_table(self._mechanism.trust(channel["kind"]), channel, study.privacy.model_dump(mode="json"))
        return [*rows, ("Other sites", ", ".join(self._peers))] if self._peers else rows

    def policy(self) -> Iterator[str]:
        policy, found = self._site.policy, [fault.what for fault in self._refusals()]
        if found:
            yield from (f"REFUSES the study: {what}" for what in found)
        elif self._cases is None:
            yield "allows what can be judged before the images are counted"
        else:
            yield "allows the study"
        if policy.max_epsilon is not None:
            yield f"over all studies your site's ledger stops at epsilon {policy.max_epsilon:g}"
        if policy.approve == "ask":
            yield "nothing is trained before you approve"
        else:
            yield "studies that it allows are approved without asking you"

    def facts(self) -> dict[str, Any]:
        study, mechanism = self._study, self._mechanism
        return {
            "hash": self.hash,
            "study": study.name,
            "task": study.task.kind,
            "classes": list(study.task.classes),
            "values": self._values,
            "size": None if self._values is None else self._size(),
            "trains": self._trains,
            "cases": None if self._cases is None else dict(self._cases),
            "shared": None if self._shared is None else sum(self._shared),
            "rounds": study.stop.rounds,
            "channel": study.update.channel.kind,
            "tells_places": study.tells_places,
            "prototypes": study.sends_prototypes,
            "snapshots": study.sends_snapshots,
            "probes": study.tells_losses and self._site.policy.metrics_may_leave,
            "metrics": self._metrics if self._told() else [],
            "privacy": {
                "unit": None if mechanism is None else mechanism.unit,
                "epsilon": None if mechanism is None else mechanism.config.epsilon,
                "delta": None if mechanism is None else mechanism.config.delta,
                "mechanism": "none" if mechanism is None else mechanism.describes,
                "not_covered": self._not_covered(),
            },
            "trust": dict(self.trust()),
            "peers": list(self._peers),
            "refusals": [fault.what for fault in self._refusals()],
        }

    @property
    def _noisy_gradients(self) -> bool:
        return self._study.privacy is not None and "gradients" in self._study.privacy.traits()

    def _size(self) -> str:
        values = self._values or 0
        return "small" if values < _SMALL else "large" if values >= _LARGE else "of medium size"

    def _update(self) -> str:
        if self._noisy_gradients:
            return "the sum of its patients' gradients, each clipped, with your site's share of the noise"
        if self._study.privacy is not None and "local-noise" in self._study.privacy.traits():
            return "how training changed the network, with all the noise that your patients need"
        return "how training changed the network (its update)"

    def _channel(self) -> str:
        kind = self._study.update.channel.kind
        way = _CHANNELS.get(kind, f"by the channel {kind}")
        return f"kept until enough sites have one for a sum, then {way}" if self._study.sums_later else way

    def _beside(self) -> list[str]:
        told = ["how many cases were trained on", "how many steps and epochs", "how long it took"]
        return told if self._mechanism else [*told, "the training loss at the start and at the end"]

    def _places_line(self) -> str:
        submodel = self._study.update.submodel
        return (
            f"IN THE CLEAR, whatever the channel: which {getattr(submodel, 'share', 1.0):.2%} of the network's numbers "
            "your site would change most, in your site's name; this tells something of your images, and no noise "
            f"covers it (sub-model {submodel.kind})"
        )

    def _probe_line(self) -> str:
        if not self._site.policy.metrics_may_leave:
            return "no loss of the coordinator's models on your training images leaves: your site's policy keeps it"
        most = getattr(self._study.federation.schedule, "probe_images", None)
        which = "all" if most is None else f"{most:,}"
        fewer = "" if most is None else ", or on all where there are no more"
        return (
            f"as often as the coordinator asks: the loss of a network that it sends, on {which} of your own training "
            f"images or more{fewer}: its sum and how many they are, without noise, and nothing else of them"
        )

    def _told(self) -> bool:
        """Whether the model's metrics on the site's images leave."""
        unseen = self._site.name in self._study.evaluation.unseen
        wanted = self._mechanism is None or self._mechanism.config.site_metrics == "listed" or unseen
        there = self._cases is None or any(self._cases.get(split) for split in ("val", "test"))
        return wanted and there and self._site.policy.metrics_may_leave

    def _metrics_line(self) -> str:
        if not self._told():
            return "the model's metrics on your images do not leave"
        every = self._study.evaluation.every
        often = "after every round" if every == 1 else f"after every {every} rounds"
        names = ", ".join(self._metrics)
        return f"{often} on validation images and at the end on test images, without noise: sums that make {names}"

    def _promise(self, mechanism: Mechanism) -> Iterator[str]:
        config = mechanism.config
        one = "one patient" if mechanism.unit == "patient" else "one whole site"
        yield f"differential privacy for {one}, by {mechanism.describes}; contributions are clipped to {config.clip:g}"
        if config.epsilon is None:
            fixed = f"the noise is fixed (multiplier {config.noise_multiplier:g})"
            yield f"{fixed} and NO budget is set: nothing bounds epsilon but the number of rounds"
            return
        yield f"budget of the whole run: epsilon {config.epsilon:g} at delta {config.delta:g}"
        yield (
            f"that is: from all that is covered, the odds of a guess whether {one} took part change by a factor of at "
            f"most {_factor(config.epsilon)}, but for a chance of {config.delta:g}; smaller is stronger"
        )
        if mechanism.unit == "site":
            yield "it is not a promise about a patient's images beyond that: it hides whether the whole site took part"

    def _not_covered(self) -> list[str]:
        if self._mechanism is not None:
            return self._mechanism.not_covered()
        return list(plain_statement(self._study)["not_covered"])

    def _refusals(self) -> list[Any]:
        return list(refusals(self._study, self._site, self._cases))


def _does(task: TaskConfig) -> str:
    if task.kind == "classification":
        return f"says of each image which of these it shows: {', '.join(task.classes)}"
    if task.kind == "detection":
        return f"finds and frames in each image: {', '.join(task.classes)}"
    if task.kind == "segmentation":
        return f"marks in each image: {', '.join(task.classes[1:])}"
    return f"does the task {task.kind} with {', '.join(task.classes)}"


def _factor(epsilon: float) -> str:
    """e^epsilon, rounded up."""
    if epsilon > math.log(1e6):
        return "more than a million"
    factor = math.exp(epsilon)
    return f"{factor:.2f}" if factor < 10 else f"{math.ceil(factor):,}"
