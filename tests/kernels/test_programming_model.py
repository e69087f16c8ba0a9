"""The first kernels against float64: awkward sizes, layouts, types and values; their errors."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

FLOATS = [
    torch.float16,
    torch.float32,
    torch.float64,
    # the interpreter adds the bits of bfloat16 as integers
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]
SIZES = [0, 1, 2, 31, 1023, 1024, 1025, 2047, 2048, 2049, 7919]
GUARD = 4096


def guarded(n, dtype, device):
    """A buffer of sevens; its first n elements are the output, the rest must stay."""
    buffer = torch.full((n + GUARD,), 7, dtype=dtype, device=device)
    return buffer[:n], buffer[n:]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_add(lecture, device, dtype, n):
    x, y = (torch.randn(n, device=device).to(dtype) for _ in range(2))
    out, guard = guarded(n, dtype, device)
    assert lecture.add(x, y, out=out.fill_(torch.nan)) is out
    assert torch.equal(out, (x.double() + y.double()).to(dtype))
    assert (guard == 7).all()
    assert torch.equal(lecture.add(x, y), out)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (5, 123, 123), (2, 0, 3)], ids=str)
def test_add_shapes(lecture, device, shape):
    x, y = torch.randn(2, *shape, device=device)
    total = lecture.add(x, y)
    assert total.shape == x.shape and torch.equal(total, x + y)


def test_add_layouts(lecture, device):
    x, y = torch.randn(2, 130, 70, device=device)
    for a, b in (
        (x.t(), y.t()),
        (x.t(), y.t().contiguous()),
        (x[:, 1:], y[:, :-1]),
        (x[::2, ::3], y[1::2, ::3]),
        (x[:1].expand(130, 70), y),
    ):
        total = lecture.add(a, b)
        assert total.is_contiguous() and torch.equal(total, a + b)


def test_add_in_place(lecture, device):
    x, y = torch.randn(2, 3000, device=device)
    wanted = x + y
    lecture.add(x, y, out=x)
    assert torch.equal(x, wanted)


def test_add_extreme_values(lecture, device):
    values = [0.0, -0.0, 1.0, 1e4, -1e4, 3e38, 1e-45, torch.inf, -torch.inf, torch.nan]
    x = torch.tensor(values, device=device).repeat_interleave(len(values))
    y = torch.tensor(values, device=device).repeat(len(values))
    total, wanted = lecture.add(x, y), x + y
    torch.testing.assert_close(total, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(total.signbit()[~wanted.isnan()], wanted.signbit()[~wanted.isnan()])


def test_add_gradient(lecture, device):
    x = torch.randn(7, 9, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.randn(9, 7, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: lecture.add(x, y.t()), (x, y))
    assert not lecture.add(x.detach(), y.detach().t()).requires_grad
    with torch.no_grad():
        assert not lecture.add(x, y.t()).requires_grad


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 5000), start=st.integers(0, 17), step=st.integers(1, 3))
def test_add_any_length(lecture, device, n, start, step):
    x, y = torch.randn(2, start + n * step, device=device)[:, start::step]
    assert torch.equal(lecture.add(x, y), x + y)


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (ValueError, "shape of x", lambda x: (x, x[:2])),
        (ValueError, "shape of x", lambda x: (x, x[:1])),
        (ValueError, "dtype of x", lambda x: (x, x.half())),
        (TypeError, "int32", lambda x: (x.int(), x.int())),
        (TypeError, "bool", lambda x: (x.bool(), x.bool())),
        (TypeError, "complex64", lambda x: (x.cfloat(), x.cfloat())),
        (ValueError, "device of x", lambda x: (x, x.to("meta"))),
    ],
)
def test_add_refuses(lecture, device, error, words, arguments):
    with pytest.raises(error, match=words):
        lecture.add(*arguments(torch.randn(3, 4, device=device)))


def test_add_refuses_out(lecture, device):
    x = torch.randn(3, 4, device=device)
    for out, words in (
        (x.new_empty(4, 3), "out with the shape"),
        (x.new_empty(3, 4).half(), "out with the dtype"),
        (x.new_empty(4, 3).t(), "contiguous"),
    ):
        with pytest.raises(ValueError, match=words):
            lecture.add(x, x, out=out)
    with pytest.raises(ValueError, match="gradient"):
        lecture.add(x.requires_grad_(), x, out=torch.empty_like(x))


@pytest.mark.gpu
@pytest.mark.parametrize("extra", [0, 1])
def test_add_beyond_int32(lecture, extra):
    n = 2**31 + 2048 + extra
    x = torch.ones(n, dtype=torch.float16, device="cuda")
    x[2**31 :] = 3
    out = torch.full_like(x, torch.nan)
    lecture.add(x, x, out=out)
    assert (out[: 2**31] == 2).all() and (out[2**31 :] == 6).all()


def exact_grey(image):
    """By pixel, in Python's integers."""
    rows = image.permute(1, 2, 0).tolist()
    grey = [[(299 * r + 587 * g + 114 * b + 500) // 1000 for r, g, b in row] for row in rows]
    return torch.tensor(grey, dtype=torch.uint8).view(image.shape[1:])


def pixels(*shape, device):
    return torch.randint(256, shape, dtype=torch.uint8, device=device)


SHAPES = [(0, 0), (0, 7), (7, 0), (1, 1), (1, 1023), (1, 1024), (1, 1025), (31, 33), (1025, 1)]
SHAPES += [(65, 16), (3, 2049), (129, 67)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grey(lecture, device, shape):
    image = pixels(3, *shape, device=device)
    wanted = exact_grey(image).to(device)
    assert torch.equal(lecture.rgb_to_grey_reference(image), wanted)
    out, guard = guarded(wanted.numel(), torch.uint8, device)
    out = out.view(shape).copy_(wanted + 1)
    assert lecture.rgb_to_grey(image, out=out) is out
    assert torch.equal(out, wanted)
    assert (guard == 7).all()


def test_grey_layouts(lecture, device):
    image = pixels(3, 40, 90, device=device)
    for view in (
        image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        image.flip(0),
        image[:, 3:, 5:-2],
        image[:, ::3, ::7],
        image.transpose(1, 2),
        image[:1].expand(3, 40, 90),
        image[:, :1, :1].expand(3, 50, 60),
    ):
        assert torch.equal(lecture.rgb_to_grey(view), lecture.rgb_to_grey_reference(view))


def test_grey_ends_of_the_scale(lecture, device):
    corners = torch.tensor([0, 1, 127, 254, 255], dtype=torch.uint8, device=device)
    image = torch.cartesian_prod(corners, corners, corners).t().reshape(3, 5, 25)
    grey = lecture.rgb_to_grey(image)
    assert torch.equal(grey, exact_grey(image).to(device))
    assert grey.min() == 0 and grey.max() == 255


def test_grey_is_near_the_weights_of_the_standard(lecture, device):
    image = pixels(3, 64, 64, device=device)
    red, green, blue = image.double()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (lecture.rgb_to_grey(image).double() - luma).abs().max() <= 0.5 + 1e-9


@settings(max_examples=20, deadline=None)
@given(height=st.integers(0, 40), width=st.integers(0, 1100))
def test_grey_any_shape(lecture, device, height, width):
    image = pixels(3, height, width, device=device)
    assert torch.equal(lecture.rgb_to_grey(image), lecture.rgb_to_grey_reference(image))


@pytest.mark.parametrize(
    ("error", "words", "argument"),
    [
        (TypeError, "float32", lambda image: image.float()),
        (TypeError, "int8", lambda image: image.to(torch.int8)),
        (ValueError, r"\(5, 6, 3\)", lambda image: image.permute(1, 2, 0)),
        (ValueError, r"\(5, 6\)", lambda image: image[0]),
        (ValueError, r"\(2, 3, 5, 6\)", lambda image: image.expand(2, 3, 5, 6)),
        (ValueError, "65,535 rows", lambda image: image[:, :1, :1].expand(3, 65536, 1024)),
    ],
)
def test_grey_refuses(lecture, device, error, words, argument):
    image = pixels(3, 5, 6, device=device)
    with pytest.raises(error, match=words):
        lecture.rgb_to_grey(argument(image))


def test_grey_refuses_out(lecture, device):
    image = pixels(3, 5, 6, device=device)
    for out in (image.new_empty(6, 5), image.new_empty(6, 5).t(), image.new_empty(3, 5, 6)):
        with pytest.raises(ValueError, match="contiguous out"):
            lecture.rgb_to_grey(image, out=out)
    with pytest.raises(TypeError, match="uint8"):
        lecture.rgb_to_grey(image, out=torch.empty(5, 6, device=device))


@pytest.mark.gpu
def test_grey_beyond_int32(lecture):
    image = pixels(3, 32768, 32800, device="cuda")  # 3.2e9 bytes
    grey = lecture.rgb_to_grey(image)
    for part in (slice(0, 8), slice(16000, 16008), slice(-8, None)):
        assert torch.equal(grey[part], lecture.rgb_to_grey_reference(image[:, part]))


def test_mistakes_are_those_that_the_page_tells(lecture, device, capsys):
    lecture.show_copy(lecture.copy_overlapping_kernel)
    lecture.show_copy(lecture.copy_unmasked_kernel)
    lecture.show_copy(lecture.copy_kernel)
    overlapping, unmasked, mended = capsys.readouterr().out.splitlines()
    assert overlapping.split()[1:] == [*"123456", *"....", "guard", *"......"]
    assert unmasked.split()[1:] == [*map(str, range(1, 11)), "guard", "11", "12", *"...."]
    assert mended.split()[1:] == [*map(str, range(1, 11)), "guard", *"......"]


def test_answer_1(lecture, monkeypatch, capsys):
    monkeypatch.setattr(triton, "cdiv", lambda n, block: n // block)
    lecture.show_copy(lecture.copy_kernel)
    assert capsys.readouterr().out.split()[1:] == [*"12345678..", "guard", *"......"]


@triton.jit
def grey_of(red, green, blue):
    return (299 * (red & 255) + 587 * (green & 255) + 114 * (blue & 255) + 500) // 1000


@triton.jit
def grey_words_kernel(words_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # four pixels, three words, a lane
    u = tl.load(words_ptr + 3 * i, mask=i < n)
    v = tl.load(words_ptr + 3 * i + 1, mask=i < n)
    w = tl.load(words_ptr + 3 * i + 2, mask=i < n)
    grey = grey_of(u, u >> 8, u >> 16) | grey_of(u >> 24, v, v >> 8) << 8
    grey |= grey_of(v >> 16, v >> 24, w) << 16 | grey_of(w >> 8, w >> 16, w >> 24) << 24
    tl.store(out_ptr + i, grey, mask=i < n)


def test_answer_3(lecture, device):
    image = torch.randint(256, (37, 52, 3), dtype=torch.uint8, device=device)
    out = torch.empty(37, 52, dtype=torch.uint8, device=device)
    words = image.view(-1).view(torch.int32), out.view(-1).view(torch.int32)
    grey_words_kernel[(4,)](*words, out.numel() // 4, BLOCK=128)
    assert torch.equal(out, lecture.rgb_to_grey_reference(image.permute(2, 0, 1)))
