"""Adapters: one protocol, one file a method. Each is a pure layer with a hand-written backward pass."""

from .protocol import Adapter, Factors
from .randlora import Cache, Grads, RandLoRA, contraction_costs

__all__ = ["Adapter", "Cache", "Factors", "Grads", "RandLoRA", "contraction_costs"]
