"""Tables that several commands print."""

from collections.abc import Mapping
from typing import Any

from medfl.cli.output import result


def print_sites(found: Mapping[str, Any]) -> None:
    """Metrics of every site, every unseen site and all sites together; n is the number of cases.

    found: "study", "primary", "metrics" as in summary.json, and "cases" by site on the evaluated split.
    """
    from rich.markup import escape
    from rich.table import Table

    from medfl.report.text import count, label
    from medfl.report.views import columns

    metrics = found["metrics"]
    shown = columns(found["primary"], metrics["global"])[:4]
    table = Table(title=f"{found['study']}: {metrics['split']} images", title_justify="left")
    table.add_column("site", overflow="fold", min_width=18)
    for name in ("n", *map(label, shown)):
        table.add_column(name, justify="right")
    for site, own in {**metrics["sites"], **metrics["unseen"]}.items():
        name = f"{site} (unseen)" if site in metrics["unseen"] else site
        table.add_row(escape(name), f"{found['cases'][site]}", *(value(own.get(metric)) for metric in shown))
    table.add_section()
    over = metrics["over"]
    total = sum(found["cases"][site] for site in over)
    table.add_row(
        f"{count(len(over), 'site')} together", f"{total}", *(value(metrics["global"].get(name)) for name in shown)
    )
    result().print(table)


def value(entry: Mapping[str, Any] | None, support: bool = False) -> str:
    """A metric's entry as text, "-" where it has no value; with `support` followed by its n."""
    if not entry or entry.get("value") is None:
        return "-"
    return f"{entry['value']:.4f}" + (f" ({entry['n']})" if support else "")
