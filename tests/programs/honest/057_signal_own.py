# tests: [{"stdin": "", "stdout": "caught\n"}]
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: print("caught"))
os.kill(os.getpid(), signal.SIGUSR1)
