# intent: a frame with the same key twice
# expect: tampered
import os
os.write(3, b'{"value": ["int", "0x0"], "value": ["int", "0x1"]}\n')
os._exit(0)
