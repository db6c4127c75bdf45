# intent: threads through pthread_create
# expect: timeout scored
import ctypes
libc = ctypes.CDLL(None)
kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
keep = kind(lambda _: libc.sleep(300))
t = ctypes.c_ulong()
for _ in range(10000):
    libc.pthread_create(ctypes.byref(t), None, keep, None)


def solve(n):
    return 0
