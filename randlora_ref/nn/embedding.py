"""Token embedding, and images as rows of patches."""

from typing import Any

from .. import arrays, checks

Array = Any


def sum_by_id(xp: Any, rows: Array, ids: Array, size: int) -> Array:
    """(V, k), row v the sum of those of ``rows`` (T, k) at the positions where ``ids`` (T,) are v; V is ``size``.

    The positions are sorted by id; then doubling steps add to each row the one 1, 2, 4 … on, where it is of the same
    id, until the first row of an id holds its sum. No scatter, so the order of summation is always the same.
    """
    count = ids.shape[0]
    if count == 0:
        return xp.zeros((size, rows.shape[1]), dtype=rows.dtype, **arrays.on(arrays.device_of(rows)))
    order = xp.argsort(ids)
    ids, rows = xp.take(ids, order), xp.take(rows, order, axis=0)
    step = 1
    while step < count:
        same = (ids[step:] == ids[:-step])[:, None]
        rows = arrays.concat(xp, [rows[:-step, :] + arrays.where(xp, same, rows[step:, :], 0.0), rows[-step:, :]], 0)
        step *= 2
    every = xp.arange(size, dtype=ids.dtype, **arrays.on(arrays.device_of(ids)))  # (V,)
    first = xp.searchsorted(ids, every)
    first = arrays.where(xp, first < count, first, count - 1)
    present = (xp.take(ids, first) == every)[:, None]
    return arrays.where(xp, present, xp.take(rows, first, axis=0), 0.0)


def embedding(ids: Array, table: Array, *, checked: bool = False) -> tuple[Array, Any]:
    """y (…, k): row ids (…) of ``table`` (V, k). IndexError if out of range, unless the caller has ``checked``."""
    xp = checks.namespace(ids=ids, table=table)
    checks.floats(table=table)
    checks.shaped(table.ndim == 2, "table", table, "(V, k)")
    if not checked:
        checks.index_range(ids=(ids, table.shape[0], None))
    ids = arrays.astype(xp, ids, xp.int64)  # a narrow type cannot count the rows
    y = xp.take(table, xp.reshape(ids, (-1,)), axis=0)
    return xp.reshape(y, (*ids.shape, table.shape[1])), (ids, table)


def embedding_backward(dy: Array, cache: Any) -> Array:
    """∂L/∂table (V, k): row v is Σ dy over the positions where ids = v."""
    ids, table = checks.kept(cache, 2)
    xp = checks.cotangent("dy", dy, (*ids.shape, table.shape[1]), table)
    return sum_by_id(xp, arrays.as_rows(xp, dy), xp.reshape(ids, (-1,)), table.shape[0])


def patches(pixels: Array, size: int) -> tuple[Array, tuple[Array, int]]:
    """y (B, N, C·p·p): the p×p patches of ``pixels`` (B, C, H, W), row by row, p = ``size``.

    A patch projection is then ``linear`` with the kernel (out, C, p, p) as a matrix (out, C·p·p).
    """
    xp, size = checks.floats(pixels=pixels), checks.integer("size", size)
    well = pixels.ndim == 4 and pixels.shape[2] % size == pixels.shape[3] % size == 0
    checks.shaped(well, "pixels", pixels, f"(B, C, H, W), H and W multiples of {size}")
    b, c, h, w = pixels.shape
    y = arrays.permute(xp, xp.reshape(pixels, (b, c, h // size, size, w // size, size)), (0, 2, 4, 1, 3, 5))
    return xp.reshape(y, (b, (h // size) * (w // size), c * size * size)), (pixels, size)


def patches_backward(dy: Array, cache: tuple[Array, int]) -> Array:
    """∂L/∂pixels (B, C, H, W): every pixel is in one patch, so the rows are laid back."""
    pixels, size = checks.kept(cache, 2)
    b, c, h, w = pixels.shape
    xp = checks.cotangent("dy", dy, (b, (h // size) * (w // size), c * size * size), pixels)
    y = arrays.permute(xp, xp.reshape(dy, (b, h // size, w // size, c, size, size)), (0, 3, 1, 4, 2, 5))
    return xp.reshape(y, (b, c, h, w))
