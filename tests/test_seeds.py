import subprocess
import sys

import numpy as np
import pytest

from flora_hpc.seeds import BLOCK, Streams, generator, permuted, philox, uniforms, words


def numbers(*arguments: object) -> list[int]:
    return generator(*arguments).integers(0, 2**63, 4).tolist()


def test_the_same_arguments_give_the_same_numbers() -> None:
    assert numbers(0, "batches", 3, 11) == numbers(0, "batches", 3, 11)


def test_numbers_drawn_for_others_change_nothing() -> None:
    before = numbers(0, "batches", 3, 11)
    numbers(0, "batches", 3, 10)
    assert numbers(0, "batches", 3, 11) == before


@pytest.mark.parametrize(
    "other",
    [(1, "batches", 3, 11), (0, "cohort", 3, 11), (0, "batches", 4, 11), (0, "batches", 3, 12), (0, "batches", 11, 3)],
    ids=["seed", "purpose", "round", "client", "round and client swapped"],
)
def test_each_argument_gives_other_numbers(other: tuple[object, ...]) -> None:
    assert numbers(*other) != numbers(0, "batches", 3, 11)


@pytest.mark.parametrize("shorter", [(0, "population"), (0, "population", 7)], ids=["no index", "one index"])
def test_a_further_index_of_zero_gives_other_numbers(shorter: tuple[object, ...]) -> None:
    assert numbers(*shorter, 0) != numbers(*shorter)


def test_a_million_clients_get_different_numbers() -> None:
    """A sample: neighbours and both ends of a large population."""
    clients = [*range(100), *range(999_900, 1_000_000)]
    assert len({numbers(0, "population", client)[0] for client in clients}) == 200


def test_another_process_gives_the_same_numbers() -> None:
    """Python's hash of a text differs between processes; seeds must not use it."""
    code = "from flora_hpc.seeds import generator; print(generator(5, 'batches', 3, 11).integers(0, 2**63, 4).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(numbers(5, "batches", 3, 11))


# --- words of many clients at once


def drawn(clients: list[int], count: int = 5, seed: int = 0, purpose: str = "batches", index: int = 3) -> list[list[int]]:
    return words(seed, purpose, index, of=np.array(clients), count=count).tolist()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_is_that_of_its_inventors(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The test vectors of their library, Random123."""
    state = [np.array([word], np.uint64) for word in counter]
    assert [int(word[0]) for word in philox(state, np.array(key, np.uint64))] == expected


def test_a_clients_words_depend_neither_on_its_neighbours_nor_on_how_many_are_asked_for() -> None:
    together = drawn([7, 10**12, 0, 3])
    assert [drawn([client])[0] for client in (7, 10**12, 0, 3)] == together
    assert [row[:2] for row in together] == drawn([7, 10**12, 0, 3], count=2)
    assert drawn([5], count=0) == [[]]


@pytest.mark.parametrize("other", [{"seed": 1}, {"purpose": "noise"}, {"index": 4}], ids=str)
def test_seed_purpose_and_index_give_other_words(other: dict[str, object]) -> None:
    assert set(drawn([2])[0]).isdisjoint(drawn([2], **other)[0])


def test_clients_whose_numbers_agree_in_their_low_32_bits_get_different_words() -> None:
    assert len({word for row in drawn([1, 1 + 2**32, 2**32, 0], 100) for word in row}) == 400


def test_every_bit_is_set_half_the_time_and_neighbours_have_nothing_in_common() -> None:
    """Of 64,000 words each bit is set 32,000 times, give or take five times sqrt(64,000) / 2 = 126; so are bits that differ between
    words of neighbouring clients, and between one word and the next."""
    numbers = words(0, "batches", 1, of=np.arange(1000), count=64)
    for value in (numbers, numbers[1:] ^ numbers[:-1], numbers[:, 1:] ^ numbers[:, :-1]):
        counts = [int((value >> np.uint64(bit) & np.uint64(1)).sum()) for bit in range(64)]
        np.testing.assert_allclose(counts, value.size / 2, atol=5 * value.size**0.5 / 2)


def numbers_of(streams: Streams, client: int, count: int = 5) -> list[int]:
    """Numbers of odd widths, which leave bits in the generator's buffer."""
    generator = streams.of(client)
    return [int(generator.integers(2**31, dtype=np.uint32)) for _ in range(count)] + generator.choice(50, 7).tolist()


def test_a_clients_stream_begins_anew_whatever_was_drawn_before() -> None:
    streams = Streams(0, "population")
    alone = {client: numbers_of(Streams(0, "population"), client) for client in (0, 1, 7, 10**12)}
    for client in (7, 0, 10**12, 7, 1, 0):
        numbers_of(streams, client + 1, count=3)
        assert numbers_of(streams, client) == alone[client]
    assert len({tuple(numbers) for numbers in alone.values()}) == 4


@pytest.mark.parametrize("other", [(1, "population"), (0, "population size")])
def test_streams_of_other_seeds_and_purposes_differ(other: tuple[int, str]) -> None:
    assert numbers_of(Streams(*other), 3) != numbers_of(Streams(0, "population"), 3)


def test_streams_do_not_overlap() -> None:
    streams = Streams(0, "population")
    numbers_drawn = [int(number) for client in range(200) for number in streams.of(client).integers(0, 2**63, 50)]
    assert len(set(numbers_drawn)) == len(numbers_drawn)


def test_blocks_of_clients_change_no_number() -> None:
    many = np.arange(2 * BLOCK + 3)
    np.testing.assert_array_equal(words(0, "noise", 1, of=many, count=3)[-4:], words(0, "noise", 1, of=many[-4:], count=3))
    assert words(0, "noise", 1, of=many[:0], count=3).shape == (0, 3)


def test_uniforms_are_the_upper_bits_of_words() -> None:
    clients = np.arange(1000)
    drawn = uniforms(5, "size", of=clients)
    assert drawn.tolist() == [word / 2**53 for word in (words(5, "size", of=clients, count=1)[:, 0] >> np.uint64(11)).tolist()]
    assert 0 <= drawn.min() < drawn.max() < 1


@pytest.mark.parametrize("among", [1, 2, 3, 100, 4096, 5000, 2 * BLOCK + 1])
def test_a_permutation_has_every_number_once(among: int) -> None:
    order = permuted(0, "cohort", 1, of=np.arange(among), among=among)
    assert np.sort(order).tolist() == list(range(among))


def test_a_place_of_a_permutation_depends_on_no_other() -> None:
    places = np.array([10**12 - 1, 0, 7, 10**11])
    whole = permuted(3, "cohort", 2, of=places, among=10**12)
    assert [int(permuted(3, "cohort", 2, of=places[i : i + 1], among=10**12)[0]) for i in range(4)] == whole.tolist()
    assert whole.min() >= 0
    assert whole.max() < 10**12


def test_every_pair_of_numbers_comes_first_equally_often() -> None:
    """Of 11 numbers, the first two of 22,000 orders: 110 pairs, 200 times each, and chi squared of 109 degrees within 5 sigma."""
    pairs = np.array([permuted(seed, "cohort", 1, of=np.arange(2), among=11) for seed in range(22_000)])
    counts = np.bincount(pairs @ [11, 1], minlength=121)
    counts = counts[counts > 0]
    assert len(counts) == 110
    assert abs(((counts - 200) ** 2 / 200).sum() - 109) < 5 * np.sqrt(2 * 109)


def test_the_first_places_are_spread_evenly() -> None:
    """A tenth of 100,000 numbers over 100 stretches: 100 in each; chi squared of 99 degrees, a little less without replacement."""
    for round_number in range(5):
        drawn = permuted(0, "cohort", round_number, of=np.arange(10_000), among=100_000)
        counts = np.bincount(drawn // 1000, minlength=100)
        assert abs(((counts - 100) ** 2 / 100).sum() / 0.9 - 99) < 5 * np.sqrt(2 * 99)
