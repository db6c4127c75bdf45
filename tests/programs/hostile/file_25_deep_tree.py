# intent: a folder a hundred thousand deep
# expect: scored timeout
import os
for i in range(10 ** 5):
    os.mkdir("d")
    os.chdir("d")


def solve(n):
    return 0
