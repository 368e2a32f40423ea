import pytest
import torch

from flora_hpc.algorithms._algorithm import Role, Sharing
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method
from flora_hpc.roles import Columns, Roles, freeze, roles_of, select

SHAPES = {"A1": (2, 2), "B1": (3,), "A2": (1, 2), "B2": (1,)}  # 4, 3, 2 and 1 numbers
FLAT = torch.arange(10.0)


def method(shapes: dict[str, tuple[int, ...]] = SHAPES) -> Method:
    """A method whose classes are all its tensors, one behind the other."""

    def classes(tensors, noise):  # type: ignore[no-untyped-def]
        return torch.cat([tensors[name].flatten(1) for name in shapes], 1)

    return Method(
        shapes,
        lambda rng: {name: torch.zeros(shape) for name, shape in shapes.items()},
        classes,
        lambda tensors, classes, inputs, noise: inputs @ classes.T,
        how="tensors",
    )


def roles(*of_rounds: dict[str, Role]) -> tuple[Roles, ...]:
    """The roles of the method's tensors; what is not named is shared."""
    sharing = Sharing(lambda name, number: of_rounds[number - 1].get(name, "shared"), len(of_rounds))
    return roles_of(sharing, method(), "sharing")


def refused(*of_rounds: dict[str, Role]) -> str:
    with pytest.raises(UserError) as error:
        roles(*of_rounds)
    return str(error.value)


# --- columns


@pytest.mark.parametrize(
    ("chosen", "slices", "numbers"),
    [
        ((True, True, True, True), (slice(0, 10),), range(10)),
        ((True, False, False, False), (slice(0, 4),), range(4)),
        ((False, True, True, False), (slice(4, 9),), range(4, 9)),
        ((True, False, True, True), (slice(0, 4), slice(7, 10)), (0, 1, 2, 3, 7, 8, 9)),
        ((False, False, False, False), (), ()),
    ],
)
def test_columns_of_chosen_tensors(chosen: tuple[bool, ...], slices: tuple[slice, ...], numbers: object) -> None:
    """Tensors side by side are one slice."""
    columns = select([4, 3, 2, 1], chosen)
    assert columns == Columns(slices, 10)
    assert columns.take(FLAT).tolist() == list(numbers)  # type: ignore[call-overload]
    assert len(columns) == len(list(numbers))  # type: ignore[call-overload]
    assert columns.is_all == all(chosen)


@pytest.mark.parametrize("shape", [(10,), (3, 10), (0, 10)])
@pytest.mark.parametrize("chosen", [(True, True, True, True), (False, True, True, False), (True, False, True, True), (False,) * 4])
def test_what_is_taken_is_put_back(chosen: tuple[bool, ...], shape: tuple[int, ...]) -> None:
    columns = select([4, 3, 2, 1], chosen)
    flat = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = flat.clone()
    taken = columns.take(flat)
    assert taken.shape == (*shape[:-1], len(columns))
    assert columns.put(flat, taken).equal(flat)
    result = columns.put(flat, taken + 1)
    assert columns.take(result).equal(taken + 1)
    assert flat.equal(before), "put makes a copy"
    mask = columns.put(torch.zeros(10), torch.ones(len(columns))).bool()
    assert result[..., ~mask].equal(flat[..., ~mask])


def test_columns_of_nothing() -> None:
    """A method without trained tensors has no numbers: these are all, and none."""
    nothing = select([], [])
    assert nothing.is_all
    assert nothing.take(torch.zeros(2, 0)).shape == (2, 0)


def test_one_slice_is_a_view() -> None:
    assert select([4, 3, 2, 1], [False, True, True, False]).take(FLAT).data_ptr() == FLAT[4:].data_ptr()


# --- roles


def test_the_columns_of_roles() -> None:
    """As in the drawing of the module: A1 is sent, B1 and B2 stay with their client, A2 is frozen."""
    (result,) = roles({"B1": "private", "A2": "frozen", "B2": "private"})
    assert result.frozen == {"A2"}
    assert result.trained.take(FLAT).tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert result.sent.take(FLAT).tolist() == [0, 1, 2, 3]
    assert result.own.take(FLAT).tolist() == [4, 5, 6, 9]
    trained = result.trained.take(FLAT)
    assert result.shared.take(trained).equal(result.sent.take(FLAT))
    assert result.private.take(trained).equal(result.own.take(FLAT))


def test_roles_that_take_turns() -> None:
    odd, even = roles({"A1": "frozen", "A2": "frozen"}, {"B1": "frozen", "B2": "frozen"})
    assert (odd.sent.take(FLAT).tolist(), even.sent.take(FLAT).tolist()) == ([4, 5, 6, 9], [0, 1, 2, 3, 7, 8])
    assert odd.trained == odd.sent
    assert len(odd.own) == 0


def test_a_method_without_trained_tensors_has_roles() -> None:
    (result,) = roles_of(Sharing(lambda name, number: "shared"), method({}))
    assert (len(result.trained), len(result.sent), result.frozen) == (0, 0, frozenset())


def test_nothing_is_shared() -> None:
    nobody: dict[str, Role] = dict.fromkeys(SHAPES, "private")
    assert refused(nobody) == (
        "sharing.name: none of the trained tensors A1, B1, A2, B2 is sent to the server in round 1; share one of them"
    )
    assert "in round 2; share" in refused({}, dict.fromkeys(SHAPES, "frozen"))


def test_a_long_list_of_tensors_is_cut() -> None:
    long = method({f"layer{i}": (1,) for i in range(9)})
    with pytest.raises(UserError, match=r"none of the trained tensors layer0, layer1, layer2, layer3 and 5 more is sent"):
        roles_of(Sharing(lambda name, number: "frozen"), long)


@pytest.mark.parametrize("other", ["shared", "frozen"])
def test_a_tensor_that_is_private_in_some_rounds_only(other: Role) -> None:
    assert refused({"B1": "private"}, {"B1": other}) == (
        f"sharing.name: B1 is private in round 1 and {other} in round 2; make it private in all rounds, or in none"
    )


# --- frozen tensors


def test_a_method_with_frozen_tensors_trains_the_others_alone() -> None:
    (result,) = roles({"A1": "frozen", "B2": "frozen"})
    frozen = freeze(method(), result, FLAT)
    assert list(frozen.shapes) == ["B1", "A2"]
    assert frozen.num_params == len(result.trained) == 5
    trained = torch.stack([result.trained.take(FLAT), 10 * result.trained.take(FLAT)])
    classes = frozen.classes(frozen.unpack(trained), None)
    assert classes[0].equal(FLAT)
    assert classes[1].tolist() == [0, 1, 2, 3, 40, 50, 60, 70, 80, 9]


def test_without_frozen_tensors_a_method_stays_itself() -> None:
    whole = method()
    (result,) = roles({"B1": "private"})
    assert freeze(whole, result, FLAT) is whole
