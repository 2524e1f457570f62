"""Lists of blocks that other tools write, as steps of a plan.

A passthrough merge of one model (`slices:`), layer replication of adapters (`layer_replication:`), the stacking list of
a growth recipe (`stacking_list:`) and a path through the blocks (a plain list) are all the same: an order of blocks.
"""

from __future__ import annotations

from typing import Any

from layerwright.core.errors import UserError

Known = tuple[tuple[dict[str, Any], ...], str, str]


def translated(document: Any) -> Known | None:
    """Steps, base and reason of a plan, or None where the document is of no known form.

    Raises:
        UserError: it is of a known form, and asks for more than an order of blocks, or is broken.

    Example:
        >>> piece = {"sources": [{"model": "m", "layer_range": [0, 2]}]}
        >>> translated({"slices": [piece], "merge_method": "passthrough"})
        (({'order': [0, 1]},), 'm', 'read from a passthrough merge')
        >>> translated({"layer_replication": [[0, 3], [1, 4]]})[0]
        ({'order': [0, 1, 2, 1, 2, 3]},)
    """
    if isinstance(document, list) and document and all(_is_block(k) for k in document):
        return ({"order": document},), "", "read from a list of blocks"
    if not isinstance(document, dict):
        return None
    if "slices" in document:
        return _merge(document)
    if "layer_replication" in document:
        ranges = document["layer_replication"]
        if not isinstance(ranges, list) or not ranges:
            raise UserError(f"got layer_replication {ranges!r}; expected a list of ranges, such as [[0, 16], [8, 24]]")
        order = [k for pair in ranges for k in _range(pair, "layer_replication")]
        return ({"order": order},), "", "read from a layer replication"
    if "stacking_list" in document:
        order = document["stacking_list"]
        if not isinstance(order, list) or not order or not all(_is_block(k) for k in order):
            raise UserError(f"got stacking_list {order!r}; expected a list of blocks, such as [0, 1, 0, 1]")
        return ({"order": order},), "", "read from a stacking list"
    return None


def _merge(document: dict[str, Any]) -> Known:
    method = document.get("merge_method")
    if method != "passthrough":
        raise UserError(f"got a merge with merge_method {method!r}; only passthrough merges are an order of blocks")
    order, models = [], []
    for piece in document["slices"] or [None]:
        sources = piece.get("sources") if isinstance(piece, dict) else None
        if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
            raise UserError(f"got the slice {piece!r}; expected one source each, with model and layer_range")
        (source,) = sources
        scaled = document.get("parameters") or piece.get("parameters") or source.get("parameters")
        if scaled:
            raise UserError(
                f"the merge scales weights ({scaled!r}), which no order of blocks does; leave `parameters` out"
            )
        order += _range(source.get("layer_range"), "layer_range")
        models.append(str(source.get("model")))
    if len(set(models)) > 1:
        raise UserError(f"the merge joins {', '.join(sorted(set(models)))}; expected slices of one model")
    return ({"order": order},), models[0], "read from a passthrough merge"


def _range(pair: Any, name: str) -> list[int]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(_is_block(k) for k in pair):
        raise UserError(f"got {name} {pair!r}; expected two numbers, the first block and the one after the last")
    if pair[0] >= pair[1]:
        raise UserError(f"got {name} {pair!r}, which holds no block: its end is not included")
    return list(range(*pair))


def _is_block(k: Any) -> bool:
    return isinstance(k, int) and not isinstance(k, bool) and k >= 0
