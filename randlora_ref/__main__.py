"""``python -m randlora_ref``: the commands of ``randlora-ref``."""

from .cli import entry

entry()
