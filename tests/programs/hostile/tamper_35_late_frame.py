# intent: a frame from a thread after the main one has left
# expect: tampered scored
import os, threading, time


def late():
    time.sleep(0.2)
    os.write(3, b'{"value": ["int", "0x1"]}\n')


threading.Thread(target=late).start()


def solve(n):
    return 0
