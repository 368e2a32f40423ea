"""Captions as a tree of tokens, so that what captions have in common is encoded once.

All captions share the nodes of their common beginning, the prefix. The rest is cut into blocks of captions; within a block,
captions that begin alike share nodes. Blocks see the prefix and themselves, so attention takes time in proportion to the captions,
not to their square.
"""

from dataclasses import dataclass
from typing import Any

import torch

from flora_hpc.clip.attention import attend

OWN = 32  # nodes of a block, about, without the prefix


@dataclass(frozen=True)
class Trie:
    """Captions as a tree of tokens; a node comes after its parent."""

    tokens: torch.Tensor  # (num_nodes,) int64
    depths: torch.Tensor  # (num_nodes,) int64, the position in the caption
    parents: tuple[int, ...]  # of each node; -1 for the root
    prefix: int  # nodes that begin every caption
    starts: tuple[int, ...]  # first node of each block, and the number of nodes
    ends: torch.Tensor  # (num_captions,) int64, the node of each caption's end token


def build_trie(tokens: torch.Tensor) -> Trie:
    """Tokenized captions (num_captions, context_length) int64 -> their trie. The end token is the largest of its row."""
    captions = [row[: end + 1] for row, end in zip(tokens.tolist(), tokens.argmax(1).tolist(), strict=True)]
    prefix = min(map(len, captions)) - 1  # an end token is a caption's own
    while any(caption[:prefix] != captions[0][:prefix] for caption in captions):
        prefix -= 1
    distinct = len({tuple(caption[: i + 1]) for caption in captions for i in range(prefix, len(caption))})
    most = -(-distinct // max(1, round(distinct / OWN)))  # nodes of a block, so that all have about as many
    found, depths, parents = captions[0][:prefix], list(range(prefix)), list(range(-1, prefix - 1))
    starts, ends = [prefix], [0] * len(captions)
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node, of this block
    for number in sorted(range(len(captions)), key=captions.__getitem__):  # those that begin alike come together
        caption = captions[number]
        held = len(found) - starts[-1]
        if held >= 2 * most or (held >= most and (prefix - 1, caption[prefix]) not in nodes):
            starts.append(len(found))
            nodes = {}
        node = prefix - 1
        for depth, token in enumerate(caption[prefix:], prefix):
            if (node, token) not in nodes:
                nodes[node, token] = len(found)
                found.append(token)
                depths.append(depth)
                parents.append(node)
            node = nodes[node, token]
        ends[number] = node
    return Trie(torch.tensor(found), torch.tensor(depths), tuple(parents), prefix, (*starts, len(found)), torch.tensor(ends))


class Attention:
    """Attention of nodes to themselves and their ancestors, and of end nodes alone, for many clients at once."""

    def __init__(self, trie: Trie, device: torch.device) -> None:
        spans = list(zip(trie.starts, trie.starts[1:], strict=False))
        nodes = _nodes(trie, spans)
        self._nodes, self._ends = (places.to(device) for places in (nodes, _end_nodes(trie, spans, nodes.sees)))

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, last: bool) -> torch.Tensor:
        """(num_clients or 1, num_nodes, width) each; if `last`, `q` holds the captions' end nodes, in the order of captions."""
        num_clients = max(len(q), len(k), len(v))
        q, k, v = (x.expand(num_clients, -1, -1) for x in (q, k, v))
        asking = self._ends if last else self._nodes
        if len(asking.rows) == 1:
            return attend(q, k, v, num_heads, asking.sees[0])
        q, k, v = asking.spread(q), self._nodes.spread(k), self._nodes.spread(v)
        mixed = attend(q, k, v, num_heads, asking.sees.repeat(num_clients, 1, 1)[:, None])
        return asking.collect(mixed, num_clients)


@dataclass(frozen=True)
class Places:
    """Where rows lie in blocks. Padding is masked, and a row always sees something, so that its softmax is a number."""

    rows: torch.Tensor  # (num_blocks, length) int64: the shared rows, then the block's own, then padding
    places: torch.Tensor  # (num_rows,) int64: where each row is found in `rows`, flattened
    sees: torch.Tensor  # (num_blocks, length, num_keys) bool: which nodes of the block each row attends to
    shared: int  # rows that lie in every block

    def to(self, device: torch.device) -> "Places":
        return Places(self.rows.to(device), self.places.to(device), self.sees.to(device), self.shared)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(num_clients, num_rows, width) -> (num_clients * num_blocks, length, width)."""
        blocks: torch.Tensor = _Spread.apply(x, self.rows, self.places, self.shared)
        return blocks.view(-1, self.rows.shape[1], x.shape[-1])

    def collect(self, blocks: torch.Tensor, num_clients: int) -> torch.Tensor:
        """The reverse of `spread`."""
        x: torch.Tensor = _Collect.apply(blocks.view(num_clients, -1, blocks.shape[-1]), self.places)
        return x


def _nodes(trie: Trie, spans: list[tuple[int, int]]) -> Places:
    """All nodes: a block holds the prefix and its own."""
    prefix, length = trie.prefix, trie.prefix + max(end - start for start, end in spans)
    rows = torch.zeros(len(spans), length, dtype=torch.int64)
    places = torch.arange(len(trie.tokens))
    sees = torch.eye(length, dtype=torch.bool).repeat(len(spans), 1, 1)
    for block, (start, end) in enumerate(spans):
        nodes = [*range(prefix), *range(start, end)]
        rows[block, : len(nodes)] = torch.tensor(nodes)
        places[start:end] = block * length + prefix + torch.arange(end - start)
        for place, node in enumerate(nodes):
            parent = trie.parents[node]
            if parent >= 0:
                sees[block, place] |= sees[block, parent if parent < prefix else prefix + parent - start]
    return Places(rows, places, sees, prefix)


def _end_nodes(trie: Trie, spans: list[tuple[int, int]], sees: torch.Tensor) -> Places:
    """The end nodes of captions, in the order of captions."""
    of_block = [[i for i, node in enumerate(trie.ends.tolist()) if start <= node < end] for start, end in spans]
    most = max(map(len, of_block))
    rows = torch.zeros(len(spans), most, dtype=torch.int64)
    places = torch.empty(len(trie.ends), dtype=torch.int64)
    end_sees = torch.zeros(len(spans), most, sees.shape[2], dtype=torch.bool)
    end_sees[..., 0] = True
    for block, ((start, _), captions) in enumerate(zip(spans, of_block, strict=True)):
        rows[block, : len(captions)] = torch.tensor(captions)
        places[captions] = block * most + torch.arange(len(captions))
        end_sees[block, : len(captions)] = sees[block, trie.ends[captions] - start + trie.prefix]
    return Places(rows, places, end_sees, 0)


class _Spread(torch.autograd.Function):
    """Rows as blocks want them. Backwards nothing is added up by index, which would be slow, and unsteady on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, shared: int) -> torch.Tensor:
        """x (num_clients, n, width), rows (num_blocks, length) -> (num_clients, num_blocks * length, width)."""
        ctx.places, ctx.shared, ctx.blocks = places, shared, len(rows)
        return x.index_select(1, rows.flatten())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = gradients
        result = gradient.index_select(1, ctx.places)
        if ctx.shared:  # the first rows are in every block
            by_block = gradient.view(len(gradient), ctx.blocks, -1, gradient.shape[-1])
            result[:, : ctx.shared] = by_block[:, :, : ctx.shared].sum(1)
        return result, None, None, None


class _Collect(torch.autograd.Function):
    """The reverse of `_Spread`: each row once."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """x (num_clients, m, width), places (n,), all different -> (num_clients, n, width)."""
        ctx.places, ctx.length = places, x.shape[1]
        return x.index_select(1, places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        result = gradient.new_zeros(len(gradient), ctx.length, gradient.shape[-1])
        return result.index_copy_(1, ctx.places, gradient), None
