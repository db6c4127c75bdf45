# intent: take the limits away again
# expect: scored
def attack():
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return True


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
