# tests: [{"stdin": "", "stdout": "1240\n"}]
import threading
results = []
lock = threading.Lock()


def work(i):
    with lock:
        results.append(i * i)


ts = [threading.Thread(target=work, args=(i,)) for i in range(16)]
[t.start() for t in ts]
[t.join() for t in ts]
print(sum(results))
