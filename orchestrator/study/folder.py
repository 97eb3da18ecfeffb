"""The folder of a study, which ends with `table.md`, `table.html`, `table.json` and the plots."""

from orchestrator.series import folder
from orchestrator.series.folder import Folder

from .load import load_study, study_yaml
from .spec import StudySpec


def open_folder(
    study: StudySpec, storage: str, local: str, *, resume: bool, accept_changes: bool
) -> Folder:
    """Make or find the folder of a study.

    Args:
        study: as it is now.
        storage: of its jobs, a folder or URI; absolute.
        local: folder of runs on this machine.
        resume: an existing folder is gone on with.
        accept_changes: also where the study was another then.

    Raises:
        SpecError: see `series.folder.open_folder`.
    """
    return folder.open_folder(
        "study",
        study.name,
        study_yaml(study),
        lambda record: study_yaml(load_study(record)),
        storage,
        local,
        resume=resume,
        accept_changes=accept_changes,
    )
