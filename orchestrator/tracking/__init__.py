"""The MLflow room: a spool on disk first, one uploader, the registry. Light to import."""

from .address import Address, address_of, answers, redact
from .registry import resolve_registry_uri
from .rest import send_rest
from .tracker import Tracker
from .ui import open_ui
from .uploader import DrainReport, upload

__all__ = [
    "Address",
    "DrainReport",
    "Tracker",
    "address_of",
    "answers",
    "open_ui",
    "redact",
    "resolve_registry_uri",
    "send_rest",
    "upload",
]
