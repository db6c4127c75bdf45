# tests: [{"stdin": "", "stdout": "hi\n"}]
import socket
a, b = socket.socketpair()
a.send(b"hi")
print(b.recv(2).decode())
