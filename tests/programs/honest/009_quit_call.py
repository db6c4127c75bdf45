# tests: [{"stdin": "", "stdout": "before\n"}]
print("before")
quit()
print("after")
