"""What of a study a hospital's policy does not allow."""

from collections.abc import Mapping

from medfl.errors import Faults
from medfl.study.model import Policy, Study


def policy_refusals(study: Study, name: str, policy: Policy, cases: Mapping[str, int]) -> Faults:
    """Everything in a study that the policy of the site `name` does not allow. cases: the site's, by split."""
    where, unseen, faults = f"site {name}, policy", name in study.evaluation.unseen, Faults()
    mechanism = study.privacy
    told = mechanism is None or mechanism.site_metrics == "listed" or unseen
    if told and not policy.metrics_may_leave and cases.keys() & {"val", "test"}:
        faults.add(
            where,
            "keeps the model's metrics on its images in the house",
            "set privacy.site_metrics: withheld, or policy.metrics_may_leave",
        )
    if unseen or "train" not in cases:
        return faults
    unit = None if mechanism is None else next(t[5:] for t in mechanism.traits() if t.startswith("unit-"))
    if policy.units is not None and unit not in policy.units:
        found = "the study has no differential privacy" if unit is None else f"the study protects the unit {unit}"
        faults.add(where, f"{found}, the site asks for {' or '.join(policy.units)}", "change the study's privacy")
    if policy.channels is not None and study.update.channel.kind not in policy.channels:
        faults.add(
            where,
            f"the study's channel is {study.update.channel.kind}, the site asks for {' or '.join(policy.channels)}",
            "change update.channel",
        )
    sealed = policy.channels is not None and "clear" not in policy.channels
    if sealed and study.tells_places and not policy.places_may_leave:
        faults.add(
            where,
            f"lets no update leave in the clear, and the sub-model {study.update.submodel.kind} tells the coordinator "
            "where the site's update is large",
            "set update.submodel to last_aggregate or a shared seeded_mask, or policy.places_may_leave",
        )
    if study.sends_prototypes and policy.prototypes_may_leave is False:
        faults.add(
            where,
            "does not consent to gradients of single images, which give classes away and images back",
            "set policy.prototypes_may_leave: true, or use local.rules: {kind: glfc, old_model: own}",
        )
    epsilon, ceiling = None if mechanism is None else mechanism.epsilon, policy.max_epsilon
    if ceiling is not None and (epsilon is None or epsilon > ceiling):
        asks = "has no bound" if epsilon is None else f"asks for {epsilon:g}"
        faults.add(where, f"allows epsilon {ceiling:g}, the study {asks}", "set or lower privacy.epsilon")
    delta = None if mechanism is None else mechanism.delta
    largest = policy.max_delta or 1 / cases["train"]
    if ceiling is not None and delta is not None and delta > largest:
        faults.add(where, f"allows delta {largest:.2g}, the study asks for {delta:g}", "lower privacy.delta")
    return faults
