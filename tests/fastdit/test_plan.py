"""Plan files: written and read without loss, and refused with the field's name when anything is wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import make_plan, sparse_mode

import fastdit
from fastdit import InvalidInputError, Plan, PlanError
from fastdit.plan import PlanPoint
from fastdit.plan_config import PlanConfig

TABLE = [[["dense", "little"], ["much", "little"]]]


MODES = {
    "dense": "dense",
    "little": sparse_mode(density=0.1),
    "much": sparse_mode(density=0.5),
    "auto": sparse_mode(density=0.1, order="auto"),
}
# Heads with an order of their own, one that settles it in the run, and one without a choice.
ORDERS = [[[["gilbert", "score"], ["raster", "raster"]], [None, ["gilbert", "gilbert"]]]]


def example():
    return make_plan(
        [TABLE, [[["auto", "auto"], ["auto", "little"]]]],
        modes=MODES,
        orders=[None, ORDERS],
        promise={"min_psnr": 30.0},
        front=(PlanPoint(cost=0.1, error=2.0), PlanPoint(cost=1, error=0)),
        environment={"torch": "2.13"},
    )


def test_what_is_saved_is_loaded(tmp_path):
    plan, path = example(), tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]


def test_plans_without_orders_are_those_of_before(tmp_path):
    """The field leaves no trace where there is none, so that digests of older files hold."""
    plan, path = make_plan([TABLE]), tmp_path / "plan.json"
    plan.save(path)
    assert "orders" not in json.loads(path.read_text())["phases"][0]
    assert Plan.load(path).phases[0].orders is None
    assert PlanConfig(plan=plan).given_orders(0, 0, 0) is None


def test_layers_are_given_the_orders_of_their_heads(tmp_path):
    example().save(tmp_path / "plan.json")
    config = PlanConfig(plan=Plan.load(tmp_path / "plan.json"))
    assert config.given_orders(0, 0, 0) is None
    assert config.given_orders(0, 0, 1) == (("gilbert", "score"), ("raster", "raster"))
    assert config.given_orders(0, 1, 1) == (None, ("gilbert", "gilbert"))


def test_phases_follow_the_share_of_the_run():
    plan = make_plan([TABLE] * 3, until=[0.1, 0.5, 1.0])
    assert [plan.phase_at(step, 10) for step in range(10)] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [plan.phase_at(step, 4) for step in range(4)] == [0, 1, 2, 2]
    assert plan.phase_at(0, 1) == 0
    # .3 * 10 is not 3 in floating point.
    assert make_plan([TABLE] * 2, until=[0.1 + 0.2, 1.0]).phase_at(3, 10) == 1


def test_layers_get_the_modes_of_their_heads():
    groups = example().layer_config(0, 0, 1).groups(2)
    assert [(group.heads, group.config.density) for group in groups] == [((0,), 0.5), ((1,), 0.1)]
    assert example().layer_config(0, 0, 0).groups(2)[0].config == "dense"


def test_reuse_wraps_the_table_where_there_is_something_to_reuse():
    plan = make_plan([TABLE], refresh_every=5)
    assert isinstance(plan.layer_config(0, 0, 0), fastdit.CachedConfig)
    dense = make_plan([[[["dense"] * 2] * 2]], refresh_every=5)
    assert isinstance(dense.layer_config(0, 0, 0), fastdit.MixedConfig)


def cached_mode(**settings):
    source = fastdit.config_from_dict(sparse_mode(density=0.1))
    return fastdit.CachedConfig(source=source, min_recall=None, **settings).to_dict()


def test_single_heads_may_reuse_their_masks(tmp_path):
    modes = {"dense": "dense", "kept": cached_mode(refresh_every=7), "much": sparse_mode(density=0.5)}
    make_plan([[[["kept", "much"]]]], modes=modes).save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    kept, much = plan.layer_config(0, 0, 0).groups(2)
    assert (kept.config.refresh_every, kept.config.source.density, much.config.density) == (7, 0.1, 0.5)
    with pytest.raises(ValueError, match=r"refresh_every with modes\.kept, which reuses masks itself"):
        make_plan([[[["kept", "much"]]]], modes=modes, refresh_every=2)
    modes["kept"] = fastdit.CachedConfig(source=fastdit.config_from_dict(sparse_mode()), mass="exact").to_dict()
    with pytest.raises(ValueError, match=r"modes\.kept: method 'cached'"):
        make_plan([[[["kept", "much"]]]], modes=modes)


@pytest.mark.parametrize(("length", "fits"), [(36, True), (35, False), (144, True), (145, False)])
def test_lengths_far_from_that_of_the_search_are_refused(length, fits):
    grid = fastdit.VideoGrid(frames=1, height=1, width=length)
    if fits:
        example().check_grid(grid)
    else:
        with pytest.raises(PlanError, match=f"72 tokens, the call has {length}"):
            example().check_grid(grid)


def changed(*path, value):
    data = {**example().model_dump(mode="json"), "digest": example().digest()}
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
        (b"[1, 2]", "holds a list"),
        (b"[" * 100_000, "not readable JSON"),
        (changed("version", value=2), "version"),
        (changed("version", value=True), "version"),
        (changed("format", value="other"), "format"),
        (changed("promise", value=None), "promise: missing"),
        (changed("phases", 0, "until", value=None), r"phases.0.until: Field required"),
        (changed("phases", 0, "until", value="0.5"), r"phases.0.until"),
        (changed("phases", 1, "until", value=0.9), "rising shares that end with 1.0"),
        (changed("phases", 0, "until", value=1.0), "rising shares"),
        (changed("phases", 0, "modes", 0, 1, value=["much"]), r"phases.0.modes.0: accepted are 2 rows of 2"),
        (changed("phases", 0, "density", 0, 1, 1, value=1.5), r"phases.0.density.0.1.1"),
        (changed("phases", 0, "error", 0, value=[]), r"phases.0.error.0: accepted are 2 rows of 2"),
        (changed("phases", 0, "modes", 0, 1, 1, value="none"), "'none' is not among the modes"),
        (changed("phases", 0, "modes", 0, 1, 1, value=3), r"phases.0.modes.0.1.1"),
        (changed("modes", "little", "density", value=1.5), r"modes.little: density=1.5"),
        (changed("modes", "little", "density", value=[1]), r"modes.little"),
        (changed("modes", "little", "new", value=1), r"modes.little: new"),
        (changed("modes", "little", "method", value="exec"), r"modes.little: method"),
        (changed("modes", "little", "min_tokens", value=5), r"modes.little: schedule and min_tokens"),
        (changed("modes", "little", "implementation", value="flex"), r"modes: implementation"),
        (changed("transformers", 0, "num_heads", value=10**9), r"transformers.0.num_heads"),
        (changed("transformers", 0, "config_hash", value="x"), r"transformers.0.config_hash"),
        (changed("grid", "frames", value=0), r"grid.frames"),
        (
            changed("phases", 1, "orders", 0, 0, 0, 1, value="new"),
            r"phases.1.orders.0.0.0.1: Input should be 'gilbert'",
        ),
        (changed("phases", 1, "orders", 0, 0, 0, 0, value="score"), r"phases.1.orders.0.0.0.0"),
        (changed("phases", 1, "orders", 0, 0, 0, value=["gilbert"]), r"phases.1.orders.0.0.0"),
        (changed("phases", 1, "orders", 0, 0, 0, value="score"), r"phases.1.orders.0.0.0"),
        (changed("phases", 1, "orders", 0, 1, value=[]), r"phases.1.orders.0: accepted are 2 rows of 2"),
        (changed("phases", 1, "orders", value=[]), r"phases.1.orders: 0 tables"),
        (changed("phases", 1, "orders", value=[[[None] * 2]]), r"phases.1.orders.0: accepted are 2 rows of 2"),
        (
            changed("phases", 1, "orders", 0, 0, 1, 1, value="score"),
            r"phases.1.orders.0.0.1: \['raster', 'score'\] with mode 'auto': accepted is null, \['gilbert', 'g",
        ),
        (
            changed("phases", 1, "orders", 0, 1, 1, 1, value="score"),
            r"orders.0.1.1: .* with mode 'little': accepted is null, \['gilbert', 'gilbert'\]$",
        ),
        (
            changed("phases", 0, "orders", value=[[[["raster", "raster"], None], [None, None]]]),
            r"phases.0.orders.0.0.0: .* with mode 'dense': accepted is null$",
        ),
        (changed("extra", value=1), "extra"),
        (changed("predicted_error", value=float("nan")), "NaN"),
        (changed("predicted_error", value=float("inf")), "Infinity"),
        (changed("predicted_error", value=-1), "predicted_error"),
        (changed("predicted_error", value=0.02), "digest: the contents were changed"),
        (changed("digest", value=None), "digest"),
        (b'{"format": "fastdit-plan", "format": "fastdit-plan"}', "format: given twice"),
    ],
)
def test_every_fault_is_named(content, message):
    with pytest.raises(PlanError, match=message):
        Plan.parse(content)


def test_a_plan_edited_by_hand_loads_when_that_is_asked_for():
    plan = Plan.parse(changed("predicted_error", value=0.02), check_digest=False)
    assert plan.predicted_error == 0.02


def test_missing_files_and_huge_ones_are_refused(tmp_path):
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(PlanError, match="larger than 64 MiB"):
        Plan.load(tmp_path / "huge.json")


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(fastdit.OutputError, match="cannot be written"):
        example().save(tmp_path / "missing" / "plan.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(fastdit.OutputError, match="cannot be written"):
        example().save(tmp_path / "folder")
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def places(data, path=()):
    """Paths of all values in plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


ORIGINAL = example()
PLAIN = json.loads(json.dumps({**ORIGINAL.model_dump(mode="json"), "digest": ORIGINAL.digest()}))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)


@st.composite
def mutated_contents(draw):
    """The bytes of a plan with one value replaced, removed or added, or with bytes cut or changed."""
    kind = draw(st.sampled_from(["value", "remove", "add", "cut", "byte"]))
    data = json.loads(json.dumps(PLAIN))
    if kind in ("cut", "byte"):
        content = json.dumps(data).encode()
        place = draw(st.integers(0, len(content) - 1))
        return content[:place] + (b"" if kind == "cut" else bytes([draw(st.integers(0, 255))]) + content[place + 1 :])
    *parents, last = draw(st.sampled_from(list(places(data))))
    place = data
    for key in parents:
        place = place[key]
    if kind == "remove":
        del place[last]
    elif kind == "add" and isinstance(place, dict):
        place[draw(st.text(max_size=5))] = draw(VALUES)
    else:
        place[last] = draw(VALUES)
    return json.dumps(data).encode()


@settings(max_examples=1000)
@given(mutated_contents())
def test_a_mutated_plan_is_refused_or_equal(content):
    message, plan = "", ORIGINAL
    try:
        plan = Plan.parse(content)
    except PlanError as error:
        message = str(error)
    assert plan == ORIGINAL
    assert "\n" not in message
    assert len(message) < 2000


@settings(max_examples=300)
@given(mutated_contents())
def test_without_its_digest_a_mutated_plan_is_refused_or_whole(content):
    try:
        plan = Plan.parse(content, check_digest=False)
    except PlanError:
        return
    # Whatever was accepted can be used and written: nothing fails later.
    assert Plan.parse(json.dumps({**plan.model_dump(mode="json"), "digest": plan.digest()}).encode()) == plan
    for phase in range(len(plan.phases)):
        for layer in range(plan.transformers[0].num_layers):
            plan.layer_config(phase, 0, layer).groups(2) if plan.phases[phase].refresh_every == 1 else None


def test_modes_must_agree_on_what_holds_for_a_call():
    with pytest.raises(ValueError, match="implementation"):
        make_plan(
            [TABLE], modes={"dense": "dense", "little": sparse_mode(), "much": sparse_mode(implementation="flex")}
        )


def test_config_with_a_plan_takes_nothing_that_the_plan_decides():
    with pytest.raises(InvalidInputError, match="min_tokens=5 with a plan"):
        PlanConfig(plan=example(), min_tokens=5)
    with pytest.raises(InvalidInputError, match=r"accepted is a fastdit\.Plan"):
        PlanConfig()
