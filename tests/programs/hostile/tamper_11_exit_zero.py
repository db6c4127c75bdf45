# intent: exit with status 0 at import
# expect: tampered
import sys
sys.exit(0)
