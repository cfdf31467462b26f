"""What every adapter of a frozen weight (out, in) offers."""

from typing import Any, Protocol, Self

Array = Any
Factors = tuple[tuple[Any, ...], ...]


class Adapter(Protocol):
    """An update ΔW of a frozen weight W0 (out, in), with learned values of its own. Nothing is changed in place."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is adapted."""

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        dropout_mask: Array | None = None,
        keep_merged: bool = False,
    ) -> tuple[Array, Any]:
        """y (…, out) = x W0ᵀ + (x∘m) ΔWᵀ + b of x (…, in), and what ``backward`` needs; with W0 + ΔW, if asked."""

    def backward(self, dy: Array, cache: Any, *, weight_grad: bool = False) -> tuple[Array, Any]:
        """∂L/∂x (…, in) of ∂L/∂y (…, out), and a named tuple of gradients: the learned values', bias, weight."""

    def delta_weight(self) -> Array:
        """ΔW (out, in)."""

    def merge(self, weight: Array) -> Array:
        """W0 + ΔW."""

    def unmerge(self, weight: Array) -> Array:
        """The merged weight − ΔW: W0 up to rounding."""

    def num_parameters(self) -> int:
        """How many learned values there are."""

    def factors(self) -> Factors:
        """ΔW up to its scaling as a sum of products; in a product, a matrix is a factor, a vector a diagonal one."""

    def replace(self, **learned: Array) -> Self:
        """The same adapter with other learned values, by name."""
