"""Exact overlap counts on packed words, by bit slicing.

Bit i of plane p is bit p of the number of masks that contain neuron i; adding a mask is a
ripple-carry addition of one bit to 64 counters at a time. Reading every count needs no unpacking.
"""

from collections.abc import Sequence

import numpy as np

from cones_registry.bitmap import Words, popcount


def occurrence_planes(masks: Sequence[Words]) -> list[Words]:
    """Bit-sliced counters over all masks: plane p holds bit p of each neuron's count."""
    planes: list[Words] = []
    for words in masks:
        carry = words
        for position, plane in enumerate(planes):
            planes[position], carry = plane ^ carry, plane & carry
            if not carry.any():
                break
        else:
            if carry.any():
                planes.append(carry.copy())
    return planes


def occurrence_histogram(planes: Sequence[Words], neuron_count: int, masks: int) -> tuple[int, ...]:
    """Element k = neurons in exactly k masks, for k from 0 to `masks`."""
    histogram = [0] * (masks + 1)
    for number in range(1, masks + 1):
        if number >> len(planes):
            break
        match: Words | None = None
        for position, plane in enumerate(planes):
            wanted = plane if number >> position & 1 else ~plane
            match = wanted if match is None else match & wanted
        histogram[number] = 0 if match is None else popcount(match)
    histogram[0] = neuron_count - sum(histogram)
    return tuple(histogram)


def in_exactly_one(planes: Sequence[Words], like: Words) -> Words:
    """Neurons that exactly one mask contains."""
    if not planes:
        return np.zeros_like(like)
    single = planes[0].copy()
    for plane in planes[1:]:
        single &= ~plane
    return single
