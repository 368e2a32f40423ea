import pytest
import torch

from flora_hpc.clip import trie
from flora_hpc.clip.trie import Attention, build_trie

CPU = torch.device("cpu")


def test_captions_that_begin_alike_share_nodes(captions: torch.Tensor) -> None:
    built = build_trie(captions)
    assert built.prefix == 1
    assert built.tokens.tolist() == [1, 2, 39, 5, 6, 9, 39, 39, 7, 8, 39]
    assert built.depths.tolist() == [0, 1, 2, 1, 2, 3, 4, 3, 2, 3, 4]
    assert built.parents == (-1, 0, 1, 0, 3, 4, 5, 4, 3, 8, 9)
    assert built.ends.tolist() == [7, 10, 6, 2, 7]
    assert built.starts == (1, 11)


def test_blocks_share_the_prefix_alone(captions: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two nodes or more; one may grow, up to twice as many, for captions that share nodes with it."""
    monkeypatch.setattr(trie, "BLOCK_NODES", 2)
    built = build_trie(captions)
    assert built.starts == (1, 3, 7, 13)
    assert built.tokens.tolist() == [1, 2, 39, 5, 6, 9, 39, 5, 6, 39, 7, 8, 39]
    assert built.ends.tolist() == [9, 12, 6, 2, 9]


@pytest.mark.parametrize("own", [1, 2, 5, 100])
def test_every_caption_can_be_read_back(captions: torch.Tensor, own: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie, "BLOCK_NODES", own)
    built = build_trie(captions)
    for row, node in zip(captions.tolist(), built.ends.tolist(), strict=True):
        read = []
        while node >= 0:
            assert built.depths[node] == len(row[: row.index(39)]) - len(read)
            read.append(int(built.tokens[node]))
            node = built.parents[node]
        assert read[::-1] == row[: row.index(39) + 1]


@pytest.mark.parametrize("rows", [[[1, 39, 0]], [[1, 2, 39]] * 3, [[1, 39, 0], [1, 2, 39]], [[2, 39], [1, 39]]])
def test_few_captions_equal_ones_and_ones_with_nothing_in_common(rows: list[list[int]]) -> None:
    built = build_trie(torch.tensor(rows))
    assert built.ends.min() >= built.prefix
    assert len(built.tokens) == len({tuple(row[: i + 1]) for row in rows for i in range(row.index(39) + 1)})


@pytest.mark.parametrize("own", [1, 2, 100])
@pytest.mark.parametrize("last", [False, True])
def test_a_node_attends_to_itself_and_its_ancestors(
    captions: torch.Tensor, own: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against softmax written out, node by node, two clients and two heads; gradients by finite differences."""
    monkeypatch.setattr(trie, "BLOCK_NODES", own)
    built = build_trie(captions)
    asking = built.ends.tolist() if last else range(len(built.tokens))
    q, k, v = torch.randn(3, 2, len(built.tokens), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = q[:, list(asking)]
    attention = Attention(built, CPU)
    mixed = attention(q, k, v, 2, last)
    for i, node in enumerate(asking):
        seen = []
        while node >= 0:
            seen.append(node)
            node = built.parents[node]
        for client in range(2):
            for head in (slice(0, 2), slice(2, 4)):
                scores = k[client, seen, head] @ q[client, i, head] / 2**0.5
                torch.testing.assert_close(mixed[client, i, head], scores.softmax(0) @ v[client, seen, head])
    leaves = tuple(x.clone().requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: attention(*x, 2, last), leaves)


def test_attention_takes_time_in_proportion_to_the_captions() -> None:
    """300 captions of three tokens of their own: pairs that attention computes, of 903 x 903 nodes."""
    names = torch.arange(2, 302)
    rows = torch.stack([torch.ones_like(names), names, torch.full_like(names, 900), torch.full_like(names, 999)], 1)
    nodes = Attention(build_trie(rows), CPU)._nodes
    assert nodes.sees.numel() < 0.05 * 901**2
    assert nodes.rows.numel() < 1.1 * 901
