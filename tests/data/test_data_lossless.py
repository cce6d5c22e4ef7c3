"""The kit's own JPEG Lossless decoder: exact for every predictor, safe on damaged streams."""

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed (pip install 'cspine-kit[fast]')")
codecs = pytest.importorskip("imagecodecs", reason="its encoder makes the streams")

from cspine_kit.data.reader.pixels.lossless import decode_lossless  # noqa: E402


def frame_of(bits, noise, shape=(37, 53), seed=3):
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) / sum(shape) * (1 << bits)
    return (smooth + rng.normal(0, noise, shape)).clip(0, (1 << bits) - 1).astype(np.uint16)


def encode(frame, bits, predictor=1):
    return codecs.jpeg8_encode(frame, bitspersample=bits, lossless=True, predictor=predictor)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(("bits", "noise"), [(12, 3), (12, 900), (16, 20), (16, 30000), (10, 0)])
def test_every_predictor(predictor, bits, noise):
    frame = frame_of(bits, noise)
    stream = encode(frame, bits, predictor)
    assert np.array_equal(codecs.jpeg8_decode(stream), frame), "the encoder is lossless"
    assert np.array_equal(decode_lossless(stream), frame)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_thin_frames_and_longest_codes(shape):
    frame = np.where(frame_of(16, 0, shape) % 2, 65535, 0).astype(np.uint16)
    frame.flat[0] = 32768
    assert np.array_equal(decode_lossless(encode(frame, 16)), frame)


def test_damaged_streams_are_refused_or_read_but_never_crash():
    stream, rng, refused = encode(frame_of(12, 15), 12), np.random.default_rng(0), 0
    for turn in range(4000):
        data = bytearray(stream)
        # Half of the injuries hit the markers.
        for _ in range(int(rng.integers(1, 4))):
            end = 120 if rng.random() < 0.5 else len(data)
            data[int(rng.integers(0, end))] = int(rng.integers(0, 256))
        if turn % 5 == 0:
            del data[int(rng.integers(2, len(data))) :]
        try:
            found = decode_lossless(bytes(data))
        except ValueError:
            refused += 1
        else:
            assert found.dtype == np.uint16 and found.ndim == 2
    assert 1000 < refused < 4000


def test_what_is_left_to_other_decoders():
    stream = encode(frame_of(12, 15), 12)
    with pytest.raises(ValueError, match="damaged"):
        decode_lossless(stream[: len(stream) // 2])
    at = stream.index(b"\xff\xda")
    with pytest.raises(ValueError, match="restart"):
        decode_lossless(stream[:at] + b"\xff\xdd\0\4\0\5" + stream[at:])
    lossy = codecs.jpeg8_encode(frame_of(12, 15), bitspersample=12)
    with pytest.raises(ValueError, match="not JPEG Lossless"):
        decode_lossless(lossy)
