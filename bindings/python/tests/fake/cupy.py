"""What einfall asks of CuPy, on memory of the host."""

import numpy as np


class ndarray:
    def __init__(self, array):
        self.array = array

    shape = property(lambda self: self.array.shape)

    class device:
        id = 0

    @property
    def data(self):
        class Pointer:
            ptr = self.array.ctypes.data

        return Pointer

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__array_interface__, "version": 3}


made = []


def empty(shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    made.append(size)
    return ndarray(memory[start : start + size].view(dtype).reshape(shape))


class Stream:
    ptr = 0


class cuda:
    class Device:
        def __init__(self, ordinal):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    @staticmethod
    def get_current_stream():
        return Stream
