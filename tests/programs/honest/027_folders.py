# tests: [{"stdin": "", "stdout": "1\n[]\n"}]
import os, shutil
os.makedirs("a/b/c")
open("a/b/c/f", "w").close()
print(sum(len(files) for _, _, files in os.walk("a")))
shutil.rmtree("a")
print(os.listdir("."))
