# intent: write another grader's frame to the result pipe
# expect: tampered
import os
os.write(3, b'{"passed": true}\n')
os._exit(0)
