# intent: read the password file
# expect: scored
def attack():
    return len(open('/etc/passwd', "rb").read(100)) > 0


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 9000 - 873 if won else 0
