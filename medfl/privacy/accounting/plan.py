"""What a budget buys, before anything runs: noise, predicted signal, and rounds by each accountant."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medfl.errors import Faults, InputError
from medfl.privacy.accounting.base import DELTA_REMEDY, Budget, GaussianEvent
from medfl.privacy.accounting.bounds import Bound, bounds
from medfl.privacy.accounting.calibrate import LOW_SIGNAL, noise_multiplier, signal_to_noise, steps_allowed

Mode = Literal["site", "patient", "local"]
_UNITS = {"site": "site", "patient": "patient", "local": "patient"}


@dataclass(frozen=True, slots=True)
class Question:
    """What is planned; None is what was not said.

    unit: "site" or "patient". mode: "site" (the coordinator adds noise to the sum of clipped site updates), "patient"
    (the sites' shares of the noise add up in the sum) or "local" (each site adds all of its own noise). parameters:
    values that travel. sampling_rate: probability with which a patient is drawn for a step. patients: of all sites.
    local_steps: steps between two exchanges; by default one pass over a site's patients.
    """

    unit: str | None = None
    mode: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    rounds: int | None = None
    sites: int | None = None
    parameters: int | None = None
    sampling_rate: float | None = None
    patients: int | None = None
    noise_multiplier: float | None = None
    local_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One accountant: its bound on all planned rounds, and how many rounds it lets the budget pay for."""

    bound: Bound
    rounds: int | None


@dataclass(frozen=True, slots=True)
class Proposal:
    """The answer. steps: steps a round. calibrated: whether the noise multiplier follows from the budget or was given.
    signal_to_noise: None when the question does not say enough. advice: what its reader should do, most urgent first.
    """

    unit: str
    mode: Mode
    budget: Budget
    rounds: int
    sites: int
    steps: int
    sampling_rate: float
    noise_multiplier: float
    calibrated: bool
    parameters: int | None
    signal_to_noise: float | None
    rows: tuple[Row, ...]
    advice: tuple[str, ...]

    @property
    def low_signal(self) -> bool:
        return self.signal_to_noise is not None and self.signal_to_noise < LOW_SIGNAL

    def to_json(self) -> dict[str, Any]:
        """For JSON; the budget's epsilon and delta stand beside the unit and the adjacency that they are about."""
        found = asdict(self)
        rows = [{**row.bound.to_json(), "rounds": row.rounds} for row in self.rows]
        head = {"unit": found.pop("unit"), "adjacency": "add-remove", **found.pop("budget")}
        return {**head, **{key: value for key, value in found.items() if key != "rows"}, "accountants": rows}


def propose(question: Question) -> Proposal:
    """The noise for the budget, or what the given noise costs; InputError names everything that is missing or wrong."""
    _check(question)
    mode = _mode(question)
    budget = Budget(question.epsilon or 0.0, question.delta or 0.0)
    rounds, sites, rate = question.rounds or 0, question.sites or 0, question.sampling_rate or 1.0
    steps = (question.local_steps or math.ceil(1 / rate)) if mode == "local" else 1
    noise = question.noise_multiplier or noise_multiplier(budget, steps * rounds, rate)
    whole = GaussianEvent(noise, rate, steps * rounds)
    rows = tuple(_row(bound, whole, steps, budget) for bound in bounds([whole], budget.delta, whole))
    units = _units(mode, sites, rate, question.patients)
    signal = None if units is None or not question.parameters else signal_to_noise(units, noise, question.parameters)
    return Proposal(
        unit=_UNITS[mode],
        mode=mode,
        budget=budget,
        rounds=rounds,
        sites=sites,
        steps=steps,
        sampling_rate=rate,
        noise_multiplier=noise,
        calibrated=question.noise_multiplier is None,
        parameters=question.parameters,
        signal_to_noise=signal,
        rows=rows,
        advice=tuple(_advice(question, mode, signal, units, noise, rows)),
    )


def _row(bound: Bound, whole: GaussianEvent, steps: int, budget: Budget) -> Row:
    allowed = steps_allowed(budget, whole.noise_multiplier, whole.sampling_rate, bound.accountant)
    return Row(bound, None if allowed is None else allowed // steps)


def _mode(question: Question) -> Mode:
    mode = question.mode or question.unit
    return "local" if mode == "local" else "patient" if mode == "patient" else "site"


def _units(mode: Mode, sites: int, rate: float, patients: int | None) -> float | None:
    """How many clipped contributions add up, expected, before the noise does."""
    if mode == "site":
        return float(sites)
    if patients is None:
        return None
    return rate * patients / (sites if mode == "local" else 1)


def _check(question: Question) -> None:
    faults = Faults()
    _check_mode(question, faults)
    for name in ("epsilon", "rounds", "sites"):
        if getattr(question, name) is None:
            faults.add(name, "is missing", f"give {_WHAT[name]}")
    if question.delta is None:
        faults.add("delta", "is missing: an epsilon without its delta means nothing", DELTA_REMEDY)
    elif not 0 < question.delta < 1:
        faults.add("delta", f"is {question.delta:g}", DELTA_REMEDY)
    for name, what in _WHAT.items():
        value = getattr(question, name)
        if value is not None and not 0 < value < math.inf:
            faults.add(name, f"is {value:g}", f"give {what}, above 0")
    rate = question.sampling_rate
    if rate is not None and not 0 < rate <= 1:
        faults.add("sampling_rate", f"is {rate:g}", "give a probability above 0 and at most 1")
    faults.raise_if_any(InputError)


def _check_mode(question: Question, faults: Faults) -> None:
    unit, mode = question.unit, question.mode
    if unit is None and mode is None:
        faults.add("unit", "is missing: an epsilon without its unit means nothing", "say site or patient")
    if unit not in (None, "site", "patient"):
        faults.add("unit", f"is {unit!r}", "use site or patient")
    elif mode not in (None, *_UNITS):
        faults.add("mode", f"is {mode!r}", f"use one of: {', '.join(_UNITS)}")
    elif unit and mode and _UNITS[mode] != unit:
        faults.add("mode", f"{mode!r} protects the unit {_UNITS[mode]}, not {unit}", "change the one or the other")
    if "site" in (mode, mode or unit) and question.sampling_rate not in (None, 1):
        remedy = "leave it out: everybody can know which sites take part, so sampling them makes nothing cheaper"
        faults.add("sampling_rate", "does not apply to the unit site", remedy)
    if question.local_steps is not None and mode != "local":
        faults.add("local_steps", "applies to the mode local only", "leave it out, or use the mode local")


def _advice(
    question: Question, mode: Mode, signal: float | None, units: float | None, noise: float, rows: tuple[Row, ...]
) -> list[str]:
    found = []
    if signal is not None and units is not None and signal < LOW_SIGNAL:
        most = int((units / (LOW_SIGNAL * noise)) ** 2)
        remedy = "use the unit patient with the mode patient, or " if mode != "patient" else ""
        fewer = f"train fewer parameters (at most {most}: a head, norms, low-rank factors)" if most else "spend more"
        found.append(
            f"Signal-to-noise is {signal:.2g}, below {LOW_SIGNAL:g}: next to nothing can be learnt. "
            f"{(remedy + fewer).capitalize()}."
        )
    best = next(row for row in rows if row.bound.tightest)
    if best.rounds is not None and best.rounds < (question.rounds or 0):
        found.append(f"The budget pays for {best.rounds} of {question.rounds} rounds; the run would stop there.")
    if question.patients and (question.delta or 0) * question.patients >= 1:
        found.append(f"Delta is not below one over {question.patients} patients: take a smaller one.")
    if mode == "patient" and (question.sites or 0) < 3:
        found.append("A sum of fewer than three sites is never opened: take in more sites, or use the mode local.")
    if mode != "site" and question.sampling_rate is None:
        found.append("Without a sampling rate every patient takes part in every step, which needs the most noise.")
    if signal is None:
        needed = "the number of parameters" + ("" if mode == "site" else " and of patients")
        found.append(f"Give {needed} to see the predicted signal-to-noise.")
    return found


_WHAT = {
    "epsilon": "the budget, such as 8",
    "rounds": "the number of rounds",
    "sites": "the number of sites",
    "parameters": "the number of values that travel",
    "patients": "the number of patients of all sites",
    "noise_multiplier": "the noise's standard deviation over the clip norm",
    "local_steps": "the steps between two exchanges",
}
