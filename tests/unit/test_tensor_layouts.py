"""D12: 1D, 2D, 2.5D and 3D tensor parallelism against the papers' tables and figures by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.layouts.layout_blocks import block_figures, model_parameters
from memcalc.engine.parallel.layouts.layouts import (
    Product,
    TensorLayout,
    buffer_bytes,
    product_traffic,
    published_factors,
    tensor_layout,
)
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup

LAYOUTS = [("1d", 4, 1), ("2d", 4, 1), ("2.5d", 8, 2), ("3d", 8, 1), ("2d", 9, 1), ("2.5d", 12, 3)]
IDS = ["1d-4", "2d-4", "2.5d-8", "3d-8", "2d-9", "2.5d-12"]
UNIT = 27 * 64 * 25 * 12  # divides by every number of parts here


@pytest.mark.parametrize(
    ("name", "depth", "valid"),
    [
        ("1d", 1, [1, 2, 3, 4, 5, 6, 7, 8]),
        ("2d", 1, [1, 4, 9, 16, 25, 36, 49, 64]),
        ("2.5d", 2, [2, 8, 18, 32, 50, 72, 98, 128]),
        ("3d", 1, [1, 8, 27, 64, 125, 216, 343, 512]),
    ],
)
def test_valid_numbers_of_ranks(name, depth, valid):
    """q^2, q^2 d and q^3, as the papers require."""

    def makes(ranks: int) -> bool:
        try:
            return tensor_layout(name, ranks, depth).ranks == ranks
        except ConfigError:
            return False

    assert [n for n in range(1, valid[-1] + 1) if makes(n)] == valid


@pytest.mark.parametrize(
    ("name", "ranks", "depth", "said"),
    [
        ("2d", 8, 1, "rule: q^2; valid: 1, 4, 9, 16, 25, 36; nearest valid: 9"),
        ("3d", 16, 1, "rule: q^3; valid: 1, 8, 27, 64; nearest valid: 8"),
        ("2.5d", 4, 2, "rule: q^2 x depth; valid: 2, 8, 18"),
        ("4d", 4, 1, "tp_layout"),
        ("2d", 4, 2, "2.5d alone has one"),
    ],
)
def test_other_numbers_are_refused_with_the_valid_ones(name, ranks, depth, said):
    with pytest.raises(ConfigError) as error:
        tensor_layout(name, ranks, depth)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "ranks", "depth", "weights", "rows", "columns"),
    [
        # ColossalAI's documentation prints these shapes of an MLP 256 -> 1024 -> 256 on 16 rows
        ("1d", 2, 1, (256 * 512, 512 * 256), 16, 256),
        ("2d", 4, 1, (128 * 512, 512 * 128), 8, 128),
        ("2.5d", 8, 2, (128 * 512, 512 * 128), 4, 128),
        ("3d", 8, 1, (128 * 256, 512 * 64), 4, 128),
    ],
)
def test_shapes_of_the_documented_example(name, ranks, depth, weights, rows, columns):
    layout = tensor_layout(name, ranks, depth)
    assert (256 * 1024 // layout.matrices, 1024 * 256 // layout.matrices) == weights
    assert (16 // layout.rows, 256 // layout.stream, 1024 // layout.heads) == (
        rows, columns, 512,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ranks", "depth", "parameters", "activations", "bandwidth"),
    [
        ("1d", 8, 1, Fraction(1, 8), 1, Fraction(14, 8)),
        ("2d", 16, 1, Fraction(1, 16), Fraction(1, 16), Fraction(18, 4)),
        ("2.5d", 32, 2, Fraction(1, 16), Fraction(1, 32), Fraction(27, 8)),
        ("3d", 64, 1, Fraction(1, 64), Fraction(1, 64), Fraction(18, 64)),
    ],
)
def test_published_tables(name, ranks, depth, parameters, activations, bandwidth):
    """Tables of the four layouts with q = 4: 6(q-1)/q, 3(q-1)(d+1)/dq, 6(q-1)/q^3, 2(P-1)/P."""
    found = published_factors(tensor_layout(name, ranks, depth))
    assert found == (parameters, activations, bandwidth)


@pytest.mark.parametrize(("name", "ranks", "depth"), LAYOUTS, ids=IDS)
def test_traffic_of_a_product_is_the_published_bandwidth(name, ranks, depth):
    """X, W and Y of one size. 2D and 2.5D: the table counts q times the bytes a rank sends.

    2.5D's sum of the weight's gradient over the layers, 2(d-1)/d of the part, is not in the table.
    """
    layout = tensor_layout(name, ranks, depth)
    passes = product_traffic(layout, Product(UNIT, UNIT, UNIT))
    sent = passes.forward_bytes + passes.backward_bytes
    layers = Fraction(2 * (depth - 1), depth) * UNIT / layout.q**2 if depth > 1 else 0
    times = layout.q if name in ("2d", "2.5d") else 1
    assert (sent - layers) * times == published_factors(layout).bandwidth * UNIT


def test_traffic_of_summa_by_hand():
    """q = 3: a rank sends 2 blocks of X and of W, each a ninth, forward; twice that backward."""
    x, w, y = 9 * 100, 9 * 1000, 9 * 10
    passes = product_traffic(tensor_layout("2d", 9), Product(x, w, y))
    assert passes.forward_bytes == 2 * (100 + 1000)
    assert passes.backward_bytes == 2 * passes.forward_bytes


def test_traffic_of_3d_by_hand():
    """q = 2: X and W gathered over 2, Y scattered: half of a quarter of each, forward and back."""
    passes = product_traffic(tensor_layout("3d", 8), Product(80, 800, 8000))
    assert passes.forward_bytes == passes.backward_bytes == 10 + 100 + 1000


def test_one_all_reduce_a_product_in_1d():
    layout = tensor_layout("1d", 4)
    column = product_traffic(layout, Product(400, 4000, 800))
    row = product_traffic(layout, Product(400, 4000, 800, is_row=True))
    assert (column.forward_bytes, column.backward_bytes) == (0, 2 * 300)
    assert (row.forward_bytes, row.backward_bytes) == (2 * 600, 0)


def test_buffers_of_a_product():
    """SUMMA: two blocks of X and of W in flight; 3D: the gathered quarters and Y before its scatter."""
    product = Product(800, 1600, 2400)
    assert buffer_bytes(tensor_layout("1d", 4), product) == 0
    assert buffer_bytes(tensor_layout("2d", 4), product) == 2 * (200 + 400)
    assert buffer_bytes(tensor_layout("2.5d", 8, 2), product) == 2 * (100 + 400)
    assert buffer_bytes(tensor_layout("3d", 8), product) == 200 + 400 + 600


def gpt(micro_batch: int = 12, seq: int = 36) -> Plan:
    """GPT-2's block in bf16: h 768, f 4h, 12 heads; batch and widths fall into every layout here."""
    setup = TrainingSetup(precision="bf16", micro_batch_size=micro_batch, seq_len=seq)
    return plan_of(load_model("gpt2"), setup)


H, T = 768, 12 * 36


def part(layout: TensorLayout) -> tuple[int, int]:
    """Parts of activations and of statistics of rows."""
    return layout.rows * layout.q, layout.rows


@pytest.mark.parametrize(("name", "ranks", "depth"), LAYOUTS, ids=IDS)
def test_parameters_of_a_gpt_block(name, ranks, depth):
    """12 h^2 of matrices and 13 h of vectors; in 1D 7 h of the biases are cut, 6 h are not."""
    layout = tensor_layout(name, ranks, depth)
    vectors = {"1d": 7 * H // ranks + 6 * H, "2d": 13 * H / layout.q**2}
    expected = 12 * H * H / layout.matrices + vectors.get(name, 13 * H / layout.q)
    # a rank's share of a vector is rounded up, twelve vectors in all
    assert expected <= block_figures(gpt(), layout).parameters < expected + 12


@pytest.mark.parametrize(("name", "ranks", "depth"), LAYOUTS[1:], ids=IDS[1:])
def test_activations_of_a_gpt_block_are_divided_whole(name, ranks, depth):
    """34 T h with flash attention and 4 T a of its log-sum-exp by all ranks; 16 T of norms by rows."""
    layout = tensor_layout(name, ranks, depth)
    both, rows = part(layout)
    assert both == (layout.matrices * depth if name == "2.5d" else layout.ranks)
    expected = (34 * T * H + 4 * T * 12) // both + 16 * T // rows + 24
    assert block_figures(gpt(), layout).saved_bytes == expected


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_activations_of_a_gpt_block_in_1d(ranks):
    """Korthikanti et al. 2022, eq. 2 less the scores that flash attention does not keep: sbh(10 + 24/t)."""
    found = block_figures(gpt(), tensor_layout("1d", ranks)).saved_bytes
    assert found == 10 * T * H + 24 * T * H // ranks + 4 * T * 12 // ranks + 16 * T + 24


@pytest.mark.parametrize(
    ("name", "ranks", "depth", "forward", "backward"),
    [
        # elements a rank sends, of T h and of h^2; a block's inputs are 7 T h, its weights 12 h^2
        ("1d", 4, 1, (4 * Fraction(3, 4), 0), (4 * Fraction(3, 4), 0)),
        ("2d", 4, 1, (Fraction(7, 4), Fraction(12, 4)), (Fraction(14, 4), Fraction(24, 4))),
        ("2.5d", 8, 2, (Fraction(7, 8), Fraction(12, 4)), (Fraction(14, 8), Fraction(36, 4))),
        ("3d", 8, 1, (Fraction(16, 8), Fraction(12, 8)), (Fraction(16, 8), Fraction(12, 8))),
    ],
)
def test_traffic_of_a_gpt_block(name, ranks, depth, forward, backward):
    """Inputs 7 T h (h, h, h and 4h wide), outputs 9 T h, weights 12 h^2; bf16.

    1D: 4 (P-1)/P T h each way, as Narayanan et al. 2021, sec. 3.2. 2.5D: backward sums the weights'
    gradients over the two layers, 12 h^2 / 4 more.
    """
    found = block_figures(gpt(), tensor_layout(name, ranks, depth))
    assert found.forward_bytes == 2 * (forward[0] * T * H + forward[1] * H * H)
    assert found.backward_bytes == 2 * (backward[0] * T * H + backward[1] * H * H)


def test_buffers_of_a_gpt_block_are_those_of_its_largest_product():
    """down_proj on 2 x 2: two blocks of its 4 T h input and of its 4 h^2 weight, bf16."""
    found = block_figures(gpt(), tensor_layout("2d", 4)).buffer_bytes
    assert found == 2 * 2 * (4 * T * H + 4 * H * H) // 4


def test_one_rank_is_the_block_itself():
    plan = gpt()
    for name in ("1d", "2d", "2.5d", "3d"):
        found = block_figures(plan, tensor_layout(name, 1))
        assert found.parameters == 12 * H * H + 13 * H
        assert found.saved_bytes == 34 * T * H + 4 * T * 12 + 16 * T + 24
        assert found.forward_bytes == found.backward_bytes == 0


def test_a_model_with_three_matrices_and_grouped_heads():
    """Llama-3.1-8B, 2 x 2: every matrix in four, norms too; copies of weights under autocast alike."""
    setup = TrainingSetup(precision="bf16-mixed", micro_batch_size=2, seq_len=64)
    plan = plan_of(load_model("llama-3.1-8b"), setup)
    square = tensor_layout("2d", 4)
    assert model_parameters(plan, square) == 8_030_261_248 // 4
    whole, cut = (block_figures(plan, layout) for layout in (tensor_layout("2d", 1), square))
    tokens = 2 * 64
    statistics = 2 * 4 * tokens  # one fp32 number a token and norm
    assert cut.saved_bytes == (whole.saved_bytes - statistics - 24) // 4 + statistics // 2 + 24


def test_more_ranks_never_hold_more():
    plan = gpt()
    order = [tensor_layout("2d", 1), tensor_layout("2d", 4), tensor_layout("2d", 9)]
    figures = [block_figures(plan, layout) for layout in order]
    assert figures[0].parameters > figures[1].parameters > figures[2].parameters
    assert figures[0].saved_bytes > figures[1].saved_bytes > figures[2].saved_bytes


@pytest.mark.parametrize(
    ("model", "setup", "layout", "said"),
    [
        ("gpt2", {"micro_batch_size": 3}, ("2d", 4), "nearest valid: 4"),
        ("gpt2", {"micro_batch_size": 2}, ("3d", 8), "nearest valid: 4"),
        ("gpt2", {"micro_batch_size": 5}, ("2d", 25), "heads into 5"),
        ("llama-3.2-3b", {"micro_batch_size": 3}, ("2d", 9), "key/value heads into 3; got 8"),
        ("mixtral-8x7b", {"micro_batch_size": 2}, ("2d", 4), "dense blocks"),
    ],
)
def test_what_does_not_fall_into_equal_parts_is_refused(model, setup, layout, said):
    plan = plan_of(load_model(model), TrainingSetup(seq_len=64, **setup))
    with pytest.raises(ConfigError) as error:
        block_figures(plan, tensor_layout(*layout))
    assert said in str(error.value) and "\n" not in str(error.value)
