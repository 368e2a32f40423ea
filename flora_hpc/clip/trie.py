"""Captions as a tree of tokens: the common beginning of captions is encoded once.

All captions share the nodes of the prefix, their common beginning. The other nodes are cut into blocks. Within a block, captions
that begin alike share nodes. A block sees the prefix and itself, so attention takes time in proportion to the number of captions,
not to its square. Two captions, here in two blocks (S start token, E end token, . padding, which sees itself):

    S a cat E             S - a -+- cat - E           node     0  1  2    3  4    5    6
    S a red dog E                +- red - dog - E     token    S  a  cat  E  red  dog  E

              prefix  own nodes                       sees  block 0            block 1
    rows      0  1    2  3  .          block 0              0  x               0  x
              0  1    4  5  6          block 1              1  x  x            1  x  x
    places    0  1    2  3  7  8  9    of node i, in        2  x  x  x         4  x  x  x
                                       `rows` flattened     3  x  x  x  x      5  x  x  x  x
                                                            .              x   6  x  x  x  x  x

In one block, rows would be 0 1 2 3 4 5 6; node 4 (red) would see 0 1 4, but not 2 3, which belong to the other caption alone.
"""

from dataclasses import dataclass
from typing import Any

import torch

from flora_hpc.clip.attention import attend

BLOCK_NODES = 32  # of a block, about, without the prefix


@dataclass(frozen=True)
class Trie:
    """Captions as a tree of tokens; a node comes after its parent."""

    tokens: torch.Tensor  # (num_nodes,) int64
    depths: torch.Tensor  # (num_nodes,) int64, the position in the caption
    parents: tuple[int, ...]  # of each node; -1 for the root
    prefix: int  # number of nodes that all captions share
    starts: tuple[int, ...]  # first node of each block, and at the end the number of nodes
    ends: torch.Tensor  # (num_captions,) int64, the node of each caption's end token


def build_trie(tokens: torch.Tensor) -> Trie:
    """Build the trie of tokenized captions (num_captions, context_length) int64. The end token is the largest of its row."""
    captions = [row[: end + 1] for row, end in zip(tokens.tolist(), tokens.argmax(1).tolist(), strict=True)]
    prefix = min(map(len, captions)) - 1  # an end token is no part of the prefix
    while any(caption[:prefix] != captions[0][:prefix] for caption in captions):
        prefix -= 1
    distinct = len({tuple(caption[: i + 1]) for caption in captions for i in range(prefix, len(caption))})
    block_nodes = -(-distinct // max(1, round(distinct / BLOCK_NODES)))  # so that all blocks have about as many
    node_tokens, depths, parents = captions[0][:prefix], list(range(prefix)), list(range(-1, prefix - 1))
    starts, ends = [prefix], [0] * len(captions)
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node, of this block
    for number in sorted(range(len(captions)), key=captions.__getitem__):  # captions that begin alike come together
        caption = captions[number]
        size = len(node_tokens) - starts[-1]  # of the block so far
        if size >= 2 * block_nodes or (size >= block_nodes and (prefix - 1, caption[prefix]) not in nodes):
            starts.append(len(node_tokens))
            nodes = {}
        node = prefix - 1
        for depth, token in enumerate(caption[prefix:], prefix):
            if (node, token) not in nodes:
                nodes[node, token] = len(node_tokens)
                node_tokens.append(token)
                depths.append(depth)
                parents.append(node)
            node = nodes[node, token]
        ends[number] = node
    starts.append(len(node_tokens))
    return Trie(torch.tensor(node_tokens), torch.tensor(depths), tuple(parents), prefix, tuple(starts), torch.tensor(ends))


class Attention:
    """Attention of nodes to themselves and their ancestors, for many clients at once. Queries are all nodes or the end nodes."""

    def __init__(self, trie: Trie, device: torch.device) -> None:
        spans = list(zip(trie.starts, trie.starts[1:], strict=False))
        nodes = _node_places(trie, spans)
        self._nodes, self._ends = (places.to(device) for places in (nodes, _end_places(trie, spans, nodes.sees)))

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, last: bool) -> torch.Tensor:
        """Attend: q, k, v are (num_clients or 1, num_nodes, width). If `last`, `q` has the end nodes, in the order of captions."""
        num_clients = max(len(q), len(k), len(v))
        q, k, v = (x.expand(num_clients, -1, -1) for x in (q, k, v))
        queries = self._ends if last else self._nodes
        if len(queries.rows) == 1:
            return attend(q, k, v, num_heads, queries.sees[0])
        q, k, v = queries.to_blocks(q), self._nodes.to_blocks(k), self._nodes.to_blocks(v)
        mixed = attend(q, k, v, num_heads, queries.sees.repeat(num_clients, 1, 1)[:, None])
        return queries.from_blocks(mixed, num_clients)


@dataclass(frozen=True)
class Places:
    """Where rows lie in blocks. No row sees padding, but padding sees itself, so that its softmax is a number."""

    rows: torch.Tensor  # (num_blocks, length) int64: the shared rows, then the block's own, then padding
    places: torch.Tensor  # (num_rows,) int64: the index of each row in `rows`, flattened
    sees: torch.Tensor  # (num_blocks, length, num_keys) bool: which nodes of the block each row attends to
    shared: int  # number of rows that lie in every block

    def to(self, device: torch.device) -> "Places":
        return Places(self.rows.to(device), self.places.to(device), self.sees.to(device), self.shared)

    def to_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """(num_clients, num_rows, width) -> (num_clients * num_blocks, length, width)."""
        blocks: torch.Tensor = _ToBlocks.apply(x, self.rows, self.places, self.shared)
        return blocks.view(-1, self.rows.shape[1], x.shape[-1])

    def from_blocks(self, blocks: torch.Tensor, num_clients: int) -> torch.Tensor:
        """The reverse of `to_blocks`."""
        x: torch.Tensor = _FromBlocks.apply(blocks.view(num_clients, -1, blocks.shape[-1]), self.places)
        return x


def _node_places(trie: Trie, spans: list[tuple[int, int]]) -> Places:
    """Places of all nodes: a block holds the nodes of the prefix and its own nodes."""
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


def _end_places(trie: Trie, spans: list[tuple[int, int]], sees: torch.Tensor) -> Places:
    """Places of the captions' end nodes, in the order of captions. Padding sees the root."""
    by_block = [[i for i, node in enumerate(trie.ends.tolist()) if start <= node < end] for start, end in spans]
    length = max(map(len, by_block))
    rows = torch.zeros(len(spans), length, dtype=torch.int64)
    places = torch.empty(len(trie.ends), dtype=torch.int64)
    end_sees = torch.zeros(len(spans), length, sees.shape[2], dtype=torch.bool)
    end_sees[..., 0] = True
    for block, ((start, _), captions) in enumerate(zip(spans, by_block, strict=True)):
        rows[block, : len(captions)] = torch.tensor(captions)
        places[captions] = block * length + torch.arange(len(captions))
        end_sees[block, : len(captions)] = sees[block, trie.ends[captions] - start + trie.prefix]
    return Places(rows, places, end_sees, 0)


class _ToBlocks(torch.autograd.Function):
    """Copy rows into blocks. The backward pass adds nothing up by index, which would be slow, and unsteady on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, shared: int) -> torch.Tensor:
        """x (num_clients, n, width), rows (num_blocks, length) -> (num_clients, num_blocks * length, width)."""
        ctx.places, ctx.shared, ctx.blocks = places, shared, len(rows)
        return x.index_select(1, rows.flatten())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = gradients
        result = gradient.index_select(1, ctx.places)
        if ctx.shared:  # the shared rows are in every block, so their gradients are summed over blocks
            by_block = gradient.view(len(gradient), ctx.blocks, -1, gradient.shape[-1])
            result[:, : ctx.shared] = by_block[:, :, : ctx.shared].sum(1)
        return result, None, None, None


class _FromBlocks(torch.autograd.Function):
    """The reverse of `_ToBlocks`: copy each row out of its block once."""

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
