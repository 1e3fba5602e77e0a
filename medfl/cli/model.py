"""Commands about a finished run's model: evaluate it, predict with it, report on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medfl.cli.output import Json, console, print_json, result
from medfl.cli.tables import print_sites, value
from medfl.folders import run_in


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or its model folder.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(help="Evaluate on these images instead of the run's own.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Which images: test, val, train or all.")] = "test",
    site: Annotated[str | None, typer.Option(metavar="NAME", help="This site alone.", show_default=False)] = None,
    sites: Annotated[
        Path | None, typer.Option(help="Folder of site files whose images to use.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Evaluate a saved model, site by site and class by class.

    Example: medfl evaluate runs/pneumonia-001 --data ../other-hospital --split all
    """
    from medfl.report.evaluate import evaluate_model

    found = evaluate_model(run_in(model), data=data, sites=sites, site=site, split=split)
    if json:
        print_json(found)
        return
    print_sites(found)
    _print_classes(found)
    for name, reasons in found["skipped"].items():
        for key, reason in reasons.items():
            console.print(f"{name}: left out {key}: {reason}", style="yellow", markup=False, highlight=False)


def predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of one DICOM series each.")
    ],
    model: Annotated[Path, typer.Option(help="Run folder, or its model folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    json: Json = False,
) -> None:
    """Predict images: a JSON file each, a picture, and for segmentation a mask on the image's own grid.

    Example: medfl predict scan.nii.gz --model runs/lesion-001 --out predictions
    """
    from medfl.report.predict import predict_files
    from medfl.report.saved import load_saved

    done, failed = [], 0
    for found in predict_files(load_saved(run_in(model)), images, out):
        if found.faults:
            failed += 1
            for fault in found.faults:
                console.print(str(fault), style="bold red", markup=False, highlight=False, soft_wrap=True)
        elif not json:
            result().print(f"{found.image}: {_said(found.result)}", markup=False, highlight=False, soft_wrap=True)
        faults = [{"where": fault.where, "what": fault.what, "remedy": fault.remedy} for fault in found.faults]
        done.append(
            {"image": str(found.image), **found.result, "files": [str(f) for f in found.files], "faults": faults}
        )
    if json:
        print_json({"predictions": done, "failed": failed})
    else:
        console.print(f"results: {out}", markup=False, highlight=False)
    if failed:
        raise typer.Exit(2)


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, finished or not, or a coordinator's.", show_default=False)
    ],
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show predictions for some of the sites' images.")
    ] = True,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Check the run instead, for an auditor; exit code 1 if a check fails.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a run's report.html and model card again, or check its journal, ledgers and model.

    Example: medfl report runs/pneumonia-001 --evidence
    """
    run = run_in(run)
    if evidence:
        from medfl.coordinator.evidence import evidence as made

        show_evidence(made(run), json)
        return
    from medfl.report.card import write_model_card
    from medfl.report.page import write_report

    page = write_report(run, pictures)
    card = write_model_card(run) if (run / "model" / "model.safetensors").is_file() else None
    if json:
        print_json({"report": str(page), "model_card": str(card) if card else None})
    else:
        result().print(str(page), markup=False, highlight=False, soft_wrap=True)
        result().print(str(card or "no model card: the run has no model yet"), markup=False, soft_wrap=True)
    if show:
        typer.launch(page.resolve().as_uri())


def show_evidence(found: dict[str, Any], json: bool) -> None:
    """Print what was checked; exit code 1 when a check fails."""
    if json:
        print_json(found)
    else:
        for check in found["checks"]:
            mark = {True: "holds", False: "FAILS", None: "not checked"}[check["ok"]]
            text = f"{mark}: {check['check']}{': ' if check['detail'] else ''}{check['detail']}"
            result().print(text, markup=False, highlight=False, soft_wrap=True)
    if any(check["ok"] is False for check in found["checks"]):
        raise typer.Exit(1)


def _print_classes(found: Mapping[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from medfl.report.text import label

    overall = found["metrics"]["global"]
    names = [name for name, entry in overall.items() if entry.get("classes")]
    if not names:
        return
    table = Table("class", title="By class, with n", title_justify="left")
    for name in names:
        table.add_column(label(name), justify="right")
    for class_name in dict.fromkeys(one for name in names for one in overall[name]["classes"]):
        entries = [overall[name]["classes"].get(class_name) for name in names]
        table.add_row(escape(class_name), *(value(entry, support=True) for entry in entries))
    result().print(table)


def _said(prediction: Mapping[str, Any]) -> str:
    """One line about a prediction."""
    if "probabilities" in prediction:
        return f"{prediction['class']} {prediction['probabilities'][prediction['class']]:.3f}"
    if "boxes" in prediction:
        scores = [box["score"] for box in prediction["boxes"]]
        return f"{len(scores)} boxes" + (f", highest score {max(scores):.3f}" if scores else "")
    return ", ".join(f"{name} {count}" for name, count in prediction["voxels"].items())
