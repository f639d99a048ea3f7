# SPDX-License-Identifier: 0BSD
"""The oracle against scalar loops that follow docs/design.md, and against onnxruntime."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
from nets import conv, dense, miniature_alexnet, random_layer
from onnx import TensorProto, helper, numpy_helper

from bdcc.approx.model import DecomposedModel, QuantizedModel, TensorQuant
from bdcc.approx.simulate import exact_exp, layer_constants, pool_counts, run_exact, run_float
from bdcc.ir.graph import (
    F32,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Lrn,
    MaxPool,
    Node,
    Relu,
    Softmax,
    make_graph,
    output_shape,
)

f32 = np.float32
SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-42, 88.5, -90.0], f32)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    np.testing.assert_array_equal(
        np.ascontiguousarray(a, f32).view(np.uint32), np.ascontiguousarray(b, f32).view(np.uint32)
    )


def maps(rng: np.random.Generator, *shape: int, special: bool = False) -> F32:
    x = rng.normal(size=shape).astype(f32)
    if special:
        places = rng.choice(x.size, size=min(x.size // 2, 24), replace=False)
        x.reshape(-1)[places] = np.resize(SPECIAL, len(places))
    return x


def run_one(node: Node, x: F32) -> F32:
    graph = make_graph(
        name="one", input_name=node.input, input_shape=x.shape, output=node.output, nodes=[node]
    )
    return run_float(graph, x)[node.output]


def canonical(y: np.ndarray) -> F32:
    out = np.array(y, f32)
    out.view(np.uint32)[np.isnan(out)] = 0x7FC00000
    return out


# --- scalar references ----------------------------------------------------------------------


def taps(node, size, oh, ow):
    """Positions (kh, kw, y, x) of one window, ascending, those inside the map only."""
    for kh in range(node.kernel[0]):
        for kw in range(node.kernel[1]):
            y = oh * node.strides[0] - node.pads[0] + kh * node.dilations[0]
            x = ow * node.strides[1] - node.pads[1] + kw * node.dilations[1]
            if 0 <= y < size[0] and 0 <= x < size[1]:
                yield kh, kw, y, x


def conv_scalar(node: Conv, x: F32) -> F32:
    shape = output_shape(node, x.shape)
    out = np.empty(shape, f32)
    depth, filters = node.weight.shape[1], shape[0] // node.groups
    for n, oh, ow in np.ndindex(*shape):
        acc, first = f32(0), n // filters * depth
        for kh, kw, r, c in taps(node, x.shape[1:], oh, ow):
            for ci in range(depth):
                acc = acc + x[first + ci, r, c] * node.weight[n, ci, kh, kw]
        out[n, oh, ow] = acc + node.bias[n]
    return out


def dense_scalar(node: Dense, x: F32, map_shape: tuple[int, int, int]) -> F32:
    channels, height, width = map_shape
    out = np.empty(len(node.weight), f32)
    for n in range(len(out)):
        acc = f32(0)
        for h in range(height):
            for w in range(width):
                for c in range(channels):
                    k = (c * height + h) * width + w
                    acc = acc + x[k] * node.weight[n, k]
        out[n] = acc + node.bias[n]
    return out


def pool_scalar(node: MaxPool | AveragePool, x: F32) -> F32:
    shape = output_shape(node, x.shape)
    out = np.empty(shape, f32)
    for c, oh, ow in np.ndindex(*shape):
        seen = [x[c, r, q] for _, _, r, q in taps(node, x.shape[1:], oh, ow)]
        if isinstance(node, MaxPool):
            m = seen[0]
            for v in seen[1:]:
                m = v if v > m or v != v else m
            out[c, oh, ow] = m
            continue
        total, count = f32(0), len(seen)
        for v in seen:
            total = total + v
        if node.count_include_pad:
            grown = [x.shape[i + 1] + node.pads[i] + node.pads[i + 2] for i in (0, 1)]
            count = sum(
                oh * node.strides[0] + kh * node.dilations[0] < grown[0]
                and ow * node.strides[1] + kw * node.dilations[1] < grown[1]
                for kh in range(node.kernel[0])
                for kw in range(node.kernel[1])
            )
        out[c, oh, ow] = total / f32(count)
    return out


def lrn_scalar(node: Lrn, x: F32) -> F32:
    out = np.empty_like(x)
    quarters = round(node.beta * 4)
    for c, *place in np.ndindex(*x.shape):
        q = f32(0)
        for i in range(c - (node.size - 1) // 2, c + node.size // 2 + 1):
            if 0 <= i < len(x):
                q = q + x[(i, *place)] * x[(i, *place)]
        t = f32(node.bias) + f32(node.alpha / node.size) * q
        factors = [t] * (quarters // 4)
        factors += [np.sqrt(t)] if quarters % 4 >= 2 else []
        factors += [np.sqrt(np.sqrt(t))] if quarters % 2 else []
        p = factors[0]
        for factor in factors[1:]:
            p = p * factor
        out[(c, *place)] = x[(c, *place)] / p
    return out


def exp_scalar(x: np.float32) -> np.float32:
    if x != x:
        return x
    if x < -87:
        return f32(0)
    if x > 88:
        return f32(np.inf)
    n = np.rint(x * f32(1.44269504))
    r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f32(c)
    y = ((p * (r * r)) + r) + f32(1)
    return np.ldexp(y, int(n)).astype(f32)


def softmax_scalar(x: F32) -> F32:
    out = np.empty_like(x)
    for place in np.ndindex(*x.shape[1:]):
        column = [x[(c, *place)] for c in range(len(x))]
        m = column[0]
        for v in column[1:]:
            m = v if v > m or v != v else m
        e = [exp_scalar(v - m) for v in column]
        total = f32(0)
        for v in e:
            total = total + v
        for c, v in enumerate(e):
            out[(c, *place)] = v / total
    return out


@pytest.fixture(autouse=True)
def _scalar_arithmetic():
    """The scalar loops overflow and make NaNs on purpose."""
    with np.errstate(all="ignore"):
        yield


# --- float layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": (1, 1)},
        {"strides": (2, 3), "pads": (1, 0, 2, 1)},
        {"dilations": (2, 1), "pads": (2, 2, 0, 1)},
        {"kernel": (5, 2), "groups": 2, "pads": (2, 1, 2, 0)},
        {"groups": 4, "strides": (3, 3)},
    ],
)
def test_conv(options: dict, special: bool) -> None:
    rng = np.random.default_rng(3)
    node = conv(rng, "c", "x", 4, 8, **options)
    x = maps(rng, 4, 7, 9, special=special)
    same_bits(run_one(node, x), canonical(conv_scalar(node, x)))


@pytest.mark.parametrize("special", [False, True])
def test_dense_sums_in_physical_order(special: bool) -> None:
    rng = np.random.default_rng(4)
    node, x = dense(rng, "d", "f", 3 * 4 * 5, 7), maps(rng, 3, 4, 5, special=special)
    graph = make_graph(
        name="flat",
        input_name="x",
        input_shape=x.shape,
        output="d_out",
        nodes=[Flatten(name="flatten", input="x", output="f"), node],
    )
    got = run_float(graph, x)["d_out"]
    same_bits(got, canonical(dense_scalar(node, x.reshape(-1), x.shape)))
    if not special:  # the order matters, or this test would show nothing
        other = run_one(dense(np.random.default_rng(4), "d", "f", 60, 7), x.reshape(-1))
        assert (got != other).any()
        np.testing.assert_allclose(got, other, rtol=1e-4)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (3, 3), "strides": (2, 2)},
        {"kernel": (2, 3), "strides": (2, 1), "pads": (0, 1, 1, 2)},
        {"kernel": (3, 2), "dilations": (2, 3), "pads": (1, 1, 0, 0)},
    ],
)
def test_pools(options: dict, ceil_mode: bool, special: bool) -> None:
    x = maps(np.random.default_rng(5), 3, 8, 7, special=special)
    nodes = [
        MaxPool(name="p", input="x", output="y", ceil_mode=ceil_mode, **options),
        *(
            AveragePool(
                name="p",
                input="x",
                output="y",
                ceil_mode=ceil_mode,
                count_include_pad=include,
                **options,
            )
            for include in (False, True)
        ),
    ]
    for node in nodes:
        same_bits(run_one(node, x), canonical(pool_scalar(node, x)))


@pytest.mark.parametrize("special", [False, True])
def test_relu_and_global_average(special: bool) -> None:
    x = maps(np.random.default_rng(6), 2, 5, 5, special=special)
    relu = [f32(0) if v < 0 else v for v in x.reshape(-1)]
    same_bits(run_one(Relu(name="r", input="x", output="y"), x), canonical(relu).reshape(x.shape))
    means = []
    for plane in x.reshape(2, -1):
        total = f32(0)
        for v in plane:
            total = total + v
        means.append(total / f32(25))
    got = run_one(GlobalAveragePool(name="g", input="x", output="y"), x)
    same_bits(got, canonical(means).reshape(2, 1, 1))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("beta", [0.25, 0.5, 0.75, 1.0, 1.25, 2.0, 3.75])
def test_lrn(size: int, beta: float, special: bool) -> None:
    x = maps(np.random.default_rng(7), 6, 3, 2, special=special)
    node = Lrn(name="n", input="x", output="y", size=size, alpha=0.3, beta=beta, bias=1.5)
    same_bits(run_one(node, x), canonical(lrn_scalar(node, x)))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3, 2)])
def test_softmax(shape: tuple[int, ...], special: bool) -> None:
    x = 20 * maps(np.random.default_rng(8), *shape, special=special)
    node = Softmax(name="s", input="x", output="y")
    same_bits(run_one(node, x), canonical(softmax_scalar(x)))


def test_exp_is_the_polynomial_and_close_to_exp() -> None:
    edges = [-87.0, np.nextafter(f32(-87), f32(0)), np.nextafter(f32(-87), f32(-90)), 88.0]
    x = np.concatenate(
        [SPECIAL, np.array([*edges, np.nextafter(f32(88), f32(90)), 0.34657359], f32)]
    )
    x = np.concatenate([x, np.random.default_rng(9).uniform(-87, 88, 500).astype(f32)])
    same_bits(canonical(exact_exp(x)), canonical([exp_scalar(v) for v in x]))
    inside = x[(x >= -87) & (x <= 88)]
    true = np.array([math.exp(v) for v in inside])
    assert np.abs(exact_exp(inside) / true - 1).max() < 2.5e-7


# --- decomposed layers ----------------------------------------------------------------------


def quantize_scalar(x: F32, quant: TensorQuant) -> tuple[np.ndarray, np.float32, int]:
    """codes, delta, z of one tensor, value by value."""
    top = 2**quant.bits - 1
    if quant.delta is None:
        real = [v for v in x.reshape(-1) if v == v]
        lo, hi = f32(min([f32(0), *real])), f32(max([f32(0), *real]))
        delta = hi / f32(top) - lo / f32(top)
        if not delta >= f32(2.0**-100):
            delta, z = f32(1), 0
        else:
            delta = min(delta, f32(2.0**100))
            z = int(min(max(np.rint(-lo * (f32(1) / delta)), 0), top))
    else:
        delta, z = quant.delta, quant.zero_point
    r = f32(1) / delta
    codes = [z if v != v else int(min(max(np.rint(v * r), -z), top - z)) + z for v in x.reshape(-1)]
    return np.array(codes).reshape(x.shape), delta, z


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    "quant",
    [
        TensorQuant(bits=3, delta=f32(0.4), zero_point=3),
        TensorQuant(bits=8, delta=f32(0.013), zero_point=0),
        TensorQuant(bits=1, delta=f32(0.7), zero_point=1),
        TensorQuant(bits=5, delta=None),
    ],
)
def test_decomposed_layers_count_bits(quant: TensorQuant, special: bool) -> None:
    """y_int from the definition: popcounts of bit planes; y from two roundings."""
    rng = np.random.default_rng(10)
    node = conv(rng, "c", "x", 4, 6, groups=2, strides=(2, 1), pads=(1, 0, 2, 1), kernel=(3, 2))
    layer, x = random_layer(rng, node.weight.shape, 3), maps(rng, 4, 5, 6, special=special)
    graph = make_graph(name="g", input_name="x", input_shape=x.shape, output="c_out", nodes=[node])
    model = DecomposedModel(graph=graph, layers={"c": layer})
    trace = run_exact(QuantizedModel(decomposed=model, tensors={"x": quant}), x)

    codes, delta, z = quantize_scalar(x, quant)
    np.testing.assert_array_equal(trace.codes["x"], codes)
    for n, oh, ow in np.ndindex(*trace.sums["c"].shape):
        inside = {(kh, kw): (r, c) for kh, kw, r, c in taps(node, x.shape[1:], oh, ow)}
        column = [
            codes[(n // 3 * 2 + ci, *inside[kh, kw])] if (kh, kw) in inside else z
            for ci in range(2)
            for kh in range(3)
            for kw in range(2)
        ]
        y_int = w_sum = 0
        for basis in range(3):
            ones = [int(s) >> basis & 1 for s in layer.signs[n]]
            acc = sum(
                (q >> plane & m) << plane
                for q, m in zip(map(int, column), ones, strict=True)
                for plane in range(8)
            )
            y_int += int(layer.coefficients[n, basis]) * (2 * acc - int(sum(column)))
            w_sum += int(layer.coefficients[n, basis]) * (2 * sum(ones) - len(ones))
        assert trace.sums["c"][n, oh, ow] == y_int
        if quant.delta is None:
            scale = layer.scale[n] * delta
            bias = layer.bias[n] - (scale * f32(z)) * f32(w_sum)
        else:
            step = float(layer.scale[n]) * float(delta)
            scale, bias = f32(step), f32(float(layer.bias[n]) - step * z * w_sum)
        same_bits(trace.values["c_out"][n, oh, ow], f32(scale * f32(y_int)) + bias)


def test_dynamic_layers_take_the_range_of_the_picture_and_static_constants_do_not() -> None:
    rng = np.random.default_rng(11)
    layer = random_layer(rng, (5, 9), 2)
    scale, bias, sums = layer_constants(layer, TensorQuant(bits=4, delta=None))
    assert scale is layer.scale
    assert bias is layer.bias
    np.testing.assert_array_equal(sums, layer.integer_weights().sum(axis=1))
    scale, bias, _ = layer_constants(layer, TensorQuant(bits=4, delta=f32(0.3), zero_point=7))
    np.testing.assert_array_equal(scale, (layer.scale.astype(float) * float(f32(0.3))).astype(f32))
    expected = layer.bias - layer.scale.astype(float) * float(f32(0.3)) * 7 * sums
    np.testing.assert_array_equal(bias, expected.astype(f32))


def test_whole_network_sees_the_quantized_input_of_each_layer() -> None:
    """Layer by layer: what run_exact says equals float arithmetic on the dequantized codes."""
    graph, rng = miniature_alexnet(), np.random.default_rng(12)
    layers = {n.name: random_layer(rng, n.weight.shape, 2) for n in graph.weight_layers}
    del layers["conv2"]  # stays float
    tensors = {
        n.input: TensorQuant(bits=6, delta=f32(0.05), zero_point=9)
        for n in graph.weight_layers
        if n.name in layers
    }
    model = DecomposedModel(graph=graph, layers=layers)
    x = maps(rng, 3, 13, 13)
    trace = run_exact(QuantizedModel(decomposed=model, tensors=tensors), x)
    assert set(trace.values) == set(graph.shapes)
    assert set(trace.codes) == set(tensors)
    assert set(trace.sums) == set(layers)
    for node in graph.nodes:
        assert trace.values[node.output].shape == graph.shapes[node.output]
        if node.name in layers:
            source = f32(0.05) * (trace.codes[node.input].astype(f32) - f32(9))
            weight = layers[node.name].weights().reshape(node.weight.shape)
            options = {f: getattr(node, f) for f in node.__slots__ if f not in ("weight", "bias")}
            twin = type(node)(weight=weight, bias=layers[node.name].bias, **options)
            np.testing.assert_allclose(
                run_one(twin, source), trace.values[node.output], rtol=1e-4, atol=1e-4
            )
        else:
            same_bits(trace.values[node.output], run_one(node, trace.values[node.input]))


def test_wrong_inputs_are_refused() -> None:
    graph = miniature_alexnet()
    with pytest.raises(ValueError, match="must be float32"):
        run_float(graph, np.zeros((3, 13, 13)))
    with pytest.raises(ValueError, match=r"\(3, 13, 13\)"):
        run_float(graph, np.zeros((3, 13, 12), f32))


# --- against onnxruntime --------------------------------------------------------------------


def run_onnx(op: str, x: F32, weights: dict[str, F32], **attributes) -> F32:
    node = helper.make_node(op, ["x", *weights], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, *x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x[None]})[0])[0]


def test_float_layers_agree_with_onnxruntime() -> None:
    rng = np.random.default_rng(13)
    x = maps(rng, 6, 11, 9)

    def close(node: Node, op: str, weights: dict[str, F32] | None = None, **attributes) -> None:
        ours, theirs = run_one(node, x), run_onnx(op, x, weights or {}, **attributes)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()

    node = conv(rng, "c", "x", 6, 8, groups=2, strides=(2, 1), pads=(1, 2, 0, 1))
    weights = {"w": node.weight, "b": node.bias}
    close(node, "Conv", weights, group=2, strides=[2, 1], pads=[1, 2, 0, 1])
    for size, beta, bias in ((5, 0.75, 2.0), (1, 0.5, 1.0), (3, 1.25, 1.0)):
        lrn = Lrn(name="n", input="x", output="y", size=size, alpha=0.5, beta=beta, bias=bias)
        close(lrn, "LRN", size=size, alpha=0.5, beta=beta, bias=bias)
    close(Softmax(name="s", input="x", output="y"), "Softmax", axis=1)
    pool = {"kernel": (3, 2), "strides": (2, 2), "pads": (1, 0, 1, 1)}
    theirs = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}
    for ceil in (False, True):
        node = MaxPool(name="p", input="x", output="y", ceil_mode=ceil, **pool)
        close(node, "MaxPool", ceil_mode=int(ceil), **theirs)
    for include in (False, True):
        node = AveragePool(name="p", input="x", output="y", count_include_pad=include, **pool)
        close(node, "AveragePool", count_include_pad=int(include), **theirs)
    close(GlobalAveragePool(name="g", input="x", output="y"), "GlobalAveragePool")


def test_divisors_of_large_windows_are_counted_without_listing_their_positions() -> None:
    node = AveragePool(
        name="p", input="x", output="y", kernel=(40000, 1), pads=(10, 0, 0, 0), dilations=(1, 1)
    )
    counts = pool_counts(node, (65000, 1), (25011, 1))
    assert counts.shape == (25011, 1)
    assert counts[:3, 0].tolist() == [39990, 39991, 39992]
    assert set(counts[10:, 0].tolist()) == {40000}
