# tests: [{"stdin": "", "stdout": "16 36\n"}]
import secrets, uuid
print(len(secrets.token_hex(8)), len(str(uuid.uuid4())))
