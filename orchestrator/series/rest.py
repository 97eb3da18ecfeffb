"""The end of many jobs in tracking: what a store that was down has not got of their runs."""

import logging
from collections.abc import Iterable

from orchestrator.run_folder import RunFolder

from .folder import Folder

logger = logging.getLogger(__name__)


def send_rest(folder: Folder, run_ids: Iterable[str], uri: str | None) -> None:
    """Send what the runs' spools still hold; a warning where some is left.

    Args:
        folder: of the whole, whose own run the store has.
        run_ids: of runs of its jobs, all of which are over.
        uri: tracking store of the jobs; None: the one beside all runs.
    """
    from orchestrator.tracking import address_of, send_rest

    address = address_of(uri, folder.storage)
    runs = [RunFolder.at(folder.runs, run_id).local for run_id in dict.fromkeys(run_ids) if run_id]
    left = send_rest(runs, address)
    if left:
        logger.warning(
            "tracking: %d records of runs in %s are not in %s yet; going on with --resume sends "
            "them, and so does `stillhouse track` with a run's folder",
            left,
            folder.runs,
            address.shown,
        )
