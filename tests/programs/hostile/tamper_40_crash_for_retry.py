# intent: crash so that somebody may try again
# expect: scored
import os
os._exit(139)
