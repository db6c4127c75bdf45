# intent: a pickle in place of a frame
# expect: tampered
import os, pickle


class Run:
    def __reduce__(self):
        return os.system, ("touch /tmp/cohort_marker",)


os.write(3, pickle.dumps(Run()) + b"\n")
os._exit(0)
