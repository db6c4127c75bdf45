# tests: [{"stdin": "go north\n", "stdout": "going north\n"}]
match input().split():
    case ["go", where]:
        print("going", where)
    case _:
        print("what")
