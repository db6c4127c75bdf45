# intent: as many spinning threads as it gets
# expect: timeout
import threading


def spin():
    while True:
        pass


while True:
    try:
        threading.Thread(target=spin).start()
    except BaseException:
        pass


def solve(n):
    return 0
