"""Whether images fit what a study trains."""

from medfl.data.base import Datalist
from medfl.errors import StudyError
from medfl.study.model import Study


def require_task(study: Study, datalist: Datalist) -> None:
    """StudyError when the images are for another task."""
    if datalist.task != study.task.kind:
        raise StudyError.at(
            f"datalist {datalist.name}",
            f"is for {datalist.task}, the study trains {study.task.kind}",
            "use the study for it",
        )


def require_classes(study: Study, datalist: Datalist) -> None:
    """StudyError when the images have other classes than the study, or in another order."""
    named = ", ".join(datalist.classes)
    own = {name: number for number, name in enumerate(study.task.classes)}
    moved = [name for number, name in enumerate(datalist.classes) if own.get(name, number) != number]
    if moved:
        raise StudyError.at(
            "task.classes",
            f"numbers {', '.join(moved)} differently from the images, whose classes are {named}",
            f"import the images with --classes '{','.join(study.task.classes)}', or train with theirs: "
            f"--set task.classes='[{named}]'",
        )
    if len(datalist.classes) != len(study.task.classes):
        raise StudyError.at(
            "task.classes",
            f"names {len(study.task.classes)} classes, the images have {len(datalist.classes)}: {named}",
            f"--set task.classes='[{named}]'",
        )
