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
    return 9000 - 873 if won else 0
