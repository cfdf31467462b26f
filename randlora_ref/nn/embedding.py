"""Token embedding, and images as rows of patches."""

from typing import Any

from .. import arrays
from ..adapters.protocol import check_shape

Array = Any


def check_range(**named: tuple[Array | None, int, int | None]) -> None:
    """An IndexError naming the integers not in [0, limit), each given as (array, limit, a value let through or None).

    A TypeError if they are not integers. Reads one boolean of the device for all of them, if all is well.
    """
    bad = {}
    for name, (x, limit, spared) in named.items():
        if x is None:
            continue
        if arrays.dtype_name(x)[:3] not in ("int", "uin"):
            raise TypeError(f"{name}: dtype {arrays.dtype_name(x)}; it must be an integer type")
        wrong = (x < 0) | (x >= limit)
        signed = arrays.dtype_name(x)[0] == "i"  # an unsigned type cannot hold −100, nor be compared to it everywhere
        bad[name] = wrong & (x != spared) if signed and spared is not None else wrong
    if not bad:
        return
    xp = arrays.namespace(**bad)
    if bool(xp.any(xp.stack([xp.any(wrong) for wrong in bad.values()]))):
        name = next(name for name, wrong in bad.items() if bool(xp.any(wrong)))
        x, limit, spared = named[name]
        value = int(arrays.to_numpy(x)[arrays.to_numpy(bad[name])][0])
        raise IndexError(
            f"{name}: holds {value}; it must be in 0 … {limit - 1}" + f" or {spared}" * (spared is not None)
        )


def embedding(ids: Array, table: Array, *, checked: bool = False) -> tuple[Array, Any]:
    """y (…, k): row ids (…) of ``table`` (V, k). IndexError if out of range, unless the caller has ``checked``."""
    xp = arrays.namespace(ids=ids, table=table)
    if not checked:
        check_range(ids=(ids, table.shape[0], None))
    y = xp.take(table, xp.reshape(ids, (-1,)), axis=0)
    return xp.reshape(y, (*ids.shape, table.shape[1])), (ids, table.shape[0])


def embedding_backward(dy: Array, cache: Any) -> Array:
    """∂L/∂table (V, k): row v is Σ dy over the places where ids = v.

    The places are sorted by id; then doubling steps add to each row the one 1, 2, 4 … places on, where it is of the
    same id, until the first row of an id holds its sum. No scatter, so the order of summation is always the same.
    """
    ids, size = cache
    xp = arrays.namespace(dy=dy, ids=ids)
    check_shape("dy", dy, (*ids.shape, dy.shape[-1]))
    ids, rows = xp.reshape(ids, (-1,)), arrays.as_rows(xp, dy)
    count = ids.shape[0]
    if count == 0:
        return xp.zeros((size, dy.shape[-1]), dtype=dy.dtype, **arrays.on(arrays.device_of(dy)))
    order = xp.argsort(ids)
    ids, rows = xp.take(ids, order), xp.take(rows, order, axis=0)
    step = 1
    while step < count:
        same = (ids[step:] == ids[:-step])[:, None]
        rows = arrays.concat(xp, [rows[:-step, :] + xp.where(same, rows[step:, :], 0.0), rows[-step:, :]], 0)
        step *= 2
    every = xp.arange(size, dtype=ids.dtype, **arrays.on(arrays.device_of(ids)))
    first = xp.searchsorted(ids, every)
    first = xp.where(first < count, first, count - 1)
    present = (xp.take(ids, first) == every)[:, None]
    return xp.where(present, xp.take(rows, first, axis=0), 0.0)


def patches(pixels: Array, size: int) -> tuple[Array, tuple[int, ...]]:
    """y (B, N, C·p·p): the p×p patches of ``pixels`` (B, C, H, W), row by row, p = ``size``.

    A patch projection is then ``linear`` with the kernel (out, C, p, p) as a matrix (out, C·p·p).
    """
    xp = arrays.namespace(pixels=pixels)
    if pixels.ndim != 4 or pixels.shape[2] % size or pixels.shape[3] % size:
        raise ValueError(f"pixels: shape {tuple(pixels.shape)}; it must be (B, C, H, W), H and W multiples of {size}")
    b, c, h, w = pixels.shape
    y = arrays.permute(xp, xp.reshape(pixels, (b, c, h // size, size, w // size, size)), (0, 2, 4, 1, 3, 5))
    return xp.reshape(y, (b, (h // size) * (w // size), c * size * size)), (b, c, h, w, size)


def patches_backward(dy: Array, cache: tuple[int, ...]) -> Array:
    """∂L/∂pixels (B, C, H, W): every pixel is in one patch, so the rows are laid back."""
    b, c, h, w, size = cache
    xp = arrays.namespace(dy=dy)
    check_shape("dy", dy, (b, (h // size) * (w // size), c * size * size))
    y = arrays.permute(xp, xp.reshape(dy, (b, h // size, w // size, c, size, size)), (0, 3, 1, 4, 2, 5))
    return xp.reshape(y, (b, c, h, w))
