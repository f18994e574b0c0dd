from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.task import AudioInput
from edgeserve.task import audio


def pcm(samples, *, width: int = 2, channels: int = 1, rate: int = 16_000) -> bytes:
    """A WAV file as the standard library writes it."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"".join(value.to_bytes(width, "little", signed=width > 1) for value in samples))
    return buffer.getvalue()


def riff(kind: int, bits: int, samples: bytes, *, extra: bytes = b"", channels: int = 1, before: bytes = b"") -> bytes:
    block = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, 16_000, 16_000 * block, block, bits) + extra
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(layout)) + layout
    body += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def read(data: bytes) -> list[float]:
    return audio.read_wav(data, rate=16_000, what="a.wav").tolist()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pcm([0, 128, 255], width=1), [-1.0, 0.0, 127 / 128]),
        (pcm([-32_768, 0, 16_384]), [-1.0, 0.0, 0.5]),
        (pcm([-8_388_608, 1, 4_194_304], width=3), [-1.0, 1 / 8_388_608, 0.5]),
        (pcm([-(2**31), 1, 2**30], width=4), [-1.0, 1 / 2**31, 0.5]),
        (pcm([16_384, 0, -16_384, -16_384], channels=2), [0.25, -0.5]),
        (riff(3, 32, struct.pack("<3f", -1.5, 0, 0.25)), [-1.5, 0.0, 0.25]),
        (riff(3, 64, struct.pack("<2d", 0.1, 0.25)), [0.1, 0.25]),
        (riff(0xFFFE, 16, b"\0\x40", extra=struct.pack("<HHIH14s", 22, 16, 4, 1, b"\0" * 14)), [0.5]),
        (riff(1, 16, b"\0\x40", before=b"LIST" + struct.pack("<I", 3) + b"abc\0"), [0.5]),
    ],
    ids=["8", "16", "24", "32", "stereo", "float", "double", "extensible", "chunk of odd length before"],
)
def test_every_common_kind_of_wav_is_read(data: bytes, expected: list[float]) -> None:
    assert read(data) == expected


def test_a_wav_from_a_pipe_without_a_length_is_read_to_its_end() -> None:
    data = pcm([16_384, -16_384])
    place = data.index(b"data") + 4
    assert read(data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :]) == [0.5, -0.5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a WAV file"),
        (b"RIFF\0\0\0\0AVI LIST", "not a WAV file"),
        (pcm([]), "no samples"),
        (pcm([1, 2, 3])[:-1], "truncated in its chunk b'data'"),
        (pcm([1], rate=44_100), "44100 samples a second, the task takes 16000"),
        (riff(2, 4, b"\0" * 8, channels=2), "format 2 with 4 bits"),
        (riff(1, 12, b"\0" * 12), "format 1 with 12 bits"),
        (riff(1, 16, b"\0\0\0"), "within a sample"),
        (riff(3, 32, struct.pack("<f", float("nan"))), "not numbers"),
        (riff(3, 64, struct.pack("<d", 1e300)), "not numbers or beyond"),
        (pcm([1])[:30], "truncated in its chunk b'fmt '"),
        (pcm([1])[:36], "no samples"),
        (b"RIFF\0\0\0\0WAVEdata\x02\0\0\0\0\0", "no format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sound_that_cannot_be_used_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read(data)
    assert "a.wav" in raised.value.message


def test_what_lies_behind_the_window_is_not_looked_at() -> None:
    data = riff(3, 32, struct.pack("<6f", 0.5, 0, -0.5, 0.25, float("nan"), 1), channels=2)
    assert audio.read_wav(data, rate=16_000, what="a.wav", window=2).tolist() == [0.25, -0.125]


@pytest.mark.parametrize(("window", "fits"), [(None, False), (3, False), (2, True)])
def test_no_more_samples_are_taken_than_allowed(window: int | None, fits: bool) -> None:
    data = pcm(range(8), channels=2)
    if fits:
        assert len(audio.read_wav(data, rate=16_000, what="a.wav", window=window, most=5)) == window
    else:
        with pytest.raises(InputError, match="at most 5 are taken"):
            audio.read_wav(data, rate=16_000, what="a.wav", window=window, most=5)


@pytest.mark.parametrize("lowest", [-1e300, 1e300])
def test_samples_too_loud_on_either_side_are_refused(lowest: float) -> None:
    with pytest.raises(InputError, match="beyond"):
        read(riff(3, 64, struct.pack("<3d", 0, lowest, 0)))


def test_slow_sensors_need_no_mel_range_for_their_waveform() -> None:
    assert audio.feature_shape(AudioInput(rate=1_000, samples=100, coefficients=50)) == (100,)
    with pytest.raises(InputError, match="mel range"):
        AudioInput(rate=1_000, samples=100, features="log-mel")
    with pytest.raises(InputError, match="50 coefficients"):
        AudioInput(features="mfcc", coefficients=50)


GOOD = [pcm(range(8)), pcm(range(6), channels=2, width=3), riff(3, 32, struct.pack("<3f", -1.5, 0, 0.25))]


@given(
    data=st.sampled_from(GOOD) | st.binary(max_size=60).map(lambda tail: b"RIFF\0\0\0\0WAVE" + tail),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 60),
)
def test_damaged_wavs_raise_nothing_else(data: bytes, changes, cut: int) -> None:
    broken = bytearray(data)
    for place, byte in changes:
        broken[place % len(broken)] = byte
    try:
        found = audio.read_wav(bytes(broken[: len(broken) - cut]), rate=16_000, what="a.wav")
    except EdgeServeError:
        return
    assert found.ndim == 1
    assert len(found)
    assert np.isfinite(found).all()


def test_a_waveform_is_cut_or_padded_at_its_end_and_divided_by_its_largest_sample() -> None:
    entry = AudioInput(samples=4)
    assert audio.features(entry, np.array([0.5, -1, 0.25])).tolist() == [0.5, -1, 0.25, 0]
    assert audio.features(entry, np.array([0.5, -1, 0.25, 0.1, 9])).tolist() == pytest.approx([0.5, -1, 0.25, 0.1])
    peak = AudioInput(samples=4, peak=True)
    assert audio.features(peak, np.array([0.5, -1, 0.25, 0, 9])).tolist() == [1, -2, 0.5, 0]
    assert audio.features(peak, np.zeros(4)).tolist() == [0, 0, 0, 0]


def test_steps_carry_the_end_of_the_step_before() -> None:
    entry = AudioInput(chunk=3, context=2)
    steps = audio.features(entry, np.arange(1.0, 9.0))  # 8 samples: the last two do not fill a step
    assert steps.tolist() == [[0, 0, 1, 2, 3], [2, 3, 4, 5, 6]]
    assert audio.features(entry, np.array([7.0])).tolist() == [[0, 0, 7, 0, 0]]
    assert audio.feature_shape(entry) == (5,)


MFCC = AudioInput(samples=1024, features="mfcc", frame=256, step=128, fft=256, mels=12, coefficients=5)


def by_hand(samples: np.ndarray, entry: AudioInput) -> np.ndarray:
    """The recipe written out number by number."""
    rows = []
    bins = entry.fft // 2 + 1
    mel = [1127 * np.log(1 + hertz / 700) for hertz in np.arange(bins) * entry.rate / entry.fft]
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (entry.low_hz, entry.high_hz))
    width = (high - low) / (entry.mels + 1)
    for start in range(0, len(samples) - entry.frame + 1, entry.step):
        frame = samples[start : start + entry.frame]
        window = [0.5 - 0.5 * np.cos(2 * np.pi * n / entry.frame) for n in range(entry.frame)]
        spectrum = np.abs(
            [np.sum(frame * window * np.exp(-2j * np.pi * k * np.arange(entry.frame) / entry.fft)) for k in range(bins)]
        )
        energies = []
        for band in range(entry.mels):
            centre = low + width * (band + 1)
            weights = [max(0, 1 - abs(value - centre) / width) if k else 0 for k, value in enumerate(mel)]
            energies.append(np.log(np.dot(spectrum, weights) + entry.log_offset))
        rows.append(
            [
                2
                * sum(e * np.cos(np.pi * c * (2 * m + 1) / (2 * entry.mels)) for m, e in enumerate(energies))
                / np.sqrt(2 * entry.mels)
                for c in range(entry.coefficients)
            ]
        )
    return np.array(rows)


def test_mfcc_are_the_recipe_of_tensorflow() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 1024)
    found = audio.features(MFCC, samples)
    assert found.shape == audio.feature_shape(MFCC) == (7, 5)
    np.testing.assert_allclose(found, by_hand(samples, MFCC), rtol=1e-5, atol=1e-5)


def test_log_mel_is_what_the_first_coefficient_adds_up() -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, 1024)
    mels = AudioInput(samples=1024, features="log-mel", frame=256, step=128, fft=256, mels=12)
    energies = audio.features(mels, samples)
    assert energies.shape == audio.feature_shape(mels) == (7, 12)
    np.testing.assert_allclose(
        2 * energies.sum(axis=1) / np.sqrt(24), audio.features(MFCC, samples)[:, 0], rtol=1e-5, atol=1e-5
    )


def test_a_window_shorter_than_a_frame_is_refused() -> None:
    with pytest.raises(InputError, match="300 samples is shorter than a frame of 480"):
        audio.feature_shape(AudioInput(samples=300, features="mfcc"))


def test_features_of_raw_clips_are_those_that_were_published(realdata) -> None:
    raw = np.load(realdata / "data" / "kws_wav_240.npz")
    published = np.load(realdata / "data" / "kws_mfcc_even.npz")
    row = {clip: number for number, clip in enumerate(published["clip"])}
    features = published["x"][..., 0]
    entry = AudioInput(features="mfcc", peak=True)
    for clip, samples in zip(raw["clip"], raw["wav_int16_16khz"], strict=True):
        found = audio.features(entry, audio.sound(samples))
        np.testing.assert_allclose(found, features[row[clip]], atol=1e-4)
