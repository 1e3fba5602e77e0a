"""The numbers of a round or a summary under flat names, as trackers of experiments want them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Named = Iterator[tuple[str, float]]


def of_round(record: Mapping[str, Any]) -> Named:
    """Names and finite values of one line of `rounds.jsonl`: losses, metrics, epochs, hyper-parameters, regulator,
    bytes and seconds."""
    losses = record["losses"]
    yield from _finite("loss/train", losses["mean"])
    for site, loss in losses["sites"].items():
        yield from _finite(f"loss_by_site/{site}", loss)
    if record["metrics"]:
        yield from of_metrics("val", record["metrics"])
    for name, value in record["hyperparameters"].items():
        yield from _finite(f"hyperparameters/{name}", value)
    for site, epochs in record["local_epochs"].items():
        yield f"local_epochs/{site}", float(epochs)
    yield "sites/participants", float(len(record["participants"]))
    yield "sites/refused", float(len(record["refused"]))
    yield "sites/failed", float(len(record["failed"]))
    yield from _finite("privacy/epsilon", record["epsilon"])
    for name, count in record["bytes"].items():
        if isinstance(count, int | float):
            yield f"bytes/{name}", float(count)
    for phase, seconds in record["seconds"].items():
        yield f"seconds/{phase}", float(seconds)


def of_metrics(prefix: str, metrics: Mapping[str, Any]) -> Named:
    """An evaluation's metrics: `<prefix>/<metric>`, `<prefix>_by_class/<metric>/<class>`,
    `<prefix>_by_site/<metric>/<site>`, and `<prefix>_unseen/<metric>/<site>`."""
    for name, entry in metrics["global"].items():
        yield from _finite(f"{prefix}/{name}", entry.get("value"))
        for class_name, own in (entry.get("classes") or {}).items():
            yield from _finite(f"{prefix}_by_class/{name}/{class_name}", own["value"])
    for part, sites in (("by_site", metrics["sites"]), ("unseen", metrics["unseen"])):
        for site, own in sites.items():
            for name, entry in own.items():
                yield from _finite(f"{prefix}_{part}/{name}/{site}", entry.get("value"))


def _finite(name: str, value: float | None) -> Named:
    if value is not None and math.isfinite(value):
        yield name, float(value)
