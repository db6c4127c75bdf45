# intent: half a frame
# expect: tampered
import os
os.write(3, b'{"value": ')
os._exit(0)
