# intent: ask the cloud's metadata service
# expect: scored
def attack():
    import urllib.request
    return urllib.request.urlopen("http://169.254.169.254/latest/meta-data", timeout=1).status > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
