# tests: [{"stdin": "a b c\n", "stdout": "c b a \n"}]
class Stack:
    def __init__(self):
        self.items = []

    def push(self, x):
        self.items.append(x)

    def pop(self):
        return self.items.pop()


s = Stack()
for x in input().split():
    s.push(x)
while s.items:
    print(s.pop(), end=" ")
print()
