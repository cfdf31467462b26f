"""The specification: ``update``, the method and its linear layer. Every name of it is a name of this package too."""

from .update import *  # noqa: F403
