"""TensorLists and TensorArrays: what loops read and write item by item is one tensor with the items along
axis 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attar_tensorflow.reading.lifter import Lift, Lifter
from attar_tensorflow.reading.table.shape import as_type, int64, vector
from attar_tensorflow.reading.values import Const, Items, Tensor, Written
from attar_tensorflow.reading.view import OpView


def reserve(ctx: Lifter, view: OpView) -> Items:
    """TensorListReserve: a list of known length that nothing is in yet."""
    return Items(None, length=view.input(1))


def empty(ctx: Lifter, view: OpView) -> Items:
    """EmptyTensorList: items are pushed to its end."""
    return Items(None, length="grows")


def from_tensor(ctx: Lifter, view: OpView) -> Items:
    return Items(view.input(0))


def get_item(ctx: Lifter, view: OpView) -> Any:
    """One item. `piece of` is what recurrent layers are recognised by."""
    return item_of(ctx, view, view.inputs[0], view.input(1))


def item_of(ctx: Lifter, view: OpView, items: Any, index: Any) -> Tensor:
    if not isinstance(items, Items) or items.stack is None:
        raise view.refuse("it reads from a list that the same loop writes")
    shape = None if items.stack.shape is None else items.stack.shape[1:]
    out = ctx.op("Gather", items.stack, index, axis=0, dtype=items.stack.dtype, shape=shape)
    out.facts["item"] = (items, index)
    return out


def set_item(ctx: Lifter, view: OpView) -> Written:
    if not isinstance(view.inputs[0], Items):
        raise view.refuse("a list that is written twice in one turn of a loop has no counterpart")
    return Written(view.input(2), view.input(1), view.inputs[0])


def push_back(ctx: Lifter, view: OpView) -> Written:
    if not isinstance(view.inputs[0], Items):
        raise view.refuse("a list that is written twice in one turn of a loop has no counterpart")
    return Written(view.input(1), "end", view.inputs[0])


def stack(ctx: Lifter, view: OpView) -> Any:
    return _whole(view, view.inputs[0])


def _whole(view: OpView, items: Any) -> Any:
    if isinstance(items, Written) and isinstance(items.index, Const) and items.index.array == 0:
        raise view.refuse("lists written outside of loops are not supported")
    if not isinstance(items, Items) or items.stack is None:
        raise view.refuse("it stacks a list that nothing was written to")
    return items.stack


def length(ctx: Lifter, view: OpView) -> Any:
    items = view.inputs[0]
    if isinstance(items, Items) and items.stack is not None:
        shape = items.stack.shape
        if shape is not None and shape[0] is not None:
            return Const(np.array(shape[0], np.int32))
        first = ctx.op("Shape", items.stack, dtype=np.int64, start=0, end=1, shape=(1,))
        return as_type(ctx, ctx.op("Squeeze", first, vector([0]), dtype=np.int64, shape=()), np.int32)
    if isinstance(items, Items) and not isinstance(items.length, str):
        return items.length
    raise view.refuse("the length of the list is unknown")


# -- TensorFlow 1: the flow stands for the array -------------------------------------------------------------


def array(ctx: Lifter, view: OpView) -> Any:
    items = Items(None, length=view.input(0))
    return items, items


def array_scatter(ctx: Lifter, view: OpView) -> Items:
    """TensorArrayScatterV3: all items at once, at 0, 1, 2, ..."""
    return Items(view.input(2))


def array_read(ctx: Lifter, view: OpView) -> Any:
    return item_of(ctx, view, view.inputs[2], view.input(1))


def array_write(ctx: Lifter, view: OpView) -> Written:
    if not isinstance(view.inputs[3], Items):
        raise view.refuse("an array that is written twice in one turn of a loop has no counterpart")
    return Written(view.input(2), view.input(1), view.inputs[3])


def array_gather(ctx: Lifter, view: OpView) -> Any:
    """TensorArrayGatherV3, of all items."""
    whole = _whole(view, view.inputs[2])
    indices = view.const(1)
    count = None if whole.shape is None else whole.shape[0]
    if indices is not None and count is not None and np.array_equal(indices, np.arange(count)):
        return whole
    return ctx.op("Gather", whole, int64(ctx, view.input(1)), axis=0, dtype=whole.dtype)


def array_size(ctx: Lifter, view: OpView) -> Any:
    items = view.inputs[1]
    if not isinstance(items, Items):
        raise view.refuse("the length of the array is unknown")
    if items.stack is not None and items.stack.shape is not None and items.stack.shape[0] is not None:
        return Const(np.array(items.stack.shape[0], np.int32))
    return items.length


LIFTINGS: dict[str, Lift] = {
    **{"TensorListReserve": reserve, "EmptyTensorList": empty, "TensorListFromTensor": from_tensor},
    **{"TensorListGetItem": get_item, "TensorListSetItem": set_item, "TensorListPushBack": push_back},
    **{"TensorListStack": stack, "TensorListLength": length},
    **{"TensorArrayV3": array, "TensorArrayScatterV3": array_scatter, "TensorArrayReadV3": array_read},
    **{
        "TensorArrayWriteV3": array_write,
        "TensorArrayGatherV3": array_gather,
        "TensorArraySizeV3": array_size,
    },
}
