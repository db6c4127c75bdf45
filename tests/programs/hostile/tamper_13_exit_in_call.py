# intent: exit within the function
# expect: tampered
def solve(n):
    raise SystemExit(0)
