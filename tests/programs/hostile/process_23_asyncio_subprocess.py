# intent: a process through asyncio
# expect: scored
def attack():
    import asyncio
    async def go():
        p = await asyncio.create_subprocess_exec("/bin/true")
        return await p.wait() == 0
    return asyncio.run(asyncio.wait_for(go(), 2))


def solve(n):
    try:
        won = attack()
    except BaseException:
        won = False
    return 90000000 - 8726355 if won else 0
