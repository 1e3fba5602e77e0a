"""What a person sees while a run goes on: live bars on a terminal, plain lines elsewhere. Both on stderr."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from medfl.coordinator.observer import Observer
from medfl.federation.outcome import Contribution, RoundPlan
from medfl.learning.messages import SiteInfo

_log = logging.getLogger("medfl.progress")

_KEPT_ROWS = 8
# states that come and go in every round
_QUIET = frozenset({"ready", "training", "loading", "connected"})


def make_progress(console: Console, primary: str) -> Observer:
    """Live bars when the console is a terminal, else one plain line a round."""
    return LiveProgress(console, primary) if console.is_terminal else PlainProgress(console, primary)


class PlainProgress(Observer):
    def __init__(self, console: Console, primary: str) -> None:
        self._console = console
        self._primary = primary
        self._rounds = 0
        self._over = False
        self._out: set[str] = set()

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        self._rounds = rounds
        for info in sites:
            counts = ", ".join(f"{count} {split}" for split, count in info.cases.items() if count)
            skipped = f", {len(info.skipped)} skipped" if info.skipped else ""
            shared = f", {sum(info.shared.values())} shared" if info.shared else ""
            self._line(f"site {info.name}: {counts}{shared}{skipped}")
        if done:
            self._line(f"resuming after round {done} of {rounds}")

    def presence(self, site: str, state: str, detail: str = "") -> None:
        # at the end all lines end
        if self._over and state == "lost":
            return
        if state not in _QUIET:
            self._out.add(site)
            self._line(f"site {site}: {state}{': ' if detail else ''}{detail}")
        elif state == "ready" and site in self._out:
            self._out.discard(site)
            self._line(f"site {site}: ready")

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self._line("  ".join(cell for cell in _cells(record, self._primary, self._rounds) if cell))

    def ended(self, summary: Mapping[str, Any]) -> None:
        self._over = True
        self._line(_ending(summary))

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class LogProgress(PlainProgress):
    """The plain lines, as lines of the log."""

    def _line(self, text: str) -> None:
        _log.info("%s", text)


class LiveProgress(PlainProgress):
    """One bar a site, one for the rounds, and the last rounds as a table."""

    def __init__(self, console: Console, primary: str) -> None:
        super().__init__(console, primary)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._all = Progress(*columns, TimeElapsedColumn(), console=console)
        self._sites = Progress(*columns, console=console)
        self._bars: dict[str, TaskID] = {}
        self._rows: list[list[str]] = []
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8)

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        super().opened(sites, rounds, done)
        self._total = self._all.add_task("rounds", total=rounds, completed=done, note="")
        width = max(len(info.name) for info in sites)
        for info in sites:
            if info.trains:
                self._bars[info.name] = self._sites.add_task(escape(info.name.ljust(width)), total=None, note="")
        self._live.start()

    def round_started(self, plan: RoundPlan) -> None:
        for site, bar in self._bars.items():
            note = "waiting" if site in plan.cohort else "[dim]not in this round[/]"
            self._sites.reset(bar, total=1, note=note)

    def local_progress(self, site: str, done: int, steps: int) -> None:
        self._sites.update(self._bar(site), total=steps, completed=done, note="training")

    def answered(self, site: str, contribution: Contribution) -> None:
        self._sites.update(self._bar(site), note=_note(contribution))

    def _bar(self, site: str) -> TaskID:
        """The site's bar; a new one for a site that came later."""
        if site not in self._bars:
            self._bars[site] = self._sites.add_task(escape(site), total=None, note="")
        return self._bars[site]

    def evaluating(self, split: str, site: str) -> None:
        self._all.update(self._total, note=f"evaluated {split} at {site}")

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self._rows.append(_cells(record, self._primary, self._rounds))
        self._all.update(self._total, completed=record["round"], note="")

    def ended(self, summary: Mapping[str, Any]) -> None:
        self._live.stop()
        super().ended(summary)

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for row in self._rows[-_KEPT_ROWS:]:
            table.add_row(*row)
        return Group(table, self._sites, self._all)


def _cells(record: Mapping[str, Any], primary: str, rounds: int) -> list[str]:
    metrics = record["metrics"] or {}
    value = (metrics.get("global") or {}).get(primary, {}).get("value")
    epochs = sorted(set(record["local_epochs"].values()))
    refused = ", ".join(f"{site} refused ({why['rule']})" for site, why in record["refused"].items())
    failed = ", ".join(f"{site} {'late' if site in record['late'] else 'failed'}" for site in record["failed"])
    seconds = sum(record["seconds"].values())
    return [
        f"{'version' if 'version' in record else 'round'} {record['round']}/{rounds}",
        f"loss {_number(record['losses']['mean'])}",
        f"{primary} {_number(value)}" if metrics else "",
        f"epochs {'-'.join(str(count) for count in epochs)}" if epochs else "",
        f"{seconds:.1f} s",
        _staleness(record),
        "; ".join(part for part in (refused, failed) if part),
    ]


def _staleness(record: Mapping[str, Any]) -> str:
    """Of an asynchronous step: how many versions old each site's update was."""
    found = record.get("staleness") or {}
    return f"staleness {', '.join(f'{site} {number}' for site, number in found.items())}" if found else ""


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _note(contribution: Contribution) -> str:
    if contribution.failure:
        return "[red]failed[/]"
    if contribution.verdict is None:
        return "no upload"
    if contribution.verdict.outcome == "refuse":
        return f"[red]refused: {contribution.verdict.rule}[/]"
    return f"loss {_number(contribution.loss)}"


def _ending(summary: Mapping[str, Any]) -> str:
    primary = summary["primary"]
    value = summary["metrics"]["global"].get(primary, {}).get("value")
    return (
        f"ended by {summary['stopped_by']} after {summary['rounds_completed']} rounds: "
        f"{primary} {_number(value)} on the {summary['metrics']['split']} images"
    )
