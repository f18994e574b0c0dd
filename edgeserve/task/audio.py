"""Sound to tensors: WAV to mono samples, then the waveform, log mel energies, MFCC, or steps for a stateful model.

Computed in float64 and rounded to float32 at the end, so that the last digits, in which FFT and sums differ between
machines, are cut off. The MFCC are those of TensorFlow on magnitudes (`tf.signal.mfccs_from_log_mel_spectrograms`, HTK
mel scale).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_MEDIA_BYTES
from edgeserve.contracts.task import AudioInput

Sound = npt.NDArray[np.float64]
"""[samples], mono, whole numbers scaled to -1 <= x < 1"""

_PCM: Final = 1
_FLOAT: Final = 3
_EXTENSIBLE: Final = 0xFFFE
"""The format proper is then the first two bytes of the sub-format (WAVEFORMATEXTENSIBLE)."""
_MAX_CHANNELS: Final = 64
_MAX_CHUNKS: Final = 1000
"""Chunks before the samples: recorders write a handful."""
_LOUDEST: Final = 2.0**31
"""Of float samples: whole numbers of 32 bits that were never scaled; beyond it the file is damaged."""
_WRITE_PCM: Final = "write it as PCM, such as: ffmpeg -i sound -c:a pcm_s16le sound.wav"


def read_wav(data: bytes, *, rate: int, what: str, window: int | None = None, most: int = MAX_MEDIA_BYTES) -> Sound:
    """Decode a WAV file: PCM of 8, 16, 24 or 32 bits or float of 32 or 64; channels are averaged.

    Args:
        data: The file.
        rate: Samples a second that are expected.
        what: Name of the file for errors.
        window: Samples that are wanted of each channel: those behind are not looked at. None = all.
        most: Samples that they may be, all channels together.

    Raises:
        InputError: Not a WAV file, damaged, empty, too long, compressed, has another rate, or holds NaN.
    """
    layout, samples = None, None
    for name, chunk in _chunks(data, what):
        if name == b"fmt " and layout is None:
            layout = _layout(chunk, what)
        elif name == b"data":
            samples = chunk
            break
    if layout is None or samples is None:
        raise InputError(f"{what} has no {'format' if layout is None else 'samples'}", hint=_WRITE_PCM)
    kind, channels, found_rate, bits = layout
    if found_rate != rate:
        raise InputError(
            f"{what} has {found_rate} samples a second, the task takes {rate}",
            hint=f"resample it, such as: ffmpeg -i sound.wav -ar {rate} resampled.wav",
        )
    block = channels * bits // 8
    if len(samples) % block:
        raise InputError(f"{what} ends within a sample", hint="copy or record it again")
    if not samples:
        raise InputError(f"{what} holds no samples", hint="take it out of the data")
    wanted = samples if window is None else samples[: window * block]
    if len(wanted) * 8 > most * bits:
        raise InputError(f"{what} has {len(wanted) * 8 // bits} samples, at most {most} are taken", hint="cut it")
    values = _values(wanted, kind, bits, channels)
    if not max(-values.min(), values.max()) <= _LOUDEST:  # nor is NaN
        raise InputError(f"{what} holds samples that are not numbers or beyond {_LOUDEST:.0f}", hint=_WRITE_PCM)
    return values[:, 0] if channels == 1 else values.sum(axis=1) / channels


def sound(samples: npt.NDArray[np.generic]) -> Sound:
    """Scale samples of an array as `read_wav` does: int16 to -1 <= x < 1, floats as they are."""
    return samples.astype(np.float64) / (32_768 if samples.dtype == np.int16 else 1)


def features(entry: AudioInput, samples: Sound) -> npt.NDArray[np.float32]:
    """What the model is given.

    Args:
        entry: Says what.
        samples: Mono sound at its rate.

    Returns:
        float32 of `feature_shape`; with `chunk` [steps, context + chunk], where what does not fill a step is dropped
        and sound shorter than one step is padded to it.
    """
    if not entry.chunk:
        samples = samples[: entry.samples]
    if entry.peak and len(samples) and samples.max() != 0:
        samples = samples / samples.max()
    if entry.chunk:
        return _steps(entry, samples).astype(np.float32)
    window = np.zeros(entry.samples)
    window[: len(samples)] = samples
    if entry.features == "waveform":
        return window.astype(np.float32)
    hann, mel, dct = _matrices(entry)
    frames = np.lib.stride_tricks.sliding_window_view(window, entry.frame)[:: entry.step]
    spectrum = np.abs(np.fft.rfft(frames * hann, entry.fft))
    energies = np.log(spectrum @ mel + entry.log_offset)
    return (energies if entry.features == "log-mel" else energies @ dct).astype(np.float32)


def feature_shape(entry: AudioInput) -> tuple[int, ...]:
    """Shape of the features of one row (of one step with `chunk`).

    Raises:
        InputError: The window is shorter than one frame.
    """
    if entry.chunk:
        return (entry.context + entry.chunk,)
    if entry.features == "waveform":
        return (entry.samples,)
    if entry.samples < entry.frame:
        raise InputError(
            f"audio input {entry.name!r}: a window of {entry.samples} samples is shorter than a frame of {entry.frame}",
            hint="samples is the length of the window, frame that of one frame in it",
        )
    frames = 1 + (entry.samples - entry.frame) // entry.step
    return (frames, entry.mels if entry.features == "log-mel" else entry.coefficients)


def _steps(entry: AudioInput, samples: Sound) -> Sound:
    steps = max(1, len(samples) // entry.chunk)
    padded = np.zeros(entry.context + steps * entry.chunk)
    whole = samples[: steps * entry.chunk]
    padded[entry.context : entry.context + len(whole)] = whole
    return np.lib.stride_tricks.sliding_window_view(padded, entry.context + entry.chunk)[:: entry.chunk]


@functools.lru_cache(maxsize=16)
def _matrices(entry: AudioInput) -> tuple[Sound, Sound, Sound]:
    """Window [frame], mel weights [fft bins, mels], DCT [mels, coefficients]."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(entry.frame) / entry.frame)
    low, high = _mel(np.array([entry.low_hz, entry.high_hz]))
    edges = np.linspace(low, high, entry.mels + 2)
    bins = _mel(np.linspace(0, entry.rate / 2, entry.fft // 2 + 1))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    mel = np.maximum(0, np.minimum(rising, falling))
    mel[0] = 0  # the mean of the signal is not sound
    places = np.arange(entry.mels)[:, None] + 0.5
    dct = 2 * np.cos(np.pi / entry.mels * places * np.arange(entry.coefficients)) / np.sqrt(2 * entry.mels)
    for matrix in (hann, mel, dct):
        matrix.setflags(write=False)
    return hann, mel, dct


def _mel(hertz: Sound) -> Sound:
    mel: Sound = 1127 * np.log1p(hertz / 700)
    return mel


def _chunks(data: bytes, what: str) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of the chunks of a RIFF file (Microsoft RIFF specification 1.0)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise InputError(f"{what} is not a WAV file", hint=_WRITE_PCM)
    place = 12
    for _ in range(_MAX_CHUNKS):
        if place + 8 > len(data):
            return
        name, size = struct.unpack_from("<4sI", data, place)
        if name == b"data" and size in (0, 0xFFFFFFFF) and place + 8 + size != len(data):
            size = len(data) - place - 8  # written to a pipe, which could not be rewound to fill the length in
        if place + 8 + size > len(data):
            raise InputError(f"{what} is truncated in its chunk {name!r}", hint="copy or record it again")
        yield name, data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _layout(chunk: bytes, what: str) -> tuple[int, int, int, int]:
    """Format, channels, rate and bits a sample."""
    if len(chunk) < 16:
        raise InputError(f"{what} has a damaged header", hint=_WRITE_PCM)
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 26:
        (kind,) = struct.unpack_from("<H", chunk, 24)
    if kind not in (_PCM, _FLOAT) or bits not in ((8, 16, 24, 32) if kind == _PCM else (32, 64)):
        raise InputError(f"{what} has the format {kind} with {bits} bits, which is not read", hint=_WRITE_PCM)
    if not 1 <= channels <= _MAX_CHANNELS or block != channels * bits // 8:
        raise InputError(f"{what} has {channels} channels in blocks of {block} bytes", hint=_WRITE_PCM)
    return kind, channels, rate, bits


def _values(samples: bytes, kind: int, bits: int, channels: int) -> Sound:
    """float64 [samples, channels]"""
    if kind == _FLOAT:
        return np.frombuffer(samples, f"<f{bits // 8}").astype(np.float64).reshape(-1, channels)
    if bits == 8:  # the only unsigned one
        return (np.frombuffer(samples, np.uint8).astype(np.float64) - 128).reshape(-1, channels) / 128
    if bits == 24:  # becomes 32 bits with a low byte of zero
        wide = np.zeros((len(samples) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(samples, np.uint8).reshape(-1, 3)
        samples, bits = wide.tobytes(), 32
    values: Sound = np.frombuffer(samples, f"<i{bits // 8}").astype(np.float64)
    values /= 2 ** (bits - 1)
    return values.reshape(-1, channels)
