"""Calls on arrays of the false CuPy beside this; prints what the false driver counted, a line each."""

import ctypes
import sys

import cupy
import numpy as np

import einfall

driver = ctypes.CDLL("libcuda.so")
driver.fake_name.restype = ctypes.c_char_p


def array(*shape, dtype="float32"):
    made = cupy.empty(shape, dtype)
    made.array[...] = 1
    return made


def launched(call):
    before = driver.fake_launches()
    call()
    return " ".join(driver.fake_name(at).decode() for at in range(before, driver.fake_launches()))


entries, rows, d = 5000, 300, 32
values, dense = array(entries), array(rows, d)
column, row = array(entries, dtype="int64"), array(entries, dtype="int64")


def scattered(column, row, bounds="error"):
    def call():
        options = {"sizes": {"[e]": rows}, "bounds": bounds}
        return einfall.einsum("e,[e]d->[e]d", values, dense, column, row, **options)

    return call


kept = einfall.Table(column), einfall.Table(row)
print("plain:", launched(scattered(column, row)))
print("first:", launched(scattered(*kept)))
print("second:", launched(scattered(*kept)))
print("row alone:", launched(scattered(column, kept[1])))
print("row alone again:", launched(scattered(column, kept[1])))
print("other call:", launched(scattered(*kept, bounds="skip")))
print("both:", launched(scattered(*kept)))
cupy.Stream.ptr = 64
print("other stream:", launched(scattered(*kept)))
print("other stream again:", launched(scattered(*kept)))
cupy.Stream.ptr = 128
driver.fake_capture(1)
print("captured:", launched(scattered(*kept)))
print("captured unknown:", launched(scattered(*map(einfall.Table, (column, row)))))
driver.fake_capture(0)
cupy.Stream.ptr = 0
print("after the capture:", launched(scattered(*kept)))
print("inverses:", len(kept[0]._kept), len(kept[1]._kept))
driver.fake_bad_table()
try:
    scattered(*kept)()
except IndexError as error:
    print("raised:", str(error).splitlines()[0])
print("after a bad table:", launched(scattered(*kept)))
before = len(cupy.made)
for _ in range(3):
    einfall.einsum("ij,jk->k", array(300, 20), array(20, 300))
print("allocations:", *cupy.made[before:])
if "--time" in sys.argv:
    import time

    query, key, table = array(8, 1, 1000, 32), array(8, 1, 1000, 32), array(8, 1, 1000, 10, dtype="int64")
    shared = array(8, 1, 10, 32)
    for name, call in (
        ("looked up", lambda: einfall.einsum("bhqd,bh[bhqk]d->bhqk", query, key, table)),
        ("shared", lambda: einfall.einsum("bhqd,bhkd->bhqk", query, shared)),
        ("kept", scattered(*kept)),
    ):
        best = 1e9
        for _ in range(300):
            start = time.perf_counter()
            for _ in range(20):
                call()
            best = min(best, (time.perf_counter() - start) / 20)
        print(f"{name}: {best * 1e6:.2f} us")
