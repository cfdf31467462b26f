"""What every adapter of a frozen weight (out, in) offers, and the checks of arguments that all share."""

from typing import Any, Protocol, Self

from .. import arrays

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


def check_precision(expected: str, **named: Array) -> None:
    """A TypeError naming the argument whose precision is not ``expected``: nothing is rounded unasked."""
    for name, x in named.items():
        if x is not None and arrays.precision(name, x) != expected:
            raise TypeError(f"{name}: dtype {arrays.dtype_name(x)}; it must be {expected}, as the adapter is")


def check_shape(name: str, x: Array, expected: tuple[int, ...]) -> None:
    """A ValueError naming the argument whose shape is not ``expected``."""
    if tuple(x.shape) != expected:
        raise ValueError(f"{name}: shape {tuple(x.shape)}; it must be {expected}")


def check_layer(
    shape: tuple[int, int], like: Array, x: Array, weight: Array, bias: Array | None, dropout_mask: Array | None
) -> arrays.Namespace:
    """The namespace of a layer's arguments, once they fit ``shape`` (out, in) and the adapter's array ``like``."""
    xp = arrays.namespace(x=x, weight=weight, bias=bias, dropout_mask=dropout_mask, adapter=like)
    check_precision(arrays.precision("adapter", like), x=x, weight=weight, bias=bias, dropout_mask=dropout_mask)
    if x.ndim < 1 or x.shape[-1] != shape[1]:
        raise ValueError(f"x: shape {tuple(x.shape)}; it must be (…, {shape[1]}), in_features last")
    check_shape("weight", weight, shape)
    if bias is not None:
        check_shape("bias", bias, shape[:1])
    if dropout_mask is not None:
        check_shape("dropout_mask", dropout_mask, tuple(x.shape))
    return xp
