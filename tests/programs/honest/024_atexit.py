# tests: [{"stdin": "", "stdout": "hello\nbye\n"}]
import atexit
atexit.register(lambda: print("bye"))
print("hello")
