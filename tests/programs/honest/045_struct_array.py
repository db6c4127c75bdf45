# tests: [{"stdin": "", "stdout": "000000010002 [1, 2]\n"}]
import array, struct
print(struct.pack(">IH", 1, 2).hex(), array.array("i", [1, 2]).tolist())
