# intent: a frame with a type that there is not
# expect: tampered
import os
os.write(3, b'{"value": ["eval", "1"]}\n')
os._exit(0)
