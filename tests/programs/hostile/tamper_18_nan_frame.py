# intent: a frame with NaN
# expect: tampered
import os
os.write(3, b'{"value": NaN}\n')
os._exit(0)
