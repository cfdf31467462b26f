"""The specification, in reading order: ``update``, the method and its linear layer; ``block``, the block around it.

Every name of both is a name of this package too: ``spec.delta_weight``, ``spec.block_forward``.
"""

from .block import *  # noqa: F403
from .update import *  # noqa: F403
